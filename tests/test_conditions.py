"""Conditions that a catalog, a number or an old conversation makes impossible: the talk goes on, and tells no untruth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent import AsyncSession, Recommender
from agent.dialogue.events import Constraint, Turn
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.rule_parser import parse
from agent.dialogue.state import State
from agent.sync import Session
from store import Catalog, Event, History, Item
from tests.helpers.dialogues import METADATA, CatalogInMemory, fulfils
from tests.helpers.serving import DEAD

Talk = Callable[..., Session]


@pytest.fixture
def talk(tmp_path: Path, embedder: Any) -> Iterator[Talk]:
    """Begins conversations over one catalog of items with the metadata given, the last of them hidden where asked."""
    catalog, history = Catalog.open(tmp_path / "store", embedder=embedder), History.open(tmp_path / "store")

    def begin(*metadata: Mapping[str, Any], hidden: Mapping[str, Any] | None = None, id: str | None = None) -> Session:
        items = [Item(f"i{at}", f"Thing number {at}", "A thing.", one) for at, one in enumerate(metadata)]
        catalog.upsert([*items, *([Item("h", "Secret", "A thing.", hidden, hidden=True)] if hidden else [])])
        return Recommender(catalog, history, base_url=DEAD, deadline=0.2).session(id=id)

    yield begin
    history.close()
    catalog.close()


def ids(turn: Turn) -> set[str]:
    return {r.item.id for r in turn.items}


# --- units of time


SECONDS = {"milliseconds": 0.001, "seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}
UNITS = {
    "runtime": "minutes", "duration_min": "minutes", "runtime_mins": "minutes", "min_runtime": "minutes",
    "minutes": "minutes", "intersectional_duration": "minutes", "shortest_length": "minutes",
    "runtime_hours": "hours", "runtimeHours": "hours", "hours": "hours", "playtime_h": "hours", "Duration (hrs)": "hours",
    "min_duration_hours": "hours", "duration_sec": "seconds", "duration_seconds": "seconds", "length_s": "seconds",
    "secs_of_runtime": "seconds", "duration_ms": "milliseconds", "DURATION_MS": "milliseconds", "duration_days": "days",
}  # fmt: skip
"""Names of fields of lengths of time, and the unit of each."""


def read_alone(words: str, field: str) -> Constraint:
    """The one constraint that a message states on a catalog whose items have this field alone, of 10 minutes to 10 hours."""
    lengths = [minutes * 60 / SECONDS[UNITS[field]] for minutes in (10, 90, 100, 600)]
    items = [Item(f"i{at}", f"Thing number {at}", "", {field: length}) for at, length in enumerate(lengths)]
    lexicon = Lexicon.of(CatalogInMemory(*items))  # type: ignore[arg-type]
    (constraint,) = parse(words, State(), lexicon, lambda ids: []).constraints
    return constraint


LENGTHS = st.one_of(
    st.integers(1, 600).map(lambda n: (f"{n} minutes", n * 60.0)),
    st.integers(1, 40).map(lambda quarters: (f"{quarters / 4:g} hours", quarters * 900.0)),
    st.sampled_from([("two hours", 7200.0), ("2h30", 9000.0), ("an hour", 3600.0), ("half an hour", 1800.0)]),
)
COMPARATORS = {
    "under": ("$lt", "under"),
    "at least": ("$gte", "at least"),
    "over": ("$gt", "over"),
    "at most": ("$lte", "at most"),
}


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(COMPARATORS)), LENGTHS)
@example("runtime_hours", "under", ("two hours", 7200.0))
@example("duration_sec", "under", ("90 minutes", 5400.0))
@example("runtime", "at least", ("1.5 hours", 5400.0))
@example("duration_ms", "over", ("600 minutes", 36000.0))
@settings(max_examples=300, deadline=None, database=None)
def test_a_length_is_filtered_and_worded_in_the_unit_of_its_field(
    field: str, comparator: str, length: tuple[str, float]
) -> None:
    words, seconds = length
    constraint = read_alone(f"something {comparator} {words}", field)
    op, spoken = COMPARATORS[comparator]
    unit = UNITS[field]
    assert (constraint.field, constraint.op) == (field, op)
    # Values are rounded to four places.
    assert constraint.value == pytest.approx(seconds / SECONDS[unit], rel=0, abs=6e-5)
    assert constraint.words == f"{spoken} {constraint.value:.12g} {unit[:-1] if constraint.value == 1 else unit}"
    for off in (-120.0, 120.0):
        wanted = (off < 0) == (op in ("$lt", "$lte"))
        assert fulfils({field: (seconds + off) / SECONDS[unit]}, constraint) == wanted


@pytest.mark.parametrize(
    ("field", "words", "told"),
    [
        ("runtime_hours", "between 90 and 120 minutes", "1.5 to 2 hours"),
        ("duration_sec", "between 1 and 2 hours", "3600 to 7200 seconds"),
        ("runtime_hours", "not over two hours", "at most 2 hours"),
        ("runtime_hours", "about an hour", "0.9 to 1.1 hours"),
        ("duration_sec", "something short", "at most 5400 seconds"),
    ],
)
def test_ranges_and_adjectives_are_worded_in_the_unit_of_their_field(field: str, words: str, told: str) -> None:
    assert read_alone(words, field).words == told


# --- fields of other types than numbers


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ([{"size": [38, 39]}, {"size": [40]}], ["bigger ones", "size over 39", "nothing too big"]),
        ([{"size": [38, 39]}, {"size": ["XL", "M"]}], ["XL ones", "bigger ones", "surprise me"]),
        ([{"shoes": [38]}, {"shoes": [40]}], ["shoes over 39", "over 39 shoes"]),
        (
            [{"year": "1989"}, {"year": 1994}, {"year": 2001}],
            ["films after 1991", "newer", "from the 90s", "year above 1990", "the last ten years", "year 1989"],
        ),
        ([{"price": "12 to 15"}, {"price": 30}], ["something under $20", "something cheap", "cheaper than 20"]),
        ([{"rating": True}, {"rating": False}], ["rating over 3", "better rated"]),
    ],
    ids=["lists of numbers", "lists of both", "lists, another name", "years as text too", "prices as text too", "yes or no"],
)  # fmt: skip
def test_a_field_that_cannot_be_compared_breaks_no_conversation(talk: Talk, metadata: Any, said: list[str]) -> None:
    session = talk(*metadata, *({"kind": "plain"} for _ in range(3)))
    for words in [*said, "show those again", "more", "hello"]:
        assert not {c.op for c in session.send(words).constraints} & {"$gt", "$gte", "$lt", "$lte", "$between"}


def test_numbers_that_only_hidden_items_have_are_no_field_to_ask_for(talk: Talk) -> None:
    def send(words: str) -> Turn:
        return talk({"year": 1999}, {"year": 2004}, hidden={"year": 2000, "price": 12.5}).send(words)

    assert ids(send("something cheap")) == {"i0", "i1"}
    turn = send("something under $50")
    assert ids(turn) == {"i0", "i1"} and "a field of numbers for price is not in this catalog" in turn.text
    assert ids(send("things after 2000")) == {"i1"}


def test_a_field_that_now_holds_text_is_dropped_from_an_old_conversation(talk: Talk) -> None:
    begun = talk({"year": 1989}, {"year": 1994}, {"year": 2001})
    assert [c.words for c in begun.send("things after 1991").constraints] == ["after 1991"]
    turn = talk({"year": "1989"}, {"year": 1994}, {"year": 2001}, {"year": 2004}, id=begun.id).send("more")
    assert turn.constraints == [] and ids(turn) and "“after 1991” is not in this catalog" in turn.text


# --- numbers that are none


@pytest.mark.parametrize(
    "words",
    [
        f"films with year under {'9' * 400}",
        f"films with year under {'9' * 20}",
        f"films about 17{'0' * 307} minutes long",
        f"films between 90 and {'9' * 400} minutes",
        f"films from the last {'9' * 400} years",
    ],
    ids=["year", "beyond 64 bits", "about", "between", "last years"],
)
def test_a_number_that_no_filter_takes_is_no_condition_and_that_is_said(films: Path, words: str) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        session = Recommender(catalog, history, base_url=DEAD, deadline=0.2).session()
        turn = session.send(words)
        assert turn.constraints == [] and turn.items and "so large a number is not in this catalog" in turn.text
        assert [c.words for c in session.send("westerns before 1970").constraints] == ["before 1970", "Western"]
        session.state.constraints.append(
            Constraint("year", "$lt", float("inf"), "before inf")
        )  # kept by a former Evoke
        session.save()
        assert "before inf" not in [c.words for c in session.send("more").constraints]
        assert "year" in [c.field for c in session.send(f"year under {'9' * 18}").constraints]


# --- what is said of conditions


def test_why_names_only_the_conditions_that_the_item_fulfils(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        session = Recommender(catalog, history, base_url=DEAD, deadline=0.2).session()
        old = next(r.item for r in session.send("crime films before 2000").items)
        assert [c.words for c in session.send("after 2004").constraints] == ["Crime", "after 2004"]
        told = session.send(f"why did you show {old.title}?").text
        assert "was number 1" in told and "after 2004" not in told and "It fulfils what you asked for: Crime." in told
        session.relax(0)
        assert "fulfils" not in session.send(f"why did you show {old.title}?").text


def test_a_condition_is_put_anew_when_one_of_its_values_is_taken_out(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        session = Recommender(catalog, history, base_url=DEAD, deadline=0.2).session()
        assert [c.words for c in session.send("crime or family films").constraints] == ["Crime or Family"]
        turn = session.send("no crime")
        assert {c.words: c.value for c in turn.constraints} == {"Family": ["Family"], "no Crime": "Crime"}
        assert turn.items and all(fulfils(METADATA[id], c) for id in ids(turn) for c in turn.constraints)


# --- likes said in a conversation that nobody keeps


def test_likes_said_in_a_conversation_that_is_not_kept_count_beside_the_users_history(films: Path) -> None:
    said = [{"role": "user", "content": "I loved Alien and Heat, and I hated Clueless"}]
    with Catalog.open(films) as catalog, History.open(films) as history:
        history.add([Event("nora", item, float(at)) for at, item in enumerate(("clueless-1995", "ronin-1998"))])
        core = Recommender(catalog, history, base_url=DEAD, deadline=0.2)._core

        def found(user: str | None) -> list[Any]:
            session = AsyncSession.of_messages(core, [*said, {"role": "user", "content": "more"}], user)
            turn = asyncio.run(session.send("more"))
            return [(r.item.id, r.channels, r.evidence) for r in turn.items]

        anonymous = found(None)
        assert all({"dense", "collaborative"} & channels.keys() for _, channels, _ in anonymous)
        assert found("newbie") == anonymous
        speaking = {id for _, _, evidence in found("nora") for id in evidence}
        assert speaking and speaking <= {"alien-1979", "heat-1995", "ronin-1998"} and "ronin-1998" in speaking
        assert len(history.of("nora")) == 2 and not history.knows("newbie")


# --- what is no text


def test_a_message_with_halves_of_characters_is_read_and_kept(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        recommender = Recommender(catalog, history, base_url=DEAD, deadline=0.2)
        session = recommender.session()
        turn = session.send("caf\udce9 westerns \ud83d")
        assert turn.items and [c.words for c in turn.constraints] == ["Western"]
        assert Session.load(recommender, session.id).state.messages[0]["content"] == "caf\ufffd westerns \ufffd"
        replayed = AsyncSession.of_messages(recommender._core, [{"role": "user", "content": "caf\udce9"}] * 2)
        assert replayed.state.messages[0]["content"] == "caf\ufffd"
