"""Answers from templates, filled from the catalog's fields and the state alone: no model, so nothing is invented."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agent.dialogue.events import Constraint, Interpretation
from agent.dialogue.nlu.lexicon import MAKERS, PLAYERS, Lexicon
from agent.dialogue.state import State
from agent.item_text import first_sentence
from store import Catalog, Item

CHAT = {
    "greeting": "Hello! Tell me what you feel like: a kind, a time, a length, or something it should or should not resemble.",
    "thanks": "You are welcome. Say “more” for others, or what should be different.",
    "bye": "Goodbye!",
    "who": "I am Evoke, a recommender. I know this catalog and what you tell me, and I can explain each item I show.",
    "how": "All is well, thank you. What do you feel like?",
    "no": "All right. Say what should be different, or “more” for others.",
}
_FIELD_QUESTIONS = {
    "time": r"\bwhen\b|\bhow old\b|\bwhat year\b|\bwhich year\b|\byear\b|\brelease",
    "length": r"\bhow long\b|\blength\b|\bduration\b|\brunning time\b|\bruntime\b|\bminutes\b|\bhours\b",
    "price": r"\bhow much\b|\bcosts?\b|\bprice\b|\bexpensive\b|\bcheap",
    "rating": r"\bhow good\b|\brating\b|\brated\b|\bscore\b",
    "pages": r"\bhow many pages\b|\bpages\b",
}
MAX_KINDS = 40
"""Most values of a field that a question asks about."""
_SUPERLATIVE = {
    "time": (r"\b(?:newest|latest|most recent|newer|more recent)\b", r"\b(?:oldest|earliest|older|earlier)\b"),
    "length": (r"\b(?:longest|longer)\b", r"\b(?:shortest|shorter|quickest|quicker)\b"),
    "price": (r"\b(?:most expensive|priciest)\b", r"\b(?:cheapest|cheaper)\b"),
    "rating": (r"\b(?:best|highest|better|higher)[ -](?:rated|ranked)\b", r"\b(?:worst|lowest|lower)[ -]rated\b"),
}


def describe(message: str, item: Item, lexicon: Lexicon) -> str:
    """Return the answer to a question about an item, from its fields; a field that it lacks is named."""
    lower = message.lower()
    fields = _find_asked_fields(lower, lexicon)
    if fields:
        held = [
            f"{name.replace('_', ' ')}: {format_value(item.metadata[name])}" for name in fields if name in item.metadata
        ]
        lacking = [name for name in fields if name not in item.metadata]
        answer = f"{title_with_year(item)}: {'; '.join(held)}." if held else ""
        return (answer + "".join(f" The catalog does not list its {name}." for name in lacking)).strip()
    values = _answer_yes_or_no(lower, item, lexicon)
    if values is not None:
        return values
    if re.search(
        r"\babout\b|\bplot\b|\bstory\b|\bdescribe\b|\btell me\b|\bwhat (?:is|'s)\b|\bwhat's\b|\bsummary\b|\bhappens\b",
        lower,
    ):
        listed = "; ".join(f"{n.replace('_', ' ')}: {format_value(v)}" for n, v in list(item.metadata.items())[:5])
        return f"{title_with_year(item)}: {item.text or 'the catalog has no description.'}" + (
            f" ({listed})" if listed else ""
        )
    known = ", ".join(name.replace("_", " ") for name in item.metadata) or "nothing more"
    return f"The catalog does not list that for {title_with_year(item)}. It has: {known}."


def _find_asked_fields(lower: str, lexicon: Lexicon) -> list[str]:
    """Return the fields that a question, in lower case, asks for."""
    found = [
        lexicon.fields[kind]
        for kind, words in _FIELD_QUESTIONS.items()
        if kind in lexicon.fields and re.search(words, lower)
    ]
    if re.search(
        r"\bwho (?:directed|made|wrote|created|is (?:it|this|that) by|composed|published)\b|\bby whom\b|\bwho(?:'s| is) behind\b",
        lower,
    ):
        found += sorted(lexicon.fields_of_role(MAKERS))
    if re.search(
        r"\bwho (?:is|was|are|'s)? ?(?:in|stars?|plays|acts|starring|playing|performs)\b|\bwho's in\b|\bactors?\b",
        lower,
    ):
        found += sorted(lexicon.fields_of_role(PLAYERS))
    if re.search(r"\bwhere\b", lower):
        found += [name for name in lexicon.schema if re.search("country|place|location|origin", name)]
    words = set(re.findall(r"\w+", lower))
    for name in lexicon.schema:
        if {name.lower(), name.lower().rstrip("s")} & words:
            found.append(name)
    if re.search(r"\b(?:what|which) (?:kind|sort|type)\b", lower):
        found += [name for name in lexicon.schema if re.search("genre|categor|kind|type", name)]
    return list(dict.fromkeys(found))


def _answer_yes_or_no(lower: str, item: Item, lexicon: Lexicon) -> str | None:
    """Return the answer to "is it in French?" or "is it a comedy?", or None if the question names no field value."""
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", lower)
    for n in (4, 3, 2, 1):
        for i in range(len(words) - n + 1):
            for value in lexicon.find(words[i : i + n])[:1]:
                held = item.metadata.get(value.field)
                has = value.value in held if isinstance(held, list) else value.value == held
                name = value.field.replace("_", " ")
                return f"{'Yes' if has else 'No'}. {title_with_year(item)}: {name} {format_value(held) if held else 'unknown'}."
    return None


def compare(message: str, items: Sequence[Item], lexicon: Lexicon) -> str:
    """Return a comparison of the first two items, or of all by one field if the message asks for "the newest" or the like."""
    lower = message.lower()
    for kind, patterns in _SUPERLATIVE.items():
        name = lexicon.fields.get(kind)
        for pattern, sign in zip(patterns, (-1, 1), strict=True):
            having = [(v, i.title) for i in items if isinstance(v := i.metadata.get(name or ""), int | float)]
            if name and having and re.search(pattern, lower):
                ranked = sorted(having, key=lambda entry: sign * entry[0])
                listed = ", ".join(f"{title} {format_value(value)}" for value, title in ranked)
                return f"{ranked[0][1]}. By {name.replace('_', ' ')}: {listed}."
    if len(items) < 2:
        return "Name two items to compare, or say their numbers: “compare 1 and 2”."
    one, other = items[0], items[1]
    same, differ = [], []
    for name in lexicon.schema:
        a, b = one.metadata.get(name), other.metadata.get(name)
        if a is None and b is None:
            continue
        if isinstance(a, list) and isinstance(b, list):
            if both := [v for v in a if v in b]:
                same.append(f"{name.replace('_', ' ')} {format_value(both)}")
            if a_only := [v for v in a if v not in b]:
                b_only = [v for v in b if v not in a]
                differ.append(
                    f"{name.replace('_', ' ')}: {format_value(a_only)} / {format_value(b_only) or 'nothing else'}"
                )
        elif a == b:
            same.append(f"{name.replace('_', ' ')} {format_value(a)}")
        else:
            differ.append(f"{name.replace('_', ' ')}: {format_value(a)} / {format_value(b)}")
    lines = [f"{title_with_year(one)} and {title_with_year(other)}."]
    lines.append(f"Both: {'; '.join(same)}." if same else "They share no field.")
    if differ:
        lines.append(f"They differ in {'; '.join(differ)}.")
    lines += [f"{item.title}: {first_sentence(item)}" for item in (one, other) if item.text]
    return "\n".join(lines)


def explain_why(
    item: Item, reason: Mapping[str, Any] | None, evidence: Sequence[Item], fulfilled: Sequence[Constraint]
) -> str:
    """Return why an item was shown.

    Args:
        item: the item.
        reason: its rank, score, channels and explanation as the state has them, or None if it was not shown.
        evidence: items of the history that support it.
        fulfilled: the active constraints that it fulfils.
    """
    if reason is None:
        return f"I have not shown {title_with_year(item)} in this conversation, so there is no reason to give."
    by_channel = {
        "queries": "its description is close to what you asked for",
        "named": "the model named it",
        "dense": "its description is close to what you liked",
        "collaborative": "people who chose what you liked chose it too",
        "lexical": "it shares words with what you said",
        "popular": "many chose it",
        "base": "your whole history, weighed together, ranks it here",
    }
    channels = sorted(reason["channels"].items(), key=lambda entry: entry[1])
    found = [f"{by_channel.get(channel, channel)} (place {rank} there)" for channel, rank in channels]
    lines = [f"{title_with_year(item)} was number {reason['rank']}, score {reason['score']:.2f}."]
    lines.append(f"It was found because {'; '.join(found)}." if found else "It was found by your constraints alone.")
    if evidence:
        lines.append(f"Supported by: {', '.join(e.title for e in evidence)}.")
    if fulfilled:
        lines.append(f"It fulfils what you asked for: {', '.join(c.words for c in fulfilled)}.")
    if reason["explanation"]:
        lines.append(reason["explanation"])
    return " ".join(lines)


def choose_question(lexicon: Lexicon) -> tuple[str, str] | None:
    """Return the field whose answer is expected to leave the fewest items, and the question; None if no field is suitable.

    An answer v is taken to be as likely as v is frequent, so a field leaves the share sum over v of p(v) share(v) of the
    items. Fields of more than MAX_KINDS values are left out: they do not sort items into kinds.
    """
    total = len(lexicon.snapshot) or 1
    best: tuple[float, str, list[str]] | None = None
    for name, counts in lexicon.values.strings.items():
        if not lexicon.textual(name) or not 2 <= len(counts) <= MAX_KINDS or lexicon.schema[name].count < total / 2:
            continue
        left = sum(n * n for n in counts.values()) / (sum(counts.values()) * total)
        if best is None or left < best[0]:
            best = left, name, list(counts)[:5]
    if best is None:
        return None
    name = best[1].replace("_", " ")
    return best[1], f"Is there a {_singular(name)} you feel like: {', '.join(best[2][:-1])} or {best[2][-1]}?"


def find_constraint_to_drop(
    constraints: Sequence[Constraint], catalog: Catalog, excluded: Collection[str]
) -> tuple[Constraint, int] | None:
    """Return the constraint whose removal frees the most items that are not excluded, and their number; None if none does."""
    freed: list[tuple[int, Constraint]] = []
    for constraint in constraints:
        others = [c.where for c in constraints if c != constraint]
        passing = catalog.matching({"$and": others} if others else None)
        snapshot = catalog.snapshot()
        passing = {id for id in snapshot.ids if snapshot.shows(id)} if passing is None else passing
        freed.append((len(passing - set(excluded)), constraint))
    n, best = max(freed, key=lambda entry: entry[0], default=(0, None))
    return (best, n) if best and n else None


def introduce(n: int, state: State, understood: Interpretation, titles: Mapping[str, str]) -> str:
    """Return the line above a list: how many items, similar to which, under which constraints, and what was not applied.

    Args:
        n: the number of items.
        state: the state of the conversation.
        understood: the interpretation of the message.
        titles: the titles of the seeds, by id.
    """
    if understood.intent == "feedback" and n:
        head = "Noted. Instead" if understood.dislikes else "Noted. Next"
    else:
        head = "Here is one" if n == 1 else f"Here are {n}"
    like = f" like {_and([titles.get(s, s) for s in state.seeds[-2:]])}" if state.seeds else ""
    under = f" ({', '.join(c.words for c in state.constraints)})" if state.constraints else ""
    note = f" Note: {'; '.join(understood.dropped)}." if understood.dropped else ""
    return f"{head}{like}{under}:{note}"


def title_with_year(item: Item) -> str:
    """Return the title, followed by the year if the item has one."""
    year = item.metadata.get("year")
    return f"{item.title} ({format_value(year)})" if year else item.title


def format_value(value: Any) -> str:
    """Return a field's value as people read it."""
    if isinstance(value, list):
        return ", ".join(format_value(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else ""
    return "unknown" if value is None else str(value)


def _singular(name: str) -> str:
    """Return the singular of a field's name: genre for genres."""
    return (
        name[:-3] + "y"
        if name.endswith("ies")
        else name[:-1]
        if name.endswith("s") and not name.endswith("ss")
        else name
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
