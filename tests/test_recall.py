"""What queries find: by meaning, and by the titles that they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import event_loop
from agent.item_text import described, plain
from agent.results import Named, Stage
from agent.retrieval.channels import GUESS, SAID, Request, Sources, recall
from agent.retrieval.grounding import ground, said_in
from store import Catalog, History, Hit, Item
from store.snapshot import Snapshot


def test_a_guess_weighs_less_than_a_thing_of_the_history(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        sources = Sources.of(catalog, history)

        def found(**asked: list[str]) -> dict[str, float]:
            hits, _ = event_loop.run(recall(sources, Request(k=400, **asked), ["queries"], Stage("recall")))
            return {hit.id: hit.score for hit in hits["queries"]}

        known, other = (found(queries=[text]) for text in ("Heat, Crime", "Toy Story, Animation"))
        both = found(queries=["Heat, Crime"], guesses=["Toy Story, Animation"])
    assert next(iter(known)) == next(iter(both)) == "heat-1995"
    for id, score in both.items():
        assert score == pytest.approx(max(known[id], GUESS * other[id]), abs=1e-4)
    assert any(both[id] > known[id] + 0.01 for id in both)


def test_a_query_that_says_a_title_finds_that_item_first(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        sources = Sources.of(catalog, history)

        def found(**asked: Any) -> list[Hit]:
            hits, _ = event_loop.run(recall(sources, Request(k=400, **asked), ["queries"], Stage("recall")))
            return hits["queries"]

        for said, id in {
            "Source Code, Thriller, Mystery": "source-code-2011",
            "ran": "ran-1985",
            "Paris, Texas, West Germany": "paris-texas-1984",
            "Good Night, and Good Luck": "good-night-and-good-luck-2005",
        }.items():
            first, *others = found(queries=[said])
            assert first == (id, pytest.approx(SAID))
            # A request in words is not taken at its word, and all else keeps its place.
            words = found(text=said)
            assert words[0].id != id
            assert [hit.id for hit in words if hit.id != id] == [hit.id for hit in others]
        assert found(guesses=["Source Code"])[0] == ("source-code-2011", pytest.approx(GUESS * SAID))
        assert "ran-1985" not in [hit.id for hit in found(queries=["ran"], exclude=["ran-1985"])]
        assert "ran-1985" not in [hit.id for hit in found(queries=["ran"], where={"year": {"$gte": 1990}})]
        long = "Planes, Trains and Automobiles and All Else That Takes You Home"
        catalog.upsert([Item("long", long, "A detour.", {"year": 1987})])
        assert described(catalog.get(["long"])["long"], catalog.schema()) != long
        sources = Sources.of(catalog, history)
        assert found(queries=[described(catalog.get(["long"])["long"], catalog.schema())])[0].id == "long"


@pytest.fixture(scope="module")
def snapshot(films_store: Path) -> Snapshot:
    with Catalog.open(films_store) as catalog:
        return catalog.snapshot()


@given(st.text(), st.integers(0, 342))
def test_a_title_is_said_whatever_follows_it(snapshot: Snapshot, more: str, row: int) -> None:
    title = snapshot.titles[row]
    for query in (title, f"{title}, {more}", more):
        beginnings = {plain(",".join(query.split(",")[:end])) for end in range(1, query.count(",") + 2)}
        said = {plain(snapshot.titles[found]) for found in said_in(query, snapshot)}
        assert said <= beginnings and len(said) <= 1
        assert said or query == more
    assert row in said_in(title, snapshot)


def test_a_title_that_ends_in_a_year_is_named_whole() -> None:
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
