"""Constraints: their units, and those that a catalog, a number or an old conversation makes impossible. The answers stay true."""

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
from agent.dialogue.nlu.llm_parser import ParserCondition, check_condition
from agent.dialogue.nlu.message import Text
from agent.dialogue.nlu.rule_parser import parse
from agent.dialogue.state import State
from agent.dialogue.state_tracking import update_state
from agent.sync import Session
from store import Catalog, Event, History, Item
from tests.helpers.dialogues import METADATA, CatalogInMemory, fulfils
from tests.helpers.serving import DEAD

Talk = Callable[..., Session]


@pytest.fixture
def talk(tmp_path: Path, embedder: Any) -> Iterator[Talk]:
    """Return a function that begins a conversation over items with the given metadata, and a hidden one if asked."""
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
def test_length_is_filtered_and_worded_in_the_unit_of_its_field(
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
    ("field", "words", "wording"),
    [
        ("runtime_hours", "between 90 and 120 minutes", "1.5 to 2 hours"),
        ("duration_sec", "between 1 and 2 hours", "3600 to 7200 seconds"),
        ("runtime_hours", "not over two hours", "at most 2 hours"),
        ("runtime_hours", "about an hour", "0.9 to 1.1 hours"),
        ("duration_sec", "something short", "at most 5400 seconds"),
    ],
)
def test_ranges_and_adjectives_are_worded_in_the_unit_of_their_field(field: str, words: str, wording: str) -> None:
    assert read_alone(words, field).words == wording


@pytest.mark.parametrize(
    ("field", "value", "wording"),
    [
        ("runtime_hours", "1.5", "at most 1.5 hours"),
        ("runtime", "90", "at most 90 minutes"),
        ("duration_sec", "5400", "at most 5400 seconds"),
        ("runtime_hours", "5", None),
        ("duration_sec", "324000", "at most 324000 seconds"),  # 90 hours
        ("price", "5400", None),
    ],
)
def test_length_from_the_model_must_match_a_number_of_the_message_in_the_unit_of_its_field(
    field: str, value: str, wording: str | None
) -> None:
    lexicon = Lexicon.of(CatalogInMemory(Item("a", "A", "", {field: 1.5}), Item("b", "B", "", {field: 2})))  # type: ignore[arg-type]
    output = ParserCondition(field=field, op="at most", value=value)
    constraint = check_condition(output, Text("I have to be done in 90"), lexicon)
    assert (constraint and constraint.words) == wording


# --- constraints on one field


@pytest.mark.parametrize(
    ("old", "new", "active"),
    [
        ("after 1990", "before 2000", ["after 1990", "before 2000"]),
        ("before 2000", "after 1990", ["before 2000", "after 1990"]),
        ("before 1990", "after 2000", ["after 2000"]),
        ("after 2000", "before 1990", ["before 1990"]),
        ("after 1990", "since 1995", ["from 1995 on"]),
        ("before 1990", "up to 1985", ["up to 1985"]),
        ("1970 to 1979", "after 1975", ["after 1975"]),
        ("from 1994", "before 1990", ["before 1990"]),
        ("the 40s or 80s", "after 1985", ["after 1985"]),
        ("after 1990", "1970 to 1979", ["the 1970s"]),
        ("not the 80s", "after 1970", ["not the 1980s", "after 1970"]),
        ("after 1970", "not the 80s", ["after 1970", "not the 1980s"]),
        ("not the 80s", "not the 60s", ["not the 1980s", "not the 1960s"]),
        ("not the 80s", "not the 80s", ["not the 1980s"]),
    ],
)
def test_new_constraint_on_a_number_replaces_those_that_cannot_hold_with_it(
    old: str, new: str, active: list[str]
) -> None:
    items = [Item(f"i{year}", f"Thing of {year}", "", {"year": year}) for year in (1940, 1980, 2020)]
    lexicon, state = Lexicon.of(CatalogInMemory(*items)), State()  # type: ignore[arg-type]
    for message in (old, new):
        update_state(state, parse(message, state, lexicon, lambda ids: []), lexicon)
    assert [c.words for c in state.constraints] == active


# --- fields of other types than numbers


@pytest.mark.parametrize(
    ("metadata", "messages"),
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
def test_field_without_single_numbers_is_never_compared(talk: Talk, metadata: Any, messages: list[str]) -> None:
    session = talk(*metadata, *({"kind": "plain"} for _ in range(3)))
    for words in [*messages, "show those again", "more", "hello"]:
        assert not {c.op for c in session.send(words).constraints} & {"$gt", "$gte", "$lt", "$lte", "$between"}


def test_numbers_of_hidden_items_only_are_no_filter(talk: Talk) -> None:
    def send(words: str) -> Turn:
        return talk({"year": 1999}, {"year": 2004}, hidden={"year": 2000, "price": 12.5}).send(words)

    assert ids(send("something cheap")) == {"i0", "i1"}
    turn = send("something under $50")
    assert ids(turn) == {"i0", "i1"} and "a field of numbers for price is not in this catalog" in turn.text
    assert ids(send("things after 2000")) == {"i1"}


def test_constraint_is_dropped_when_its_field_now_holds_text(talk: Talk) -> None:
    begun = talk({"year": 1989}, {"year": 1994}, {"year": 2001})
    assert [c.words for c in begun.send("things after 1991").constraints] == ["after 1991"]
    turn = talk({"year": "1989"}, {"year": 1994}, {"year": 2001}, {"year": 2004}, id=begun.id).send("more")
    assert turn.constraints == [] and ids(turn) and "“after 1991” is not in this catalog" in turn.text


# --- numbers beyond 64 bits


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
def test_number_beyond_64_bits_is_refused_and_the_answer_says_so(films: Path, words: str) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        session = Recommender(catalog, history, base_url=DEAD, deadline=0.2).session()
        turn = session.send(words)
        assert turn.constraints == [] and turn.items and "so large a number is not in this catalog" in turn.text
        assert [c.words for c in session.send("westerns before 1970").constraints] == ["before 1970", "Western"]
        session.state.constraints.append(
            Constraint("year", "$lt", float("inf"), "before inf")
        )  # stored by an earlier version
        session.save()
        assert "before inf" not in [c.words for c in session.send("more").constraints]
        assert "year" in [c.field for c in session.send(f"year under {'9' * 18}").constraints]


# --- wording of constraints


def test_why_names_only_constraints_that_the_item_fulfils(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        session = Recommender(catalog, history, base_url=DEAD, deadline=0.2).session()
        old = next(r.item for r in session.send("crime films before 2000").items)
        assert [c.words for c in session.send("after 2004").constraints] == ["Crime", "after 2004"]
        answer = session.send(f"why did you show {old.title}?").text
        assert (
            "was number 1" in answer
            and "after 2004" not in answer
            and "It fulfils what you asked for: Crime." in answer
        )
        session.relax(0)
        assert "fulfils" not in session.send(f"why did you show {old.title}?").text


def test_constraint_is_reworded_when_one_of_its_values_is_excluded(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        session = Recommender(catalog, history, base_url=DEAD, deadline=0.2).session()
        assert [c.words for c in session.send("crime or family films").constraints] == ["Crime or Family"]
        turn = session.send("no crime")
        assert {c.words: c.value for c in turn.constraints} == {"Family": ["Family"], "no Crime": "Crime"}
        assert turn.items and all(fulfils(METADATA[id], c) for id in ids(turn) for c in turn.constraints)


# --- likes in a conversation that is not stored


def test_likes_in_an_unstored_conversation_add_to_the_users_history_for_its_answers(films: Path) -> None:
    messages = [{"role": "user", "content": "I loved Alien and Heat, and I hated Clueless"}]
    with Catalog.open(films) as catalog, History.open(films) as history:
        history.add([Event("nora", item, float(at)) for at, item in enumerate(("clueless-1995", "ronin-1998"))])
        core = Recommender(catalog, history, base_url=DEAD, deadline=0.2)._core

        def found(user: str | None) -> list[Any]:
            session = AsyncSession.of_messages(core, [*messages, {"role": "user", "content": "more"}], user)
            turn = asyncio.run(session.send("more"))
            return [(r.item.id, r.channels, r.evidence) for r in turn.items]

        anonymous = found(None)
        assert all({"dense", "collaborative"} & channels.keys() for _, channels, _ in anonymous)
        assert found("newbie") == anonymous
        speaking = {id for _, _, evidence in found("nora") for id in evidence}
        assert speaking and speaking <= {"alien-1979", "heat-1995", "ronin-1998"} and "ronin-1998" in speaking
        assert len(history.of("nora")) == 2 and not history.knows("newbie")


# --- invalid text


def test_message_with_unpaired_surrogates_is_answered_and_stored(films: Path) -> None:
    with Catalog.open(films) as catalog, History.open(films) as history:
        recommender = Recommender(catalog, history, base_url=DEAD, deadline=0.2)
        session = recommender.session()
        turn = session.send("caf\udce9 westerns \ud83d")
        assert turn.items and [c.words for c in turn.constraints] == ["Western"]
        assert Session.load(recommender, session.id).state.messages[0]["content"] == "caf\ufffd westerns \ufffd"
        rebuilt = AsyncSession.of_messages(recommender._core, [{"role": "user", "content": "caf\udce9"}] * 2)
        assert rebuilt.state.messages[0]["content"] == "caf\ufffd"
