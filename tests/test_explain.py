"""Explanations: what they may name, and what stands in for those that may not be shown."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agent.explain import Shown, Vocabulary, _parsed, borrowed, from_evidence
from agent.fusion import Candidate
from store import Item
from store.where import fields_of

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
def test_what_neither_item_nor_evidence_holds_is_found(sentence: str, wrong: str) -> None:
    assert VOCABULARY.unsupported(sentence, SHOWN) == wrong


def test_a_sentence_says_something_of_its_own_item() -> None:
    thief = Shown(THIEF, Candidate("thief", 0.5, {"dense": 1}), [HEAT])
    assert borrowed('It shares "Heat" with "Heat".', 0, [thief])
    assert borrowed("You will love it, since you loved Heat.", 0, [thief])
    assert borrowed("A safecracker's tale by the director of Heat.", 0, [thief]) is None
    assert borrowed("Michael Mann again, as in Heat.", 0, [thief]) is None


def test_sentences_from_the_evidence() -> None:
    assert from_evidence(SHOWN, None, SCHEMA) == "Shares Crime and Michael Mann with Thief."
    apart = Shown(OTHERS[0], Candidate("w", 0.5, {"collaborative": 3}), [THIEF])
    assert from_evidence(apart, None, SCHEMA) == "Often chosen together with Thief."
    alone = Shown(HEAT, Candidate("heat", 0.5, {"popular": 1}), [])
    assert from_evidence(alone, None, SCHEMA) == "Popular with others; nothing you did speaks for it yet."
    asked = Shown(HEAT, Candidate("heat", 0.5, {"queries": 1}), [])
    assert from_evidence(asked, "thieves", SCHEMA) == "Close to what you asked for."


@pytest.mark.parametrize("shown", [SHOWN, Shown(HEAT, Candidate("heat", 0.5, {"popular": 1}), [])])
def test_sentences_from_the_evidence_are_supported_themselves(shown: Shown) -> None:
    assert VOCABULARY.unsupported(from_evidence(shown, None, SCHEMA), shown) is None


def test_lines_are_read_in_the_forms_models_use() -> None:
    assert _parsed("1: It shares a thief with you.") == (1, "It shares a thief with you.")
    assert _parsed("**2.** Tense and careful, as you like.") == (2, "Tense and careful, as you like.")
    assert _parsed("Here are the lines:") is None
    assert _parsed("3: no") is None
