"""The HTTP service, tested with the real openai client and with plain HTTP."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.helpers.faults import Text
from tests.helpers.serving import until

SLOW = Text("word " * 400, pause=0.05)


def chat_request(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "evoke", "messages": [{"role": "user", "content": text}], **more}


def test_chat_completion_as_json(service: Any) -> None:
    client = service().openai()
    assert [model.id for model in client.models.list()] == ["evoke"]
    done = client.chat.completions.create(**chat_request("a slow heist film"))
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].message.content
    items = done.model_extra["recommendations"]
    assert {"rank", "id", "title", "score", "channels", "contributions", "explanation", "evidence"} == items[0].keys()
    assert done.model_extra["session"] is None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


async def test_stream_sends_items_before_text(service: Any) -> None:
    client = service().openai_async()
    options = {"include_usage": True}
    stream = await client.chat.completions.create(
        **chat_request("a slow heist film", stream=True, stream_options=options)
    )
    chunks = [chunk async for chunk in stream]
    await client.close()
    first, last = chunks[0], chunks[-2]
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    assert len(first.model_extra["recommendations"]) == 5
    spoken = next(at for at, chunk in enumerate(chunks) if chunk.choices[0].delta.content)
    # The LLM parser may have changed the items before the first word.
    shown = [row["id"] for chunk in chunks[:spoken] for row in chunk.model_extra["recommendations"]][-5:]
    assert last.choices[0].finish_reason == "stop"
    assert [row["id"] for row in last.model_extra["recommendations"]] == shown
    assert all(row["explanation"] for row in last.model_extra["recommendations"])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens >= 0


def test_conversation_from_messages_keeps_constraints_and_repeats_no_item(service: Any) -> None:
    client = service().openai()
    messages = [{"role": "user", "content": "a crime film from 1990 on"}]
    first = client.chat.completions.create(model="evoke", messages=messages)
    shown = {row["id"] for row in first.model_extra["recommendations"]}
    messages += [{"role": "assistant", "content": first.choices[0].message.content}]
    messages += [{"role": "user", "content": [{"type": "text", "text": "something else"}]}]
    second = client.chat.completions.create(model="evoke", messages=messages)
    again = {row["id"] for row in second.model_extra["recommendations"]}
    assert again
    assert not again & shown
    assert second.model_extra["constraints"] == first.model_extra["constraints"] != []


def test_stored_conversation(service: Any) -> None:
    made = service()
    client, http = made.openai(), made.http()
    extra = {"session": "conversation-1", "user": "mara"}
    first = client.chat.completions.create(**chat_request("a crime film from 1990 on"), extra_body=extra)
    assert first.model_extra["session"] == "conversation-1"
    shown = [row["id"] for row in first.model_extra["recommendations"]]
    assert first.model_extra["details"].keys() >= set(shown)
    liked = http.post("/v1/sessions/conversation-1/feedback", json={"item": shown[0], "kind": "dislike"})
    assert liked.json()["disliked"] == [shown[0]]
    second = client.chat.completions.create(**chat_request("another one"), extra_body={"session": "conversation-1"})
    assert not {row["id"] for row in second.model_extra["recommendations"]} & set(shown)
    kept = http.get("/v1/sessions/conversation-1").json()
    assert (kept["session"], kept["user"]) == ("conversation-1", "mara")
    assert [turn["role"] for turn in kept["turns"]] == ["user", "assistant"] * 2
    assert [c["field"] for c in kept["constraints"]] == ["year", "genres"]
    assert (
        http.post("/v1/sessions/conversation-1/relax", json={"index": 0}).json()["constraints"][0]["field"] == "genres"
    )
    assert http.post("/v1/sessions/conversation-1/relax", json={"index": 1}).status_code == 404
    assert http.get("/v1/sessions/conversation-2").status_code == 404
    unknown = http.post("/v1/sessions/conversation-1/feedback", json={"item": "nope", "kind": "like"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "item")
    with pytest.raises(openai.BadRequestError, match="another user"):
        client.chat.completions.create(**chat_request("more"), extra_body=extra | {"user": "theo"})


def test_closing_a_stream_stops_the_model(service: Any) -> None:
    made = service(SLOW)
    with made.openai().chat.completions.create(**chat_request("a slow heist film", stream=True)) as stream:
        next(iter(stream))
        until(lambda: made.model.pieces)  # items are sent before the model is called
    assert made.model.left.wait(20)
    assert made.model.pieces < 400


async def test_cancelling_a_request_stops_the_model(service: Any) -> None:
    made = service(SLOW)
    client = made.openai_async()
    answer = asyncio.create_task(client.chat.completions.create(**chat_request("a slow heist film")))
    await asyncio.to_thread(until, lambda: made.model.pieces)
    answer.cancel()
    await client.close()
    assert await asyncio.to_thread(made.model.left.wait, 20)


def test_deadline_ends_completions_with_504_and_streams_with_length(service: Any) -> None:
    made = service(SLOW, serve={"deadline": 2.0})
    with pytest.raises(openai.APIStatusError) as caught:
        made.openai().chat.completions.create(**chat_request("a slow heist film"))
    assert caught.value.status_code == 504
    last = list(made.openai().chat.completions.create(**chat_request("a slow heist film", stream=True)))[-1]
    assert last.choices[0].finish_reason == "length"
    assert "longer" in last.model_extra["degraded"][0]["reason"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", chat_request("x", model="gpt-4"), 404, "model_not_found"),
        ("POST", "/v1/chat/completions", chat_request("x", n=2), 400, "invalid_value"),
        ("POST", "/v1/chat/completions", chat_request(" "), 400, None),
        ("POST", "/v1/chat/completions", chat_request("x", session="../etc"), 400, "invalid_value"),
        ("POST", "/v1/chat/completions", {"model": "evoke", "messages": []}, 400, "invalid_value"),
        ("POST", "/v1/recommendations", {"n": 0}, 400, "invalid_value"),
        ("POST", "/v1/recommendations", {"txet": "typo"}, 400, "invalid_value"),
        ("POST", "/v1/recommendations", {"where": {"yeer": 1990}}, 400, "invalid_filter"),
        ("POST", "/v1/events", {"events": "x" * 1_000_001}, 413, "request_too_large"),
        ("POST", "/v1/events", {"events": ["no object"]}, 400, "invalid_value"),
        ("GET", "/v1/sessions/none", None, 404, "session_not_found"),
        ("GET", "/v1/nowhere", None, 404, "not_found"),
        ("DELETE", "/v1/users/nobody", None, 404, "user_not_found"),
        ("PUT", "/v1/models", None, 405, "method_not_allowed"),
    ],
)
def test_errors_have_the_form_of_openai(
    errors: Any, method: str, path: str, body: Any, status: int, code: str | None
) -> None:
    answer = errors.request(method, path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


def test_unknown_fields_are_named_in_one_line(errors: Any) -> None:
    for path, body in (("recommendations", {"usr": "mara"}), ("sessions/s1/relax", {"index": 0, "usr": "mara"})):
        error = errors.post(f"/v1/{path}", json=body).json()["error"]
        assert (error["message"], error["param"]) == ("unknown field usr; remove it or correct its name", "usr")


def test_event_with_an_invalid_field_name_is_rejected_alone(service: Any) -> None:
    http = service().http()
    good = {"user": "zoe", "item": "heat-1995"}
    sent = {"content": json.dumps({"events": [good, {"\ud800": 1}]}), "headers": {"Content-Type": "application/json"}}
    answer = http.post("/v1/events", **sent)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    assert answer.json()["rejected"] == [
        {"index": 1, "reason": "unknown field; an event has the fields user, item, timestamp, rating, kind"}
    ]


def test_forgetting_erases_idempotency_keys_and_rejected_events(service: Any, films: Path) -> None:
    http = service().http()
    sent = {"events": [{"user": "zoe-7f3a", "item": "heat-1995"}, {"zoe-7f3a": 1}]}
    key = {"Idempotency-Key": "zoe-7f3a:order-17"}
    first = http.post("/v1/events", json=sent, headers=key).json()
    assert http.delete("/v1/users/zoe-7f3a").json()["rows"] == {"events": 1, "profiles": 0, "sessions": 0}
    assert not any(b"zoe-7f3a" in file.read_bytes() for file in films.rglob("history.db*"))
    assert http.post("/v1/events", json=sent, headers=key).json() == first
    assert http.post("/v1/events", json={"events": []}, headers=key).status_code == 409
    assert http.delete("/v1/users/zoe-7f3a").status_code == 404


def test_forgetting_blocked_by_another_reader_is_completed_by_repeating_it(
    service: Any, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.tables.BUSY_SECONDS", 0.2)
    http = service().http()
    http.post("/v1/events", json={"events": [{"user": "zoe", "item": "heat-1995"}]})
    reader = sqlite3.connect(films / "history.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM evoke_events").fetchone()
    assert http.delete("/v1/users/nobody").status_code == 404
    busy = http.delete("/v1/users/zoe")
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "store_busy")
    reader.close()
    again = http.delete("/v1/users/zoe")
    assert (again.status_code, again.json()["deleted"]) == (200, True)
    assert http.delete("/v1/users/zoe").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_user_forgotten_during_an_answer_has_no_session(
    service: Any, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    made = service(Text("word " * 100, pause=0.05))
    http = made.http()
    body = chat_request("a slow heist film", session="s1", user="mara", stream=stream)
    with ThreadPoolExecutor(1) as apart:
        answer = apart.submit(http.post, "/v1/chat/completions", json=body)
        until(lambda: made.model.pieces)
        assert made.http().delete("/v1/users/mara").status_code == 200
        got = answer.result(60)
    # A stream has already begun with status 200, so its last event holds the error.
    error = json.loads(got.text.strip().split("data: ")[-1])["error"] if stream else got.json()["error"]
    assert got.status_code == (200 if stream else 404)
    assert error["code"] == "session_not_found"
    assert "forgotten meanwhile" in error["message"]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("path", "body"), [("feedback", {"item": "heat-1995", "kind": "like"}), ("relax", {"index": 0})]
)
def test_session_deleted_during_feedback_or_relax_gives_404(
    service: Any, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    from agent.dialogue.session import AsyncSession

    http = service().http()
    http.post("/v1/chat/completions", json=chat_request("a crime film from 1990 on", session="s1", user="mara"))
    load = AsyncSession.load

    async def loaded(recommender: Any, id: str) -> AsyncSession:
        found = await load(recommender, id)
        await recommender.forget("mara")
        return found

    monkeypatch.setattr(AsyncSession, "load", loaded)
    answer = http.post(f"/v1/sessions/s1/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


@pytest.fixture(scope="module")
def errors(films_store: Any) -> Any:
    from tests.helpers.serving import served

    with served(store=films_store) as made, made.http() as http:
        yield http


def test_invalid_json_large_bodies_and_foreign_hosts_are_refused(errors: Any) -> None:
    for headers, content in ({"content-type": "application/json"}, b"{"), ({"content-type": "text/plain"}, b"{}"):
        answer = errors.post("/v1/events", headers=headers, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    chunked = errors.post("/v1/events", content=(b"x" * 100_000 for _ in range(11)))
    assert chunked.status_code == 413
    assert errors.get("/", headers={"Host": "evil.example"}).status_code == 403
    preflight = errors.options(
        "/v1/models", headers={"Origin": "http://a.example", "Access-Control-Request-Method": "GET"}
    )
    assert "access-control-allow-origin" not in preflight.headers


def test_internal_errors_reveal_nothing(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.recommender import AsyncRecommender

    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the secret is in /etc/secret")

    made = service()
    monkeypatch.setattr(AsyncRecommender, "recommend", broken)
    answer = made.http().post("/v1/recommendations", json={})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"


def test_chat_page_loads_nothing_from_other_sites(errors: Any) -> None:
    for path in ("/", "/static/chat.js", "/static/chat.css"):
        answer = errors.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert errors.get("/static/../server.py").status_code == 404
    assert errors.get("/docs").status_code == 404


def test_recommendations_endpoint_returns_the_recommendation_json(service: Any) -> None:
    body = {"history": ["heat-1995"], "n": 3, "where": {"year": {"$gte": 1990}}, "exclude": ["ronin-1998"]}
    answer = service().http().post("/v1/recommendations", json=body).json()
    assert {"user", "text", "profile", "queries", "named", "items", "personalised", "trace"} == answer.keys()
    assert len(answer["items"]) == 3
    assert "ronin-1998" not in json.dumps([row["id"] for row in answer["items"]])


def test_readyz_names_degraded_parts(service: Any) -> None:
    assert service().http().get("/healthz").json() == {"status": "ok"}
    dead = service(base_url="http://127.0.0.1:9/v1").http().get("/readyz")
    assert dead.status_code == 200
    assert dead.json()["status"] == "degraded"
    assert dead.json()["degraded"] == [{"part": "model", "reason": "no connection to the model server"}]


def test_metrics_count_requests_stages_and_degraded_stages(service: Any) -> None:
    made = service(base_url="http://127.0.0.1:9/v1")
    http = made.http()
    http.post("/v1/recommendations", json={"user": "mara", "n": 2})
    counted = 'evoke_requests_total{route="/v1/recommendations",status="200"} 1.0'
    until(lambda: counted in http.get("/metrics").text)
    text = http.get("/metrics").text
    assert 'evoke_stage_seconds_count{stage="retrieve"} 1.0' in text
    assert 'evoke_degraded_total{stage="profile"} 1.0' in text
    assert "mara" not in text


def test_spans_are_sent_if_a_collector_is_configured(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setattr("agent.serve.tracing._exporter", lambda: memory)
    made = service()

    def names() -> list[str]:
        return [span.name for span in memory.get_finished_spans()]

    made.http().post("/v1/recommendations", json={"text": "a heist", "n": 2})
    until(lambda: "POST /v1/recommendations" in names())
    spans = {span.name: span for span in memory.get_finished_spans()}
    request = spans["POST /v1/recommendations"]
    assert {"profile", "retrieve", "fuse", "rerank", "explain"} <= spans.keys()
    assert spans["retrieve"].parent.span_id == request.context.span_id
    assert request.start_time <= spans["retrieve"].start_time <= spans["retrieve"].end_time <= request.end_time
    assert "heist" not in str([span.to_json() for span in spans.values()])
