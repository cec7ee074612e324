"""Comparatives: "newer", "shorter than the second", "too long", "something short" as conditions; "less violent" as a wish.

What is compared with is the item spoken of, else the middle of the list shown last, else the middle of the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from agent.comparators import made
from agent.lexicon import Lexicon
from agent.scan import STRUCK, Text
from agent.turns import Constraint

THING = r"(?:something|anything|one|ones|stuff|things?|films?|movies?|books?|songs?|games?|shows?|items?|it|them|\w+s)"
_MORE = {
    "time": r"newer|more recent|more modern|more current|later|younger|less old|more contemporary",
    "length": r"longer",
    "price": r"pricier|more expensive|dearer|less cheap",
    "rating": r"better rated|higher rated|higher ranked",
    "pages": r"longer|thicker",
    "weight": r"heavier",
    "size": r"bigger|larger",
}
_LESS = {
    "time": r"older|earlier|less recent|less modern|more old|more classic|less new",
    "length": r"shorter|quicker|briefer|less long|not (?:so|as|that|too) long",
    "price": r"cheaper|less expensive|more affordable|less pricey",
    "pages": r"shorter|thinner",
    "weight": r"lighter",
    "size": r"smaller",
}
_TOO = {
    "time": ("old|dated", "new|recent|modern"),
    "length": ("short", "long|lengthy"),
    "price": ("cheap", "expensive|pricey|dear"),
}
"""What there may be too little and too much of."""
_GOOD = {
    "time": ("new|recent|modern|contemporary|current", "old|vintage"),
    "length": ("long", "short|quick|brief"),
    "price": ("expensive", "cheap|affordable|inexpensive"),
}
"""What is high and what is low on the field's own scale: its upper and its lower third."""


def comparatives(text: Text, lexicon: Lexicon, reference: Sequence[dict[str, Any]]) -> list[Constraint]:
    """The conditions that comparisons state, each struck out. `reference`: the metadata of what is compared with."""
    found = []
    for kind, name in lexicon.fields.items():
        for words, op in ((_MORE.get(kind), "$gt"), (_LESS.get(kind), "$lt")):
            if words and (
                match := re.search(
                    rf"\b(?:(?:much|a bit|a little|even|slightly|somewhat) )?(?P<w>{words})\b(?: than\b)?", text.lower
                )
            ):
                found.append(made(kind, (op, _middle(name, reference, lexicon)), lexicon))
                text.strike(*match.span())
        little, much = _TOO.get(kind, (None, None))
        for words, op in ((little, "$gt"), (much, "$lt")):
            if words and (
                match := re.search(
                    rf"\b(?P<not>not |nothing |isn't |don't want (?:anything )?)?(?:too|so|that|very) (?:{words})\b",
                    text.lower,
                )
            ):
                relative = not match["not"]
                value = _middle(name, reference, lexicon) if relative or reference else _third(name, op, lexicon)
                found.append(made(kind, (op, value), lexicon))
                text.strike(*match.span())
        high, low = _GOOD.get(kind, (None, None))
        for words, op in ((high, "$gte"), (low, "$lte")):
            pattern = rf"\b(?:{THING} (?:that is |that's |really |very |pretty |fairly |quite |kinda )*(?:{words})\b(?! \w*[a-z]{{3}}ing)|(?:{words}) {THING}\b|keep it (?:{words})\b|(?:{words})(?=\W*$))"
            if (
                words
                and (match := re.search(pattern, text.lower))
                and STRUCK not in match.group()
                and not text.negated(match.start())
            ):
                low_third, _, high_third = lexicon.values.quantiles[name]
                found.append(made(kind, (op, high_third if op == "$gte" else low_third), lexicon))
                at = re.search(rf"\b(?:{words})\b", match.group())
                if at:
                    text.strike(match.start() + at.start(), match.start() + at.end())
    return found


def _middle(name: str, reference: Sequence[dict[str, Any]], lexicon: Lexicon) -> float:
    values = sorted(v for row in reference if isinstance(v := row.get(name), int | float) and not isinstance(v, bool))
    return float(values[len(values) // 2]) if values else lexicon.values.quantiles[name][1]


def _third(name: str, op: str, lexicon: Lexicon) -> float:
    low, _, high = lexicon.values.quantiles[name]
    return low if op == "$gt" else high
