"""Parse comparatives ("newer", "shorter than the second", "too long", "something short") as constraints on numbers.

The reference is the item mentioned, else the median of the list shown last, else the median of the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from agent.dialogue.events import Constraint
from agent.dialogue.nlu.comparison_words import make_constraint
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.message import Text

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
"""Adjectives after "too", for a low and for a high number."""
_GOOD = {
    "time": ("new|recent|modern|contemporary|current", "old|vintage"),
    "length": ("long", "short|quick|brief"),
    "price": ("expensive", "cheap|affordable|inexpensive"),
}
"""Adjectives for the upper and the lower third of a field's numbers."""


_MUCH = "(?:much|a bit|a little|even|slightly|somewhat)"
_NOT = "(?:not|nothing|isn't|don't want(?: anything)?)"
_VERY = "(?:really|very|pretty|fairly|quite|kinda)"


def parse_comparatives(text: Text, lexicon: Lexicon, reference: Sequence[dict[str, Any]]) -> list[Constraint]:
    """Return the constraints that comparatives state, each struck out. `reference` is the metadata of the items to compare with."""
    found = []
    for kind, name in lexicon.fields.items():
        middle = _middle(name, reference, lexicon)
        low_third, _, high_third = lexicon.values.quantiles[name]
        for words, op in ((_MORE.get(kind), "$gt"), (_LESS.get(kind), "$lt")):
            if words and (match := re.search(rf"\b(?:{_MUCH} )?(?:{words})\b(?: than\b)?", text.lower)):
                found.append(make_constraint(kind, (op, middle), lexicon))
                text.strike(*match.span())
        little, much = _TOO.get(kind, (None, None))
        for words, op in ((little, "$gt"), (much, "$lt")):
            if words and (match := re.search(rf"\b(?P<not>{_NOT} )?(?:too|so|that|very) (?:{words})\b", text.lower)):
                # Without a reference, "not too long" excludes the upper third of the catalog.
                third = low_third if op == "$gt" else high_third
                found.append(make_constraint(kind, (op, middle if reference or not match["not"] else third), lexicon))
                text.strike(*match.span())
        high, low = _GOOD.get(kind, (None, None))
        for words, op in ((high, "$gte"), (low, "$lte")):
            if (
                words
                and (match := re.search(_adjective_pattern(words), text.lower))
                and not text.negated(match.start())
            ):
                found.append(make_constraint(kind, (op, high_third if op == "$gte" else low_third), lexicon))
                at = next(place for name, place in _groups(match) if name.startswith("word"))
                text.strike(*at)
    return found


def _adjective_pattern(words: str) -> str:
    """Return the pattern of an adjective that stands for a third of the numbers: next to a noun, or alone at the end."""
    return (
        rf"\b(?:{THING} (?:that is |that's |{_VERY} )*(?P<word1>{words})\b|(?P<word2>{words}) {THING}\b|"
        rf"keep it (?P<word3>{words})\b|(?P<word4>{words})(?=\W*$))"
    )


def _groups(match: re.Match[str]) -> list[tuple[str, tuple[int, int]]]:
    return [(name, match.span(name)) for name, value in match.groupdict().items() if value]


def _middle(name: str, reference: Sequence[dict[str, Any]], lexicon: Lexicon) -> float:
    values = sorted(v for row in reference if isinstance(v := row.get(name), int | float) and not isinstance(v, bool))
    return float(values[len(values) // 2]) if values else lexicon.values.quantiles[name][1]
