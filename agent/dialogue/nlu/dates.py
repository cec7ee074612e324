"""Parse decades, centuries and "the last ten years" in a message as ranges of years."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.dialogue.events import Constraint
from agent.dialogue.nlu.comparison_words import LEAST, LESS, MORE, MOST, SMALL, make_constraint, negate, parse_operator
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.message import STRUCK, Text

DECADES = {
    "twenties": 20, "thirties": 30, "forties": 40, "fifties": 50, "sixties": 60, "seventies": 70, "eighties": 80,
    "nineties": 90, "noughties": 2000,
}  # fmt: skip
_DECADE = re.compile(
    r"\b(?:the )?(?:(?P<part>early|mid|late)[ -])?(?:the )?"
    rf"(?:'?(?P<number>(?:1[5-9]|20)?\d0)'?s\b|(?P<word>{'|'.join(DECADES)})\b)"
)
_AFTER = re.compile(
    r"(?: and| or|,)? (?P<up>later|newer|on|onwards?|up|after)\b|(?: and| or|,)? (?P<down>earlier|older|before)\b"
)
_OP = re.compile(rf"\b(?P<op>{LESS}|{MORE}|{MOST}|{LEAST}) $")
_TO = re.compile(rf"{STRUCK} ?(?:-|–|to|through|until|till) ?$")
_CENTURY = re.compile(r"\b(?P<n>1[5-9]|2[01])(?:st|th) century\b|\b(?P<this>this century)\b")
_COUNT = "|".join(word for word in SMALL if " " not in word and len(word) > 2)
_LAST = re.compile(rf"\b(?:the )?(?:last|past) (?P<n>\d+|{_COUNT})? ?(?P<unit>years?|decades?)\b")

Range = tuple[list[float], bool]
"""First and last year, and whether they are unwanted."""


def parse_dates(text: Text, lexicon: Lexicon) -> list[Constraint]:
    """Return the constraints on time that the message states by decades and centuries, each struck out."""
    ranges: list[Range] = []
    found: list[Constraint] = []
    for match in text.find(_DECADE):
        low, high = _years(match)
        before, to = _OP.search(text.lower[: match.start()]), _TO.search(text.lower[: match.start()])
        after = _AFTER.match(text.lower, match.end())
        start, end = before.start() if before else match.start(), after.end() if after else match.end()
        unwanted = text.negated(start)
        op = parse_operator(before["op"]) if before and before["op"] not in ("from", "by") else None
        if to and ranges:
            ranges[-1] = ([ranges[-1][0][0], high], ranges[-1][1])
        elif after:
            found.append(make_constraint("time", ("$gte", low) if after["up"] else ("$lte", high), lexicon))
        elif op:
            edge = {"$lt": low, "$lte": high, "$gt": high, "$gte": low}[op]
            found.append(make_constraint("time", (negate(op) if unwanted else op, edge), lexicon))
        else:
            ranges.append(([low, high], unwanted))
        text.strike(start, end)
    for match in text.find(_CENTURY):
        low = 2000.0 if match["this"] else (int(match["n"]) - 1) * 100.0
        ranges.append(([low, low + 99], text.negated(match.start())))
        text.strike(*match.span())
    for match in text.find(_LAST):
        count = float(SMALL.get(match["n"] or "one") or match["n"]) * (10 if "decade" in match["unit"] else 1)
        newest = lexicon.schema[lexicon.fields["time"]].high or 0.0
        found.append(make_constraint("time", ("$gte", newest - count + 1), lexicon))
        text.strike(*match.span())
    if wanted := _merge([years for years, unwanted in ranges if not unwanted]):
        found.append(
            make_constraint("time", ("$between", wanted[0]) if len(wanted) == 1 else ("$ranges", wanted), lexicon)
        )
    return found + [make_constraint("time", ("$outside", years), lexicon) for years, unwanted in ranges if unwanted]


def _years(match: re.Match[str]) -> tuple[float, float]:
    """Return the first and the last year of a decade, or of its part ("early", "mid", "late")."""
    low = DECADES[match["word"]] if match["word"] else int(match["number"])
    if low < 1000:
        low += 1900 if low >= 30 or match["word"] else 2000
    first, last = {"early": (0, 3), "mid": (4, 6), "late": (7, 9)}.get(match["part"] or "", (0, 9))
    return float(low + first), float(low + last)


def _merge(ranges: Sequence[list[float]]) -> list[list[float]]:
    """Return the ranges of years in order; those that touch are merged."""
    merged: list[list[float]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    return merged
