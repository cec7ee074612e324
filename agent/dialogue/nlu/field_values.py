"""Field values named in a message (genres, languages, people, brands) as conditions: wanted, either-or, or unwanted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.dialogue.constraint_text import worded
from agent.dialogue.events import Constraint
from agent.dialogue.nlu.lexicon import MAKERS, PLAYERS, Lexicon, Value
from agent.dialogue.nlu.message import STRUCK, Text, cue

LONGEST = 5
"""Words of a value that is looked for."""
LAST_NAME = 3
"""Words of a last name: de la Tour."""
_TOLD = re.compile(
    r"\b(?:(?<!how )(?<!what )about|my|our|his|her|their|whole|based on|involving|set (?:in|during)|during|who|story of|"
    r"subtitles?)\s+(?:the |a |an )?$"
)
"""Before these a value tells what a thing is about, not what kind it is."""
_LESS = re.compile(r"\b(?:less|fewer|too(?: much| many)?|not (?:so|too|as|that)(?: much| many)?) $")
"""After these a value is a matter of degree."""
_MAKER = cue(
    r"\b(?:by|from|directed by|written by|made by|director|directors|author|writer|artist|brand|maker)",
    "the|a|any|or|and|no|not",
)
_PLAYER = cue(r"\b(?:with|starring|featuring|stars|actor|actors|actress|cast|have|has)", "the|a|any|or|and|no|not")
_UNKNOWN = re.compile(
    r"\b(?:(?:directed|written|made) by|by|starring|featuring|with)\s+((?:[A-Z][\w.'-]+)(?:\s+[A-Z][\w.'-]+){0,3})"
)


def facets(text: Text, lexicon: Lexicon) -> tuple[list[Constraint], list[str]]:
    """The conditions on values that the message states, each struck out of it; and names after "by" that are not there."""
    spans: list[tuple[int, int, list[Value]]] = []
    words = [(m.group(), m.start(), m.end()) for m in re.finditer(r"[^\W_]+(?:[-.'][^\W_]+)*\.?(?=\W|$)", text.lower)]
    used: set[int] = set()
    for n in range(LONGEST, 0, -1):
        for i in range(len(words) - n + 1):
            start, end = words[i][1], words[i + n - 1][2]
            if used & set(range(i, i + n)) or not re.fullmatch(r"[^,;:!?()]+", text.lower[start:end]):
                continue
            if _TOLD.search(text.lower[:start]) or _LESS.search(text.lower[:start]):
                continue
            values = lexicon.find([word.rstrip(".") for word, _, _ in words[i : i + n]])
            if not values and n <= LAST_NAME:
                values = _by_last_name(" ".join(word for word, _, _ in words[i : i + n]), text, start, lexicon)
            if values:
                spans.append((start, end, values))
                used |= set(range(i, i + n))
    # All are struck before any is judged: "no" reaches the last of a list only across the others.
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
        if STRUCK not in text.lower[match.start(1) : match.end(1)] and lexicon.role((*MAKERS, *PLAYERS)):
            missing.append(match.group(1))
            text.strike(*match.span(1))
    return _joined(found, text, lexicon) + [_anyone(values, unwanted, lexicon) for values, unwanted in people], missing


def _people(values: Sequence[Value], lexicon: Lexicon) -> bool:
    """Whether these are several of one last name, any of whom may be meant."""
    return any(value in lexicon.named(values[0].value.split()[-1]) for value in values)


def _in_role(values: Sequence[Value], text: Text, start: int, lexicon: Lexicon) -> list[Value]:
    """Of the values that a name can mean, those of one field: the one that the words before it speak of, else the likeliest."""
    for cued, roles in ((_MAKER, MAKERS), (_PLAYER, PLAYERS)):
        fields = lexicon.role(roles)
        if text.cued(start, cued) and (fitting := [value for value in values if value.field in fields]):
            return [value for value in fitting if value.field == fitting[0].field]
    return [value for value in values if value.field == values[0].field]


def _by_last_name(word: str, text: Text, start: int, lexicon: Lexicon) -> list[Value]:
    """The people of this last name, where the words before it, or its capital, say that it is a name."""
    # After another capital it is a part of a longer name, which is not in the catalog.
    capital = (
        text.original[start].isupper()
        and bool(text.original[:start].strip())
        and not text.original.isupper()
        and not re.search(r"[A-Z][\w.'-]*\s+$", text.original[:start])
    )
    alone = not text.lower[:start].strip() and len(text.lower.strip(" .?!")) == len(word)
    if len(word) < 3 or not (capital or alone or text.cued(start, _MAKER) or text.cued(start, _PLAYER)):
        return []
    values = lexicon.named(word)
    return values if len({value.value for value in values}) <= 4 else []


def _anyone(values: Sequence[Value], unwanted: bool, lexicon: Lexicon) -> Constraint:
    if len(values) == 1:
        return condition(values[0], unwanted, lexicon)
    names = [value.value for value in values]
    op = "$nin" if unwanted else "$in"
    return Constraint(values[0].field, op, names, worded(values[0].field, op, names))


def condition(value: Value, unwanted: bool, lexicon: Lexicon) -> Constraint:
    """The condition that an item has this value, or has it not."""
    listed = lexicon.schema[value.field].type == "list"
    op = ("$not_contains" if listed else "$ne") if unwanted else ("$contains" if listed else "$eq")
    return Constraint(value.field, op, value.value, worded(value.field, op, value.value))


def _joined(found: Sequence[tuple[Value, bool, int]], text: Text, lexicon: Lexicon) -> list[Constraint]:
    """One condition a value; wanted values of a field that are joined by "or", or that no item could have at once, are any of."""
    conditions = []
    fields = dict.fromkeys(value.field for value, unwanted, _ in found if not unwanted)
    for name in fields:
        wanted = [(value, start) for value, unwanted, start in found if not unwanted and value.field == name]
        values = list(dict.fromkeys(value.value for value, _ in wanted))
        between = text.lower[wanted[0][1] : wanted[-1][1]]
        either = re.search(r"\b(?:or|either)\b", between) or lexicon.schema[name].type != "list"
        if len(values) > 1 and either:
            conditions.append(Constraint(name, "$in", values, worded(name, "$in", values)))
        else:
            conditions += [condition(one, False, lexicon) for one in {v.value: v for v, _ in wanted}.values()]
    return conditions + [condition(value, True, lexicon) for value, unwanted, _ in found if unwanted]
