"""Comparators ("under", "at least", "newer than"), and the constraints on numbers that they state."""

from __future__ import annotations

import re

from agent.dialogue.constraint_text import describe_constraint
from agent.dialogue.events import Constraint
from agent.dialogue.nlu.lexicon import KINDS, Lexicon
from agent.dialogue.units import time_unit

SMALL = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "half an": 0.5, "half a": 0.5,
}  # fmt: skip
LESS = (
    "under|below|less than|fewer than|lower than|shorter than|smaller than|lighter than|cheaper than|older than|earlier than|"
    "before|prior to|pre-?"
)
MORE = (
    "over|above|more than|greater than|higher than|longer than|bigger than|heavier than|newer than|later than|younger than|"
    "after|more recent than|past|post-?|better than|exceeding"
)
MOST = (
    "at most|no more than|not more than|no longer than|not longer than|up to|until|till|max(?:imum)?|within|by|no later than|"
    "not over|not after|not above"
)
LEAST = (
    "at least|no less than|not less than|no shorter than|since|from|min(?:imum)?|no earlier than|not before|not under|"
    "starting (?:in|from)|not older than"
)
EXACTLY = "exactly|precisely"
ROUGHLY = r"around|about|roughly|approximately|circa|ca\.?|some|close to|nearly|like"
_OPERATORS = {"$lt": LESS, "$gt": MORE, "$lte": MOST, "$gte": LEAST, "$eq": EXACTLY, "~": ROUGHLY}
_KIND_OF = {
    "time": "older than|earlier than|newer than|later than|younger than|more recent than|not older than",
    "length": "shorter than|longer than|no longer than|not longer than|no shorter than",
    "price": "cheaper than",
}


def parse_operator(words: str) -> str:
    """Return the operator that a comparator stands for; "~" means about."""
    return next(op for op, known in _OPERATORS.items() if re.fullmatch(known, words))


def negate(op: str) -> str:
    """Return the opposite operator."""
    opposite = {"$lt": "$gte", "$lte": "$gt", "$gt": "$lte", "$gte": "$lt", "$between": "$outside", "$eq": "$ne"}
    return opposite[op]


def kind_of_comparator(words: str) -> str | None:
    """Return the kind of number that a comparator implies ("newer than": time), or None."""
    return next((kind for kind, known in _KIND_OF.items() if re.fullmatch(known, words)), None)


def find_numeric_field(word: str, lexicon: Lexicon) -> str | None:
    """Return the kind of number that this word names, in the catalog or not; else the numeric field of this name, or None."""
    singular = word.rstrip("s")
    own = (n for n in lexicon.schema if lexicon.numeric(n) and n.lower().rstrip("s") == singular)
    return next((kind for kind, names in KINDS.items() if word in names.split()), None) or next(own, None)


def make_constraint(
    kind: str, condition: tuple[str, object], lexicon: Lexicon, *, in_minutes: bool = False
) -> Constraint:
    """Return a constraint on the field that holds this kind of number.

    Args:
        kind: a key of `KINDS`, or the name of a field.
        condition: operator and value, in the field's unit.
        lexicon: the catalog's words.
        in_minutes: whether a length is given in minutes instead, as messages state it, and must be converted.
    """
    name = lexicon.fields.get(kind, kind)
    op, value = condition
    scaled = _convert(value, time_unit(name).per_minute if in_minutes and kind == "length" else 1.0)
    return Constraint(name, op, scaled, describe_constraint(name, op, scaled, kind))


def is_storable(value: object) -> bool:
    """Return whether a filter can take all numbers of this value: they fit into 64 bits."""
    if isinstance(value, list):
        return all(map(is_storable, value))
    return not isinstance(value, int | float) or -(2**63) <= value < 2**63


def _convert(value: object, scale: float) -> object:
    if isinstance(value, list):
        return [_convert(one, scale) for one in value]
    number = float(value) * scale  # type: ignore[arg-type]
    return int(number) if number.is_integer() else round(number, 4)
