"""Parse the numbers of a message as constraints: years, ranges, lengths, prices, and numeric fields by name."""

from __future__ import annotations

import re

from agent.dialogue.events import Constraint
from agent.dialogue.nlu.comparison_words import (
    EXACTLY,
    LEAST,
    LESS,
    MORE,
    MOST,
    ROUGHLY,
    SMALL,
    find_numeric_field,
    is_storable,
    kind_of_comparator,
    make_constraint,
    negate,
    parse_operator,
)
from agent.dialogue.nlu.dates import parse_dates
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.message import Text

ABOUT = 0.1
"""Tolerance of "about 90 minutes", as a share; for years it is two to either side."""

_N = r"(?:\d+(?:[.,]\d+)?|" + "|".join(sorted(SMALL, key=len, reverse=True)) + r")"
_MONEY = (
    r"[$€£] ?(?P<{0}money>\d+(?:\.\d+)?)|(?P<{0}money2>\d+(?:\.\d+)?) ?(?:[€£$]|(?:dollars?|euros?|bucks|pounds|"
    r"usd|eur)\b)"
)
_TIME = (
    rf"(?P<{{0}}hours>{_N}(?P<{{0}}half> and a half)?)[ -]?(?:hours?\b|hrs?\b|h(?![a-z]))(?P<{{0}}half2> and a half)?"
    r"(?:(?: and)? ?(?P<{0}more>\d+)(?: ?(?:minutes?|mins?|m))?\b)?(?: long\b)?|"
    rf"(?P<{{0}}minutes>{_N})[ -]?(?:minutes?|mins?|min)\b(?: long\b)?"
)
_YEAR = r"(?P<{0}year>(?:1[5-9]|20|21)\d\d)\b(?![.,]\d)"
_PLAIN = r"(?P<{0}plain>\d+(?:\.\d+)?)(?: ?(?P<{0}unit>[a-z]+)\b)?"
_QUANTITY = rf"(?:{_MONEY}|{_TIME}|{_YEAR}|{_PLAIN})"
_AFTER = (
    r"(?P<down>(?: or|,| and)? (?:less|shorter|under|older|earlier|before|fewer|cheaper|lower|below|max(?:imum)?|"
    r"tops|at most)\b)|"
    r"(?P<up> ?\+|(?: or|,| and)? (?:more|longer|over|newer|later|after|above|up|higher|onwards?|on|minimum|at "
    r"least)\b)"
)
_RANGE = re.compile(
    rf"(?:\bbetween |\bfrom )?(?<![\w.]){_QUANTITY.format('a_')} ?(?:-|–|—|\b(?:to|and|through|until|till)\b) "
    rf"?{_QUANTITY.format('b_')}"
)
_SINGLE = re.compile(
    rf"(?:\b(?P<op>{MOST}|{LEAST}|{LESS}|{MORE}|{EXACTLY}|{ROUGHLY})\s*(?:the )?(?:year "
    rf")?)?(?<![\w.]){_QUANTITY.format('q_')}(?:{_AFTER})?"
)
_NAME = re.compile(r"\b(?P<name>[a-z]+) (?:is |of |was |in )?$")


def parse_numbers(text: Text, lexicon: Lexicon) -> tuple[list[Constraint], list[str]]:
    """Return the constraints on numbers that the message states, and what the catalog lacks for them. Both are struck out."""
    missing: list[str] = []
    found = parse_dates(text, lexicon) if "time" in lexicon.fields else []
    for pattern, reading in ((_RANGE, _of_range), (_SINGLE, _of_single)):
        for match in text.find(pattern):
            name = _NAME.search(text.lower[: match.start()])
            named = find_numeric_field(name["name"], lexicon) if name else None
            bound = reading(match, named, lexicon)
            if not bound:
                continue
            kind, op, value = bound
            start = name.start() if name and named else match.start()
            if not lexicon.numeric(lexicon.fields.get(kind, kind)):
                missing.append(
                    f"a field for {kind}" if kind not in lexicon.schema else f"a field of numbers for {kind}"
                )
                text.strike(start, match.end())
                continue
            found.append(
                make_constraint(kind, (negate(op) if text.negated(start) else op, value), lexicon, in_minutes=True)
            )
            text.strike(start, match.end())
    kept = [constraint for constraint in found if is_storable(constraint.value)]
    return kept, missing + ["so large a number"] * (len(kept) < len(found))


def _of_range(match: re.Match[str], named: str | None, lexicon: Lexicon) -> tuple[str, str, list[float]] | None:
    """Return the kind, operator and two ends of a range, or None if it is none."""
    (first, low), (second, high) = _quantity(match, "a_", lexicon), _quantity(match, "b_", lexicon)
    kind = second or first or named
    if kind is None or (first and second and first != second):
        return None
    if kind == "time" and first != second:
        high += low // 100 * 100  # 1990-95
        if len(match["b_plain"] or "") != 2 or high < low:
            return None
    if kind == "length" and first is None and match["b_hours"]:
        low *= 60
    return kind, "$between", [min(low, high), max(low, high)]


def _of_single(
    match: re.Match[str], named: str | None, lexicon: Lexicon
) -> tuple[str, str, float | list[float]] | None:
    """Return the kind, operator and value of one number, or None if its kind is unknown."""
    kind, value = _quantity(match, "q_", lexicon)
    kind = kind or (kind_of_comparator(match["op"]) if match["op"] else None) or named
    if kind is None:
        return None
    op = parse_operator(match["op"]) if match["op"] else "$eq" if kind == "time" or named else "~"
    if match["down"] or match["up"]:
        op = "$lte" if match["down"] else "$gte"
    elif (match["op"] == "from" and kind == "time") or (match["op"] == "by" and kind != "time"):
        op = "$eq"
    if op == "~":
        reach = 2 if kind == "time" else value * ABOUT
        return kind, "$between", [value - reach, value + reach]
    return kind, op, value


def _quantity(match: re.Match[str], at: str, lexicon: Lexicon) -> tuple[str | None, float]:
    """Return the kind of a number (None: unknown) and the number; a length is in minutes."""
    groups = match.groupdict()
    if money := groups[at + "money"] or groups[at + "money2"]:
        return "price", float(money)
    if hours := groups[at + "hours"]:
        half = 30 if groups[at + "half"] or groups[at + "half2"] else 0
        return "length", _number(hours.removesuffix(" and a half")) * 60 + half + float(groups[at + "more"] or 0)
    if groups[at + "minutes"]:
        return "length", _number(groups[at + "minutes"])
    if groups[at + "year"]:
        return ("time" if "time" in lexicon.fields else None), float(groups[at + "year"])
    unit = groups[at + "unit"]
    return (find_numeric_field(unit, lexicon) if unit else None), float(groups[at + "plain"])


def _number(words: str) -> float:
    return float(SMALL[words]) if words in SMALL else float(words.replace(",", "."))
