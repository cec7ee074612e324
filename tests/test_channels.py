"""Channels: queries by meaning and by title, a batch beside its requests one by one, and grounded titles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.item_text import item_query, normalize_title
from agent.profile.user_history import UserHistory
from agent.results import Named
from agent.retrieval.channels import CHANNELS, GUESSED, TITLE_MATCH, Batch, Request, retrieve
from agent.retrieval.grounding import ground, rows_of_title
from agent.retrieval.sources import Sources
from store import Catalog, History, Hit, Item
from store.snapshot import Snapshot


def found(sources: Sources, where: dict[str, Any] | None = None, **asked: Any) -> list[Hit]:
    """The list of the channel `queries` for one request."""
    return retrieve(Batch(sources, [Request(**asked)], ["queries"], where))["queries"][0]


def test_a_guess_weighs_less_than_a_query_for_a_history_item(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        sources = Sources.of(catalog, history)
        known, other = (
            {hit.id: hit.score for hit in found(sources, queries=[text])}
            for text in ("Heat, Crime", "Toy Story, Animation")
        )
        both = {hit.id: hit.score for hit in found(sources, queries=["Heat, Crime"], guesses=["Toy Story, Animation"])}
    assert next(iter(known)) == next(iter(both)) == "heat-1995"
    checked = [id for id in both if id in known and id in other]
    assert len(checked) > 50
    for id in checked:
        assert both[id] == pytest.approx(max(known[id], GUESSED * other[id]), abs=1e-4)
    assert any(both[id] > known[id] + 0.01 for id in checked)


def test_a_query_that_says_a_title_finds_that_item_first(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        sources = Sources.of(catalog, history)
        for said, id in {
            "Source Code, Thriller, Mystery": "source-code-2011",
            "ran": "ran-1985",
            "Paris, Texas, West Germany": "paris-texas-1984",
            "Good Night, and Good Luck": "good-night-and-good-luck-2005",
        }.items():
            first, *others = found(sources, queries=[said])
            assert first == (id, pytest.approx(TITLE_MATCH))
            # The user's own text is searched by its meaning alone, and all other items keep their order.
            words = found(sources, text=said)
            assert words[0].id != id
            assert [hit.id for hit in words if hit.id != id][:150] == [hit.id for hit in others][:150]
        assert found(sources, guesses=["Source Code"])[0] == ("source-code-2011", pytest.approx(GUESSED * TITLE_MATCH))
        assert "ran-1985" not in [hit.id for hit in found(sources, queries=["ran"], exclude=["ran-1985"])]
        assert "ran-1985" not in [hit.id for hit in found(sources, {"year": {"$gte": 1990}}, queries=["ran"])]
        long = "Planes, Trains and Automobiles and All Else That Takes You Home"
        catalog.upsert([Item("long", long, "A detour.", {"year": 1987})])
        assert item_query(catalog.get(["long"])["long"], catalog.schema()) != long
        sources = Sources.of(catalog, history)
        assert found(sources, queries=[item_query(catalog.get(["long"])["long"], catalog.schema())])[0].id == "long"


def test_a_batch_gives_each_request_the_lists_that_it_gets_alone(films_store: Path) -> None:
    with Catalog.open(films_store) as catalog, History.open(films_store) as history:
        sources = Sources.of(catalog, history)
        requests = [Request()]
        for at, user in enumerate(history.users()[:12]):
            known = UserHistory.of(history, sources.snapshot, user)
            queries, named = ["a slow heist film"][: at % 2], [Named("Heat", 1995), Named("No Such Film")][: at % 3]
            text = "funny" if at % 4 == 0 else None
            requests.append(Request(known.liked, text, queries, ["space opera"], named, known.seen))
        together = retrieve(Batch(sources, requests, CHANNELS))
        for row, request in enumerate(requests):
            alone = retrieve(Batch(sources, [request], CHANNELS))
            for channel in CHANNELS:
                ours, theirs = together[channel][row], alone[channel][0]
                assert [hit.id for hit in ours] == [hit.id for hit in theirs], channel
                assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], rel=1e-5), channel
                assert not {hit.id for hit in ours} & set(request.exclude)


def test_an_empty_request_gets_popular_items_only(films_store: Path) -> None:
    with Catalog.open(films_store) as catalog, History.open(films_store) as history:
        lists = retrieve(Batch(Sources.of(catalog, history), [Request()], CHANNELS))
    assert [channel for channel, (hits,) in lists.items() if hits] == ["popular"]


@pytest.fixture(scope="module")
def snapshot(films_store: Path) -> Snapshot:
    with Catalog.open(films_store) as catalog:
        return catalog.snapshot()


@given(st.text(), st.integers(0, 342))
def test_a_query_says_a_title_whatever_follows_after_a_comma(snapshot: Snapshot, more: str, row: int) -> None:
    title = snapshot.titles[row]
    for query in (title, f"{title}, {more}", more):
        beginnings = {normalize_title(",".join(query.split(",")[:end])) for end in range(1, query.count(",") + 2)}
        said = {normalize_title(snapshot.titles[found]) for found in rows_of_title(query, snapshot)}
        assert said <= beginnings and len(said) <= 1
        assert said or query == more
    assert row in rows_of_title(title, snapshot)


def test_a_title_that_ends_in_a_year_is_grounded_whole() -> None:
    titles = ["Blade Runner", "Blade Runner 2049", "Heat", "Fantasia 2000"]
    years = ["1982", "2017", "1995", ""]
    films = Snapshot("named", list("abcd"), titles, years, np.zeros(4, bool), np.zeros((4, 2), np.float32))
    for named, id in (
        (Named("Blade Runner 2049", 2017), "b"),
        (Named("Blade Runner 2049", None), "b"),
        (Named("Blade Runner (2049)", None), "b"),
        (Named("Blade Runner", 1982), "a"),
        (Named("Heat 1995", None), "c"),
        (Named("Heat (1986)", None), None),
        (Named("Fantasia 2000", 1999), "d"),
    ):
        assert ground(named, films).id == id
