"""The road of a request, on the real store and encoder; the model is scripted where its exact answer matters."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import AsyncRecommender, Recommender
from agent.errors import EvokeError
from store import Catalog, Event, History, Item, StoreError
from tests.helpers.faults import GARBAGE, Die, Hang, Labels, Status
from tests.helpers.recommending import GOOD, modelled


def liked(rec: Recommender, user: str) -> list[str]:
    history = rec._core.history
    return [event.item for event in history.positive(history.of(user))]


def test_a_users_recommendation_keeps_the_contract(rec: Any) -> None:
    recommender = rec()
    row = recommender.recommend(user="mara").as_json()
    seen = {event.item for event in recommender._core.history.of("mara")}
    assert set(row) == {"user", "text", "profile", "queries", "named", "items", "personalised", "trace"}
    assert [item["rank"] for item in row["items"]] == list(range(1, 11))
    assert len(recommender._core.catalog.get([item["id"] for item in row["items"]])) == 10
    assert not seen & {item["id"] for item in row["items"]}
    for item in row["items"]:
        assert 0 <= item["score"] <= 1
        assert item["explanation"]
        assert item["channels"] and item["channels"].keys() == item["contributions"].keys()
        assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-3)
        assert set(item["evidence"]) <= seen
    assert [item["score"] for item in row["items"]] == sorted((item["score"] for item in row["items"]), reverse=True)
    assert [stage["name"] for stage in row["trace"]["stages"]] == ["profile", "retrieve", "fuse", "rerank", "explain"]
    assert row["trace"]["degraded"] == []
    assert row["personalised"] == 1.0


def test_a_profile_is_checked_against_the_history(rec: Any) -> None:
    recommender = rec()
    result = recommender.recommend(user="mara")
    history = liked(recommender, "mara")
    assert [interest.name for interest in result.profile.interests] == ["heists"]
    assert result.profile.interests[0].evidence == tuple(history[:2])
    assert not any("http" in query or query == "Heat" for query in result.queries)
    assert sum("last robbery" in query for query in result.queries) == 1
    notes = " ".join(result.trace["profile"].notes)
    assert "1 interests without evidence" in notes
    assert "queries dropped" in notes


def test_named_titles_are_grounded_and_the_rest_serve_as_queries(rec: Any) -> None:
    named = GOOD | {"named": [{"title": "Oceans Eleven", "year": 2001}, {"title": "The Sting", "year": 1973},
                              {"title": "The Sting", "year": 2015}, {"title": "Zorblax Returns", "year": None}]}  # fmt: skip
    result = rec(modelled(named)).recommend(history=["heat-1995"], n=20)
    grounded = {n.title: n.id for n in result.named}
    assert grounded["Oceans Eleven"] == "oceans-eleven-2001"
    assert grounded["Zorblax Returns"] is None
    assert "serve as queries" in " ".join(result.trace["retrieve"].notes)
    assert "oceans-eleven-2001" in [r.item.id for r in result if "named" in r.channels]


def test_the_second_request_is_cached_and_a_new_event_refreshes(rec: Any) -> None:
    recommender = rec()
    first = recommender.recommend(user="mara")
    again = recommender.recommend(user="mara")
    assert not first.trace["profile"].cached
    assert again.trace["profile"].cached
    assert again.queries == first.queries
    structured = [r for r in recommender.server.requests if "response_format" in r]
    assert len(structured) == 1
    seen = {event.item for event in recommender._core.history.of("mara")}
    new = next(id for id in recommender._core.catalog.ids() if id not in seen)
    recommender._core.history.add([Event("mara", new, 2e9, None, "like")])
    refreshed = recommender.recommend(user="mara")
    structured = [r for r in recommender.server.requests if "response_format" in r]
    assert len(structured) == 2
    assert "refreshed with 1 new events" in refreshed.trace["profile"].notes
    prompt = structured[1]["messages"][-1]["content"]
    assert recommender._core.catalog.get([new])[new].title in prompt
    assert GOOD["summary"] in prompt
    assert new not in {r.item.id for r in refreshed}


def test_an_overridden_prompt_misses_the_cache_and_shows_in_the_trace(rec: Any, tmp_path: Path) -> None:
    before = rec().recommend(user="mara")
    (tmp_path / "interests.j2").write_text(
        '{% block system %}Write JSON.{% endblock %}{% block user %}{% from "_data.j2" import data %}'
        "{% for line in history %}{{ line.label }} {{ data(line.title) }}\n{% endfor %}{% endblock %}"
    )
    after = rec(prompts=tmp_path).recommend(user="mara")
    assert not after.trace["profile"].cached
    assert after.trace["profile"].prompt != before.trace["profile"].prompt


def test_by_history_by_text_and_combined(rec: Any) -> None:
    recommender = rec()
    by_history = recommender.recommend(history=["heat-1995", "ronin-1998"], exclude=["casino-1995"], n=20)
    ids = [r.item.id for r in by_history]
    assert not {"heat-1995", "ronin-1998", "casino-1995"} & set(ids)
    by_text = recommender.recommend("animated film for small children", n=5)
    assert any("Animation" in r.item.metadata["genres"] for r in by_text)
    assert by_text.trace["profile"].notes == ["no history"]
    assert recommender.server.requests[-1]["messages"]
    both = recommender.recommend("animated film for small children", user="mara", n=5)
    assert {r.item.id for r in both} != {r.item.id for r in recommender.recommend(user="mara", n=5)}


def test_filters_and_hidden_items_are_never_overruled(rec: Any) -> None:
    recommender = rec()
    where = {"year": {"$gte": 1990, "$lt": 2000}, "genres": "Crime"}
    result = recommender.recommend(user="mara", n=10, where=where)
    assert result.items
    for r in result:
        assert 1990 <= r.item.metadata["year"] < 2000
        assert "Crime" in r.item.metadata["genres"]
    hidden = result.items[0].item
    recommender._core.catalog.upsert([Item(hidden.id, hidden.title, hidden.text, hidden.metadata, hidden=True)])
    assert hidden.id not in {r.item.id for r in recommender.recommend(user="mara", n=50)}
    with pytest.raises(StoreError, match="colour"):
        recommender.recommend(user="mara", where={"colour": "red"})


def test_an_unknown_user_and_an_unknown_item_are_a_cold_start(rec: Any) -> None:
    recommender = rec()
    result = recommender.recommend(user="never seen", history=["no-such-item"])
    assert len(result) == 10
    assert all(set(r.channels) == {"popular"} for r in result)
    assert result.personalised == 0
    notes = " ".join(note for stage in result.trace.stages for note in stage.notes)
    assert "cold start" in notes
    assert "not in the catalog: no-such-item" in notes
    with pytest.raises(EvokeError, match="at least 1"):
        recommender.recommend(n=0)
    with pytest.raises(EvokeError, match="no history"):
        recommender.profile("never seen")


FAULTS = {"hang": Hang(), "500": Status(500), "dies": Die(), **{f"garbage {i}": raw for i, raw in enumerate(GARBAGE)}}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_costs_quality_never_the_answer(rec: Any, fault: str) -> None:
    recommender = rec(FAULTS[fault], deadline=3.0)
    recommender.recommend("warm up the encoder", n=1)
    started = time.monotonic()
    result = recommender.recommend(user="mara")
    assert time.monotonic() - started < 3 + 2
    assert len(result) == 10
    assert all(r.explanation for r in result)
    assert result.personalised == 1.0
    assert len(result.queries) >= 5
    degraded = {row["stage"]: row["reason"] for row in result.trace.degraded}
    assert degraded["profile"]
    assert "interests built from the history's fields" in result.trace["profile"].notes


def test_without_a_model_the_answer_comes_from_the_catalog(rec: Any) -> None:
    recommender = rec()
    recommender._core.settings = recommender._core.settings.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    result = recommender.recommend(user="mara")
    assert len(result) == 10
    assert {row["stage"] for row in result.trace.degraded} == {"profile", "explain"}


def test_reranking_is_off_by_default_and_moves_no_score_by_more_than_its_weight(rec: Any) -> None:
    plain = rec().recommend(user="mara", n=20)
    assert plain.trace["rerank"].notes == ["off"]
    recommender = rec(rank_weight=0.3, rank_depth=20)
    ranked = recommender.recommend(user="mara", n=20)
    assert sum("logprobs" in r for r in recommender.server.requests) == 2
    assert ranked.trace["rerank"].tokens_out == 2 * 3
    before = {r.item.id: r.score for r in plain}
    assert {r.item.id for r in ranked} == set(before)
    for r in ranked:
        assert 0.7 * before[r.item.id] - 1e-9 <= r.score <= 0.7 * before[r.item.id] + 0.3 + 1e-9
        assert sum(r.contributions.values()) == pytest.approx(r.score)
        assert 0 <= r.contributions["rerank"] <= 0.3


def test_reranking_leaves_near_duplicates_behind(rec: Any) -> None:
    for user in ("mara", "tomasz", "aiko"):
        plain = rec(diversity=0.6, explain=False).recommend(user=user, n=12)
        ranked = rec(diversity=0.6, explain=False, rank_weight=0.1, rank_depth=4).recommend(user=user, n=12)
        ids, moved = ([item.item.id for item in found] for found in (plain, ranked))
        assert set(moved[:4]) == set(ids[:4])
        assert moved[4:] == ids[4:]


def test_absent_labels_keep_the_fused_order(rec: Any) -> None:
    few = rec(lambda body: Labels({"A": -1.0, "B": -2.0}) if "logprobs" in body else modelled()(body), rank_weight=0.5)
    result = few.recommend(user="mara", n=10)
    assert "labels absent" in result.trace["rerank"].degraded
    plain = rec().recommend(user="mara", n=10)
    assert [r.item.id for r in result] == [r.item.id for r in plain]


def test_explanations_are_the_models_where_they_hold_and_built_where_not(rec: Any) -> None:
    recommender = rec()
    top = recommender.recommend(user="mara", n=2)
    director = top.items[0].item.metadata["director"]
    said = f"1: A careful story directed by {director}.\n2: Reminds of The Godfather by Francis Ford Coppola from 1972."
    said = said.replace("The Godfather", "Zardoz") if "Coppola" in str(top.items[1].item.metadata) else said
    result = rec(modelled(GOOD, said)).recommend(user="mara", n=2)
    assert result.items[0].explanation == f"A careful story directed by {director}."
    assert "Coppola" not in result.items[1].explanation
    assert any("was replaced" in note for note in result.trace["explain"].notes)


def test_one_recommender_serves_many_requests_at_once(rec: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    recommender = rec()
    users = ["mara", "nobody"] * 4
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda user: recommender.recommend(user=user, n=5), users))
    assert [result.user for result in results] == users
    assert results[0].as_json()["items"] == results[2].as_json()["items"]


def test_a_request_goes_on_while_items_come_and_go(films: Path, model_server: Callable[..., Any]) -> None:
    meanwhile: list[Callable[[Catalog], Any]] = []

    def behave(body: dict[str, Any]) -> Any:
        if meanwhile:
            with Catalog.open(films) as other:  # as another process would
                meanwhile.pop()(other)
        return modelled()(body)

    with Catalog.open(films) as catalog, History.open(films) as history:
        recommender = Recommender(catalog, history, base_url=model_server(behave).base_url, explain=False)

        def shown(**request: Any) -> list[str]:
            return [item.item.id for item in recommender.recommend(**request).items]

        first = shown(history=["heat-1995"])
        meanwhile.append(lambda other: other.delete(first[:3]))
        left = shown(history=["heat-1995", "heat-1995"], n=20)
        assert len(left) == 20
        assert not {*first[:3]} & {*left}
        meanwhile.append(
            lambda other: other.upsert([Item("new", "The Newest Heist", "A crew and one last robbery.", {})])
        )
        assert len(shown(history=["ronin-1998"], text="a crew and one last robbery")) == 10
        assert not meanwhile
        recommender.close()


def test_a_result_cannot_be_changed_into_the_next_one(rec: Any) -> None:
    recommender = rec()
    for request in ({"text": "a slow heist film"}, {"user": "mara"}, {"user": "never seen"}):
        first = recommender.recommend(**request)
        before = first.as_json()
        for words in (first.queries, first.named, first.items, first.items[0].evidence):
            assert isinstance(words, tuple)
        if first.profile:
            assert isinstance(first.profile.interests, tuple) and isinstance(first.profile.avoid, tuple)
        changed = first.as_json()
        for name in ("queries", "named", "items"):
            changed[name].append("romantic comedy about a wedding")
        again = recommender.recommend(**request)
        assert again.as_json()["queries"] == before["queries"]
        assert [item["id"] for item in again.as_json()["items"]] == [item["id"] for item in before["items"]]


def test_public_signatures_are_spelled_out() -> None:
    wanted = ["self", "text", "user", "history", "n", "where", "exclude"]
    for owner in (Recommender, AsyncRecommender):
        parameters = inspect.signature(owner.recommend).parameters
        assert list(parameters) == wanted
        assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
        assert all(p.annotation is not p.empty for name, p in parameters.items() if name != "self")
        assert "exclude: ids" in (owner.recommend.__doc__ or "")
    assert list(inspect.signature(AsyncRecommender.stream).parameters) == [*wanted, "wishes"]
    with pytest.raises(TypeError, match=r"Recommender\.recommend\(\) got an unexpected keyword argument 'usr'"):
        Recommender.recommend(None, "x", usr="mara")  # type: ignore[arg-type, call-arg]


def test_recommend_reaches_the_http_client_in_nine_frames(rec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    stacks: list[list[str]] = []
    send = httpx2.AsyncHTTPTransport.handle_async_request

    async def noting(self: Any, request: Any) -> Any:
        if request.url.path.endswith("/chat/completions"):
            waiting = sys._current_frames()[threading.main_thread().ident or 0]
            stacks.append([*ours(waiting), *ours(sys._getframe(1))])
        return await send(self, request)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", noting)
    rec().recommend(user="mara", n=5)
    assert stacks
    assert len(stacks[0]) <= 9, stacks[0]


def ours(frame: Any) -> list[str]:
    """The functions of our packages on a stack, the outermost first."""
    found, root = [], Path(__file__).parent.parent
    while frame:
        file = Path(frame.f_code.co_filename)
        if any(file.is_relative_to(root / package) for package in ("agent", "prompts", "store", "eval")):
            found.append(f"{file.relative_to(root)}:{frame.f_code.co_name}")
        frame = frame.f_back
    return found[::-1]
