"""Parse field values in a message (genres, languages, people, brands) as constraints: wanted, either-or, or unwanted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.dialogue.constraint_text import describe_constraint
from agent.dialogue.events import Constraint
from agent.dialogue.nlu.lexicon import MAKERS, PLAYERS, Lexicon, Value
from agent.dialogue.nlu.message import STRUCK, Text, cue

LONGEST = 5
"""Most words of a value."""
LAST_NAME = 3
"""Most words of a last name: de la Tour."""
_ABOUT = re.compile(
    r"\b(?:(?<!how )(?<!what )about|my|our|his|her|their|whole|based on|involving|set (?:in|during)|during|who|story of|"
    r"subtitles?)\s+(?:the |a |an )?$"
)
"""After these a value is the subject of an item, not its kind."""
_LESS = re.compile(r"\b(?:less|fewer|too(?: much| many)?|not (?:so|too|as|that)(?: much| many)?) $")
"""After these a value is a matter of degree, not a condition."""
_MAKER = cue(
    r"\b(?:by|from|directed by|written by|made by|director|directors|author|writer|artist|brand|maker)",
    "the|a|any|or|and|no|not",
)
_PLAYER = cue(r"\b(?:with|starring|featuring|stars|actor|actors|actress|cast|have|has)", "the|a|any|or|and|no|not")
_UNKNOWN = re.compile(
    r"\b(?:(?:directed|written|made) by|by|starring|featuring|with)\s+((?:[A-Z][\w.'-]+)(?:\s+[A-Z][\w.'-]+){0,3})"
)


def parse_field_values(text: Text, lexicon: Lexicon) -> tuple[list[Constraint], list[str]]:
    """Return the constraints on values that the message states, each struck out, and names after "by" that the catalog lacks."""
    spans: list[tuple[int, int, list[Value]]] = []
    words = [(m.group(), m.start(), m.end()) for m in re.finditer(r"[^\W_]+(?:[-.'][^\W_]+)*\.?(?=\W|$)", text.lower)]
    used: set[int] = set()
    for n in range(LONGEST, 0, -1):
        for i in range(len(words) - n + 1):
            start, end = words[i][1], words[i + n - 1][2]
            if used & set(range(i, i + n)) or not re.fullmatch(r"[^,;:!?()]+", text.lower[start:end]):
                continue
            if _ABOUT.search(text.lower[:start]) or _LESS.search(text.lower[:start]):
                continue
            values = lexicon.find([word.rstrip(".") for word, _, _ in words[i : i + n]])
            if not values and n <= LAST_NAME:
                values = _by_last_name(" ".join(word for word, _, _ in words[i : i + n]), text, start, lexicon)
            if values:
                spans.append((start, end, values))
                used |= set(range(i, i + n))
    # All are struck out before any is judged: "no" applies to the last of a list only across the others.
    for start, end, _ in spans:
        text.strike(start, end)
    found: list[tuple[Value, bool, int]] = []
    people: list[tuple[list[Value], bool]] = []
    for start, _, values in sorted(spans, key=lambda span: span[0]):
        values = _in_role(values, text, start, lexicon)
        if len({value.value for value in values}) == 1 or not _people(values, lexicon):
            found.append((values[0], text.negated(start), start))
        else:
            people.append((values, text.negated(start)))
    missing = []
    for match in _UNKNOWN.finditer(text.original):
        if STRUCK not in text.lower[match.start(1) : match.end(1)] and lexicon.fields_of_role((*MAKERS, *PLAYERS)):
            missing.append(match.group(1))
            text.strike(*match.span(1))
    return _combine(found, text, lexicon) + [_any_of(values, unwanted, lexicon) for values, unwanted in people], missing


def _people(values: Sequence[Value], lexicon: Lexicon) -> bool:
    """Return whether these are several people of one last name, any of whom may be meant."""
    return any(value in lexicon.find_by_last_name(values[0].value.split()[-1]) for value in values)


def _in_role(values: Sequence[Value], text: Text, start: int, lexicon: Lexicon) -> list[Value]:
    """Return the values of one field: the one that the words before them name ("by", "starring"), else the most frequent."""
    for cued, roles in ((_MAKER, MAKERS), (_PLAYER, PLAYERS)):
        fields = lexicon.fields_of_role(roles)
        if text.cued(start, cued) and (fitting := [value for value in values if value.field in fields]):
            return [value for value in fitting if value.field == fitting[0].field]
    return [value for value in values if value.field == values[0].field]


def _by_last_name(word: str, text: Text, start: int, lexicon: Lexicon) -> list[Value]:
    """Return the people of this last name, if the words before it or its capital mark it as a name."""
    # After another capitalised word it is part of a longer name, which the catalog does not have.
    capital = (
        text.original[start].isupper()
        and bool(text.original[:start].strip())
        and not text.original.isupper()
        and not re.search(r"[A-Z][\w.'-]*\s+$", text.original[:start])
    )
    alone = not text.lower[:start].strip() and len(text.lower.strip(" .?!")) == len(word)
    if len(word) < 3 or not (capital or alone or text.cued(start, _MAKER) or text.cued(start, _PLAYER)):
        return []
    values = lexicon.find_by_last_name(word)
    return values if len({value.value for value in values}) <= 4 else []


def _any_of(values: Sequence[Value], unwanted: bool, lexicon: Lexicon) -> Constraint:
    if len(values) == 1:
        return value_constraint(values[0], unwanted, lexicon)
    names = [value.value for value in values]
    op = "$nin" if unwanted else "$in"
    return Constraint(values[0].field, op, names, describe_constraint(values[0].field, op, names))


def value_constraint(value: Value, unwanted: bool, lexicon: Lexicon) -> Constraint:
    """Return the constraint that an item has this value, or does not have it."""
    listed = lexicon.schema[value.field].type == "list"
    op = ("$not_contains" if listed else "$ne") if unwanted else ("$contains" if listed else "$eq")
    return Constraint(value.field, op, value.value, describe_constraint(value.field, op, value.value))


def _combine(found: Sequence[tuple[Value, bool, int]], text: Text, lexicon: Lexicon) -> list[Constraint]:
    """Return one constraint for each value. Wanted values of a field become one "any of" if joined by "or" or exclusive."""
    conditions = []
    fields = dict.fromkeys(value.field for value, unwanted, _ in found if not unwanted)
    for name in fields:
        wanted = [(value, start) for value, unwanted, start in found if not unwanted and value.field == name]
        values = list(dict.fromkeys(value.value for value, _ in wanted))
        between = text.lower[wanted[0][1] : wanted[-1][1]]
        either = re.search(r"\b(?:or|either)\b", between) or lexicon.schema[name].type != "list"
        if len(values) > 1 and either:
            conditions.append(Constraint(name, "$in", values, describe_constraint(name, "$in", values)))
        else:
            conditions += [value_constraint(one, False, lexicon) for one in {v.value: v for v, _ in wanted}.values()]
    return conditions + [value_constraint(value, True, lexicon) for value, unwanted, _ in found if unwanted]
