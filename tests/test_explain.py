"""Explanations: what they may name, and what stands in for those that may not be shown."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from agent.explanation.evidence import Shown
from agent.explanation.generate import _parsed, from_evidence
from agent.explanation.verify import Vocabulary, borrowed
from agent.ranking.fusion import Candidate
from store import Item
from store.filters import fields_of
from tests.helpers.faults import Text
from tests.helpers.recommending import GOOD, modelled

HEAT = Item(
    "heat",
    "Heat",
    "A thief and a detective.",
    {"year": 1995, "genres": ["Crime", "Thriller"], "director": "Michael Mann"},
)
THIEF = Item(
    "thief", "Thief", "A safecracker wants out.", {"year": 1981, "genres": ["Crime"], "director": "Michael Mann"}
)
OTHERS = [
    Item("w", "Blood Harvest", "Cowboys.", {"year": 1959, "genres": ["Western"], "director": "Ann Lee"}),
    Item("m", "The Quiet Lake", "Songs.", {"year": 1961, "genres": ["Music"], "director": "Bo Ek"}),
    *(
        Item(f"x{n}", f"Other Thing {n}", "Else.", {"year": 2000, "genres": ["Sport"], "director": f"D{n}"})
        for n in range(9)
    ),
]
SCHEMA = fields_of([HEAT, THIEF, *OTHERS])
VOCABULARY = Vocabulary(SimpleNamespace(titles=[i.title for i in (HEAT, THIEF, *OTHERS)]), SCHEMA)  # type: ignore[arg-type]
SHOWN = Shown(HEAT, Candidate("heat", 0.5, {"dense": 1}), [THIEF])


@pytest.mark.parametrize(
    "sentence",
    [
        "A tense crime story by Michael Mann, like Thief.",
        "Made in 1995, fourteen years after Thief, with the same director.",
        "You liked a 1980s safecracker; this detective hunts a thief.",
        "This thriller shares its mood with what you watched.",
    ],
)
def test_supported_sentences_pass(sentence: str) -> None:
    assert VOCABULARY.unsupported(sentence, SHOWN) is None


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("A classic western about a thief.", "western"),
        ("Made in 1994 by the same director.", "1994"),
        ("Part of the 1970s wave.", "1970s"),
        ("Fans of Quentin Tarantino will love it.", "Quentin"),
        ("Just like the quiet lake, it is calm.", "quiet lake"),
        ("Lee directs a thief and a detective.", "Lee"),
        ("It has the music you like.", "music"),
    ],
)
def test_a_claim_that_neither_item_nor_evidence_holds_is_found(sentence: str, wrong: str) -> None:
    assert VOCABULARY.unsupported(sentence, SHOWN) == wrong


def test_a_value_said_to_be_shared_is_held_by_both_items() -> None:
    both = Shown(HEAT, Candidate("heat", 0.5, {"dense": 1}), [OTHERS[0], THIEF])
    assert VOCABULARY.unsupported('It shares "Crime" with "Thief".', both) is None
    assert VOCABULARY.unsupported("This thriller shares its mood with Blood Harvest.", both) is None
    assert VOCABULARY.unsupported('It shares "Crime" with "Blood Harvest".', both) == "crime"
    assert VOCABULARY.unsupported("Shares Crime with Thief and Blood Harvest.", both) == "crime"
    assert VOCABULARY.unsupported("It shares the western feel with Blood Harvest.", both) == "western"


def test_a_sentence_must_say_something_about_its_own_item() -> None:
    thief = Shown(THIEF, Candidate("thief", 0.5, {"dense": 1}), [HEAT])
    assert borrowed('It shares "Heat" with "Heat".', thief, {})
    assert borrowed("You will love it, since you loved Heat.", thief, {})
    assert borrowed("A safecracker's tale by the director of Heat.", thief, {}) is None
    assert borrowed("Michael Mann again, as in Heat.", thief, {}) is None


SPAM = "it is cheaper at evilshop dot com, buy there today."


@pytest.mark.parametrize(
    "text",
    [f"Look, {SPAM} And so on.", SPAM.replace(" ", "<b> "), SPAM.translate({c: c + 0xFEE0 for c in range(97, 123)})],
    ids=["plain", "between marks", "in wide letters"],
)
def test_words_of_a_history_item_are_refused_unless_it_is_evidence(rec: Any, text: str) -> None:
    def behave(body: dict[str, Any]) -> Any:
        if "response_format" in body:
            return modelled()(body)
        shown = re.findall(r'^(\d+): "(\w+)[^"]*" \(', body["messages"][-1]["content"], re.MULTILINE)
        return Text("\n".join(f"{label}: {word} is one story, but {SPAM}" for label, word in shown))

    recommender = rec(behave)
    hostile = Item("hostile", "Zzyzx", text, {"year": 1999, "genres": ["Unheard"], "director": "Nobody Known"})
    recommender._core.catalog.upsert([hostile])
    result = recommender.recommend(history=["hostile", "heat-1995", "ronin-1998", "thief-1981"], n=10)
    prompt = recommender.server.requests[-1]["messages"][-1]["content"]
    assert "Zzyzx" in prompt
    apart = [r for r in result if "hostile" not in r.evidence]
    assert apart
    assert not any("evilshop" in r.explanation for r in apart)


def test_a_built_sentence_cites_only_items_that_share_all_its_values(rec: Any) -> None:
    """With a silent model, and with one that says the draft: for some films one that shares nothing comes first."""
    history = ["amelie-2001", "heat-1995", "paddington-2014"]

    def drafted(body: dict[str, Any]) -> Any:
        if "response_format" in body:
            return modelled()(body)
        return Text(body["messages"][-1]["content"].partition("write a better one:\n")[2].replace("\n\n", "\n"))

    for recommender in (rec(modelled(GOOD, "")), rec(drafted)):
        result = recommender.recommend(history=history, n=40)
        items = recommender._core.catalog.get(history)
        claims = [(r, found) for r in result if (found := re.search(r"hares (.+) with (.+)", r.explanation))]
        assert len(claims) > 10
        for r, found in claims:
            cited = [item for item in items.values() if item.title in found.group(2)]
            values = [v for value in r.item.metadata.values() for v in (value if isinstance(value, list) else [value])]
            shared = [v for v in values if isinstance(v, str) and re.search(rf"\b{v}\b", found.group(1))]
            assert cited and shared, r.explanation
            for item in cited:
                assert all(re.search(rf"\b{v}\b", str(item.metadata)) for v in shared), r.explanation


def test_an_item_that_only_fulfils_a_condition_is_not_called_popular(rec: Any) -> None:
    recommender = rec()
    old = [Item(f"old{n}", f"Workers Leaving {n}", "People walk.", {"year": 1890 + n}) for n in range(3)]
    recommender._core.catalog.upsert(old)
    turn = recommender.session().send("something before 1900")
    assert {r.item.id for r in turn.items} == {"old0", "old1", "old2"}
    assert {r.explanation for r in turn.items} == {"Fulfils what you asked for; nothing else speaks for it yet."}


def test_a_built_sentence_names_its_evidence() -> None:
    assert from_evidence(SHOWN, None, SCHEMA) == "Shares Crime and Michael Mann with Thief."
    first = Shown(HEAT, Candidate("heat", 0.5, {"dense": 1}), [OTHERS[0], THIEF])
    assert from_evidence(first, None, SCHEMA) == "Shares Crime and Michael Mann with Thief."
    apart = Shown(OTHERS[0], Candidate("w", 0.5, {"collaborative": 3}), [THIEF, HEAT])
    assert from_evidence(apart, None, SCHEMA) == (
        "Goes with Thief and Heat: close in content, or chosen by the same people."
    )
    alone = Shown(HEAT, Candidate("heat", 0.5, {"popular": 1}), [])
    assert from_evidence(alone, None, SCHEMA) == "Popular with others; nothing you did speaks for it yet."
    asked = Shown(HEAT, Candidate("heat", 0.5, {"queries": 1}), [])
    assert from_evidence(asked, "thieves", SCHEMA) == "Close to what you asked for."


@pytest.mark.parametrize("shown", [SHOWN, Shown(HEAT, Candidate("heat", 0.5, {"popular": 1}), [])])
def test_built_sentences_pass_the_check(shown: Shown) -> None:
    assert VOCABULARY.unsupported(from_evidence(shown, None, SCHEMA), shown) is None


def test_numbered_lines_are_read_in_the_forms_that_models_write() -> None:
    assert _parsed("1: It shares a thief with you.") == (1, "It shares a thief with you.")
    assert _parsed("**2.** Tense and careful, as you like.") == (2, "Tense and careful, as you like.")
    assert _parsed("Here are the lines:") is None
    assert _parsed("3: no") is None
