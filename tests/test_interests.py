"""Interests of a model: the checks, and the fallback that fills the gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.item_text import STEP, WINDOW, descriptive_values, field_summary, first_sentence, prompt_lines
from agent.profile.fallback import MIN_QUERIES, Mix, fill_up, good_queries
from agent.profile.interests import UserContext, kept_interests
from agent.profile.schemas import Written
from agent.results import Interests, Named, Stage
from prompts import Prompts
from store import Event, History, Item
from store.filters import fields_of
from tests.helpers.recommending import GOOD

ITEMS = [
    Item(
        "a",
        "The Long Heist",
        "Thieves dig for a year. They are caught.",
        {"genres": ["Crime", "Drama"], "director": "Ann Lee"},
    ),
    Item("b", "Night Shift", "A nurse sees too much at night.", {"genres": ["Crime"], "director": "Ann Lee"}),
    Item("c", "Small Lights", "Fireflies talk to a boy.", {"genres": ["Family"], "director": "Bo Ek"}),
    *(Item(f"x{n}", f"Other {n}", "Something else.", {"genres": ["Music"], "director": f"D{n}"}) for n in range(9)),
]
SCHEMA = fields_of(ITEMS)


def test_queries_that_cannot_retrieve_are_dropped() -> None:
    asked = [
        "careful thieves who plan for years", "https://example.org/crime", "www.films.com", "The Long Heist", "heist",
        "Careful thieves, who plan for years!", "a nurse who sees too much", "word " * 30, "",
    ]  # fmt: skip
    assert good_queries(asked, ITEMS[:2]) == ["careful thieves who plan for years", "a nurse who sees too much"]


@given(st.lists(st.text(max_size=60), max_size=12))
def test_the_check_of_queries_survives_any_text_and_is_stable(queries: list[str]) -> None:
    kept = good_queries(queries, ITEMS)
    assert good_queries(kept, ITEMS) == kept


def test_interests_without_a_model_are_built_from_fields_and_text() -> None:
    stage = Stage("profile")
    found = fill_up(Interests(), ITEMS[:3], SCHEMA, stage)
    assert {i.name for i in found.profile.interests} == {"Crime", "Ann Lee"}
    assert {id for i in found.profile.interests for id in i.evidence} == {"a", "b"}
    assert all(query != "The Long Heist" for query in found.queries)
    assert any(query.startswith("Crime") for query in found.queries)
    assert stage.notes == [
        "interests built from the history's fields",
        f"{len(found.queries)} queries built from the history's fields",
    ]


def test_a_models_queries_stay_first() -> None:
    written = Interests(None, tuple(f"a query number {word}" for word in ("one", "two is longer")), (Named("X"),))
    found = fill_up(written, ITEMS[:3], SCHEMA, Stage("profile"))
    good = tuple(good_queries(written.queries, []))
    assert found.queries[: len(good)] == good
    assert len(found.queries) <= MIN_QUERIES
    assert found.named == (Named("X"),)


def test_queries_are_added_where_they_are_missing_or_wanted() -> None:
    words = ["red bicycle bell", "green garden chair", "long walks at sea", "old maps of Rome", "cooking with fire"]
    assert fill_up(Interests(None, tuple(words), ()), ITEMS[:3], SCHEMA, Stage("profile")).queries == tuple(words)
    latest = ["Small Lights, Family, Bo Ek", "Night Shift, Crime, Ann Lee"]
    found = fill_up(Interests(None, tuple(words[:3]), ()), ITEMS[:3], SCHEMA, Stage("profile"), Mix(latest=2))
    assert found.queries == (*latest, *words[:3]) and found.latest == 2
    assert Interests.from_json(found.as_json()) == found
    few = fill_up(Interests(None, tuple(words[:2]), ()), ITEMS[:3], SCHEMA, Stage("profile"), Mix(latest=2)).queries
    assert few[:4] == (*latest, *words[:2]) and len(few) == MIN_QUERIES
    joined = fill_up(Interests(None, tuple(words), ()), ITEMS[:3], SCHEMA, Stage("profile"), Mix(built=2)).queries
    assert joined[:5] == tuple(words) and len(joined) == 7


def test_a_value_that_most_items_have_describes_none() -> None:
    assert descriptive_values(ITEMS[3], SCHEMA) == ["D0"]
    assert descriptive_values(ITEMS[0], SCHEMA) == ["Crime", "Ann Lee", "Drama"]
    assert (
        field_summary(Item("i", "T", "", {"year": 1995.0, "tags": ["a", "b", "c", "d"], "ok": True})) == "1995; a, b, c"
    )
    assert first_sentence(Item("i", "Heat", "Heat. A thief. A cop.")) == "A thief."
    assert first_sentence(Item("i", "Heat", "Heat - a thief. A cop.")) == "a thief."
    assert first_sentence(Item("i", "M", "Murder grips a city.")) == "Murder grips a city."
    assert first_sentence(Item("i", "Heat", "Heat's in town.")) == "Heat's in town."


def test_items_that_others_chose_next_are_searched_for_where_a_trained_model_leaves_them_out(tmp_path: Path) -> None:
    others = [Item("x", "Old Maps", "", {"genres": ["Travel"]}), Item("y", "Red Bell", "", {"genres": ["Crime"]})]
    said = Interests(None, ("Red Bell, Crime", "green garden chair"), ())
    stage = Stage("profile")
    found = fill_up(said, ITEMS[:3], SCHEMA, stage, Mix(latest=1, built=1), others)
    assert found.queries[:4] == ("Small Lights, Family, Bo Ek", *said.queries, "Old Maps, Travel")
    assert len(found.queries) == 5 and found.latest == 1
    assert stage.notes[1:] == [
        "1 queries for items that others chose next",
        "2 queries built from the history's fields",
    ]
    with History.open(tmp_path) as cache:
        context = UserContext(SCHEMA, cache, "ann", others)
        kept = kept_interests(None, ITEMS[:3], context, Prompts(), None, Stage("profile"))
    assert kept == Interests()
    silent = fill_up(kept, ITEMS[:3], SCHEMA, Stage("profile"), others=others)
    assert silent.queries[:2] == ("Old Maps, Travel", "Red Bell, Crime") and len(silent.queries) == MIN_QUERIES


def test_a_profile_that_is_far_behind_is_rewritten_with_a_prompt_of_bounded_length(rec: Any) -> None:
    recommender = rec()
    core = recommender._core
    recommender.recommend(user="mara", n=1)
    new = [id for id in core.catalog.ids() if id not in {e.item for e in core.history.of("mara")}]

    def after(*liked: str) -> tuple[str, str]:
        core.history.add([Event("mara", id, 2e9 + new.index(id), None, "like") for id in liked])
        recommender.server.requests.clear()
        stage = recommender.recommend(user="mara", n=1).trace["profile"]
        assert not stage.degraded
        asked = [r["messages"][-1]["content"] for r in recommender.server.requests if "response_format" in r]
        return asked[0], " ".join(stage.notes)

    few, notes = after(*new[: WINDOW + STEP - 1])
    assert f"refreshed with {WINDOW + STEP - 1} new events" in notes and GOOD["summary"] in few
    many, notes = after(*new[WINDOW + STEP - 1 :])
    assert "refreshed" not in notes and GOOD["summary"] not in many
    assert len(many) < 2 * len(few)
    assert core.catalog.get([new[-1]])[new[-1]].title in many
    assert recommender.recommend(user="mara", n=1).trace["profile"].cached


@given(st.integers(0, 500))
def test_the_part_of_a_history_in_a_prompt_moves_in_steps(n: int) -> None:
    shown = prompt_lines([Item("i", "T")] * n)
    assert len(shown) == n or WINDOW <= len(shown) < WINDOW + STEP
    assert (n - len(shown)) % STEP == 0
    assert not shown or shown[-1]["label"] == n


def test_one_schema_reads_whole_and_broken_answers() -> None:
    assert Written.model_validate({}).queries == []
    asked = Written.model_json_schema(mode="serialization")
    assert asked["properties"]["queries"]["minItems"] == MIN_QUERIES
    assert set(asked["required"]) == {"summary", "interests", "avoid", "queries", "named"}


def test_the_latest_items_are_searched_for_before_a_trained_models_queries() -> None:
    titles = [
        "Anna walks the very long way home again and again, whatever the weather may be",
        "Seven brothers dig for water under an old quarry that nobody has worked for years",
        "How to build a boat from what a storm leaves on the beach, told by those who did",
    ]
    history = [Item(title[0], title, "") for title in titles]
    written = Interests(None, ("red bicycle bell",), ())
    found = fill_up(written, [*history, history[1]], SCHEMA, Stage("profile"), Mix(latest=2)).queries
    assert found[:3] == (titles[1], titles[2], "red bicycle bell")
    nameless = [Item("n", "", "A text."), Item("b", "", "A text.", {"genres": ["Family"]})]
    assert fill_up(written, nameless, SCHEMA, Stage("profile"), Mix(latest=2)).queries[:2] == (
        "Family",
        "red bicycle bell",
    )
