"""The model client with servers that fail on demand: short reasons, no secrets, deadlines, retries, repaired answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BadAnswer, ModelDown, ModelError, ModelSlow
from agent.llm import parsing
from agent.llm.client import LLM, Deadline
from agent.profile.schemas import Written
from tests.helpers.faults import GARBAGE, Die, Hang, Labels, Raw, Server, Status, Text

SECRET = "sk-very-secret"
MESSAGES = [{"role": "user", "content": "the private prompt"}]


@pytest.fixture
async def client(model_server: Callable[..., Server]) -> AsyncIterator[Callable[..., LLM]]:
    made: list[LLM] = []

    def make(*script: Any, **options: Any) -> LLM:
        server = model_server(*script)
        llm = LLM(server.base_url, "scripted", api_key=SECRET, **options)
        llm.server = server  # type: ignore[attr-defined]
        made.append(llm)
        return llm

    yield make
    for llm in made:
        await llm.close()


async def structured(llm: LLM, seconds: float = 5.0) -> Any:
    return await llm.structured(MESSAGES, Written, max_tokens=50, deadline=Deadline(seconds))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(Status(500), ModelDown), (Status(401), ModelDown), (Status(404), ModelDown), (Status(400), BadAnswer), (Die(), ModelDown),
     (Text("no json here"), BadAnswer), (Text("[1, 2]"), BadAnswer), *((raw, ModelError) for raw in GARBAGE)],
)  # fmt: skip
async def test_every_error_has_a_short_reason_without_secrets(
    client: Callable[..., LLM], answer: Any, kind: type
) -> None:
    with pytest.raises(kind) as caught:
        await structured(client(answer))
    assert 5 < len(caught.value.reason) < 120
    assert "private" not in caught.value.reason
    assert SECRET not in caught.value.reason


async def test_hanging_server_costs_no_more_than_the_deadline(client: Callable[..., LLM]) -> None:
    llm = client(Hang())
    started = time.monotonic()
    with pytest.raises(ModelSlow):
        await structured(llm, 0.5)
    assert time.monotonic() - started < 1.5
    assert llm.server.left.wait(5)  # type: ignore[attr-defined]


async def test_text_written_before_the_deadline_is_used(client: Callable[..., LLM]) -> None:
    answer = {
        "summary": "Likes heists.",
        "interests": [],
        "avoid": [],
        "queries": ["slow burn heists", "x " * 200],
        "named": [],
    }
    llm = client(Text(json.dumps(answer), pause=0.04))
    reply = await structured(llm, 4.0)
    assert reply.value.summary == "Likes heists."
    assert reply.value.queries[0] == "slow burn heists"
    assert reply.partial
    assert isinstance(reply.broken, ModelSlow)
    assert llm.server.left.wait(5)  # type: ignore[attr-defined]


async def test_only_requests_that_were_not_processed_are_repeated(client: Callable[..., LLM]) -> None:
    busy = client(Status(503), Status(429), Text('{"summary": "fine"}'))
    assert (await structured(busy)).value.summary == "fine"
    failing = client(Status(500), Text('{"summary": "fine"}'))
    with pytest.raises(ModelDown):
        await structured(failing)
    assert len(failing.server.requests) == 1  # type: ignore[attr-defined]
    always = client(Status(503))
    with pytest.raises(ModelDown):
        await structured(always)
    assert len(always.server.requests) == 3  # type: ignore[attr-defined]


async def test_refused_temperature_is_never_sent_again(client: Callable[..., LLM]) -> None:
    def picky(body: dict[str, Any]) -> Any:
        return Status(400, param="temperature") if "temperature" in body else Text('{"summary": "fine"}')

    llm = client(picky)
    for _ in range(2):
        assert (await structured(llm)).value.summary == "fine"
    assert ["temperature" in body for body in llm.server.requests] == [True, False, False]  # type: ignore[attr-defined]


async def test_missing_server_gives_no_connection() -> None:
    llm = LLM("http://127.0.0.1:9/v1", "m")
    with pytest.raises(ModelDown, match="no connection"):
        await structured(llm)
    await llm.close()


async def test_number_of_parallel_calls_is_limited(client: Callable[..., LLM]) -> None:
    running = most = 0

    def slow(_: dict[str, Any]) -> Text:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.3)
        running -= 1
        return Text('{"summary": "fine"}')

    llm = client(slow, concurrency=3)
    await asyncio.gather(*(structured(llm, 30) for _ in range(12)))
    assert 2 <= most <= 3


async def test_cancelling_and_closing_stop_the_server(client: Callable[..., LLM]) -> None:
    llm = client(Text("word " * 500, pause=0.02))
    stream = llm.stream(MESSAGES, max_tokens=500, deadline=Deadline(30))
    async for _ in stream:
        break
    await stream.aclose()
    assert stream.usage.tokens_out == 1
    assert llm.server.left.wait(5)  # type: ignore[attr-defined]
    assert llm.server.pieces < 400  # type: ignore[attr-defined]
    task = asyncio.create_task(structured(client(Hang()), 30))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_truncated_and_chatty_answers_are_parsed(client: Callable[..., LLM]) -> None:
    cut = Text(
        '{"summary": "likes it", "interests": [{"name": "a", "weight": 0.5, "evidence": [1]}, {"name": "b", "wei',
        finish="length",
    )
    reply = await structured(client(cut))
    assert reply.partial
    assert reply.value.summary == "likes it"
    assert reply.value.interests[0].name == "a"
    chatty = Text(
        'Sure! Here it is:\n```json\n{"summary": "fine", "interests": [], "avoid": [], "queries": [], "named": []}\n```'
    )
    assert (await structured(client(chatty))).value.summary == "fine"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"interests": [{"name": "a"}, {"weight": 2}, {"name": "b", "weight": 7, "evidence": [1, "x", 2]}, 5]}', ["a", "b"]),
        ('{"summary": 3, "interests": [{"name": "%s"}]}' % ("a" * 90), ["a" * 60]),
        ('{"note": 1} then {"interests": [{"name": "a", "weight": 0.5, "evidence": []}], "more": {"deep": []}}', ["a"]),
    ],
)  # fmt: skip
def test_only_invalid_parts_are_removed(text: str, left: list[str]) -> None:
    written, partial = parsing.parse(text, Written)
    assert [interest.name for interest in written.interests] == left
    assert partial


async def test_labels_add_up_variants_and_omit_missing_labels(client: Callable[..., LLM]) -> None:
    reply = await client(Labels({"A": -1.0, " A": -1.0, "B": -3.0, "Hello": -0.1})).labels(
        MESSAGES, "ABC", deadline=Deadline(5)
    )
    assert set(reply.value) == {"A", "B"}
    assert reply.value["A"] == pytest.approx(-1.0 + 0.6931, abs=1e-3)
    with pytest.raises(BadAnswer):
        await client(Text("A")).labels(MESSAGES, "AB", deadline=Deadline(5))
    with pytest.raises(ModelError):
        await client(Raw(b"{}")).labels(MESSAGES, "AB", deadline=Deadline(5))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=400)),
    lambda inner: st.one_of(st.lists(inner, max_size=8), st.dictionaries(st.text(max_size=12), inner, max_size=5)),
    max_leaves=12,
)
FIELDS = st.dictionaries(st.sampled_from(["summary", "interests", "avoid", "queries", "named", "else"]), VALUES)


@given(FIELDS, st.integers(0, 200))
def test_any_answer_is_parsed_or_refused(value: dict[str, Any], cut: int) -> None:
    text = json.dumps(value)
    for answer in (text, text[: len(text) - cut], "```" + text):
        try:
            written, _ = parsing.parse(answer, Written)
        except BadAnswer:
            continue
        assert isinstance(written, Written)
        assert len(written.queries) <= 10
