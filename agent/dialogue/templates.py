"""Answers in plain words, made from the catalog's fields and the trace alone: no model, nothing that is not there."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agent.dialogue.events import Constraint, Understood
from agent.dialogue.nlu.lexicon import MAKERS, PLAYERS, Lexicon
from agent.dialogue.state import State
from agent.item_text import first_sentence
from store import Catalog, Item

CHAT = {
    "greeting": "Hello! Tell me what you feel like: a kind, a time, a length, or something to be like or unlike.",
    "thanks": "You are welcome. Say “more” for others, or what should be different.",
    "bye": "Goodbye!",
    "who": "I am Evoke, a recommender. I know this catalog and what you tell me, and I say why I show what I show.",
    "how": "All is well, thank you. What do you feel like?",
    "no": "All right. Say what should be different, or “more” for others.",
}
_ASKED = {
    "time": r"\bwhen\b|\bhow old\b|\bwhat year\b|\bwhich year\b|\byear\b|\brelease",
    "length": r"\bhow long\b|\blength\b|\bduration\b|\brunning time\b|\bruntime\b|\bminutes\b|\bhours\b",
    "price": r"\bhow much\b|\bcosts?\b|\bprice\b|\bexpensive\b|\bcheap",
    "rating": r"\bhow good\b|\brating\b|\brated\b|\bscore\b",
    "pages": r"\bhow many pages\b|\bpages\b",
}
_SUPERLATIVE = {
    "time": (r"\b(?:newest|latest|most recent|newer|more recent)\b", r"\b(?:oldest|earliest|older|earlier)\b"),
    "length": (r"\b(?:longest|longer)\b", r"\b(?:shortest|shorter|quickest|quicker)\b"),
    "price": (r"\b(?:most expensive|priciest)\b", r"\b(?:cheapest|cheaper)\b"),
    "rating": (r"\b(?:best|highest|better|higher)[ -](?:rated|ranked)\b", r"\b(?:worst|lowest|lower)[ -]rated\b"),
}


def about(message: str, item: Item, lexicon: Lexicon) -> str:
    """The answer to a question about an item, from its fields; where they do not tell, that is said."""
    lower = message.lower()
    fields = _fields_asked(lower, lexicon)
    if fields:
        said = [f"{name.replace('_', ' ')}: {shown(item.metadata[name])}" for name in fields if name in item.metadata]
        lacking = [name for name in fields if name not in item.metadata]
        answer = f"{titled(item)}: {'; '.join(said)}." if said else ""
        return (answer + "".join(f" The catalog does not tell its {name}." for name in lacking)).strip()
    values = _value_asked(lower, item, lexicon)
    if values is not None:
        return values
    if re.search(
        r"\babout\b|\bplot\b|\bstory\b|\bdescribe\b|\btell me\b|\bwhat (?:is|'s)\b|\bwhat's\b|\bsummary\b|\bhappens\b",
        lower,
    ):
        told = "; ".join(f"{n.replace('_', ' ')}: {shown(v)}" for n, v in list(item.metadata.items())[:5])
        return f"{titled(item)}: {item.text or 'the catalog has no description.'}" + (f" ({told})" if told else "")
    known = ", ".join(name.replace("_", " ") for name in item.metadata) or "nothing more"
    return f"The catalog does not tell that of {titled(item)}. It knows: {known}."


def _fields_asked(lower: str, lexicon: Lexicon) -> list[str]:
    found = [
        lexicon.fields[kind] for kind, words in _ASKED.items() if kind in lexicon.fields and re.search(words, lower)
    ]
    if re.search(
        r"\bwho (?:directed|made|wrote|created|is (?:it|this|that) by|composed|published)\b|\bby whom\b|\bwho(?:'s| is) behind\b",
        lower,
    ):
        found += sorted(lexicon.role(MAKERS))
    if re.search(
        r"\bwho (?:is|was|are|'s)? ?(?:in|stars?|plays|acts|starring|playing|performs)\b|\bwho's in\b|\bactors?\b",
        lower,
    ):
        found += sorted(lexicon.role(PLAYERS))
    if re.search(r"\bwhere\b", lower):
        found += [name for name in lexicon.schema if re.search("country|place|location|origin", name)]
    words = set(re.findall(r"\w+", lower))
    for name in lexicon.schema:
        if {name.lower(), name.lower().rstrip("s")} & words:
            found.append(name)
    if re.search(r"\b(?:what|which) (?:kind|sort|type)\b", lower):
        found += [name for name in lexicon.schema if re.search("genre|categor|kind|type", name)]
    return list(dict.fromkeys(found))


def _value_asked(lower: str, item: Item, lexicon: Lexicon) -> str | None:
    """Yes or no to "is it in French?", "is it a comedy?"."""
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", lower)
    for n in (4, 3, 2, 1):
        for i in range(len(words) - n + 1):
            for value in lexicon.find(words[i : i + n])[:1]:
                held = item.metadata.get(value.field)
                has = value.value in held if isinstance(held, list) else value.value == held
                name = value.field.replace("_", " ")
                return f"{'Yes' if has else 'No'}. {titled(item)}: {name} {shown(held) if held else 'not told'}."
    return None


def compared(message: str, items: Sequence[Item], lexicon: Lexicon) -> str:
    """Two items (or more, where one quality is asked for) side by side: what they share, and where they differ."""
    lower = message.lower()
    for kind, patterns in _SUPERLATIVE.items():
        name = lexicon.fields.get(kind)
        for pattern, sign in zip(patterns, (-1, 1), strict=True):
            having = [(v, i.title) for i in items if isinstance(v := i.metadata.get(name or ""), int | float)]
            if name and having and re.search(pattern, lower):
                ranked = sorted(having, key=lambda entry: sign * entry[0])
                listed = ", ".join(f"{title} {shown(value)}" for value, title in ranked)
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
                same.append(f"{name.replace('_', ' ')} {shown(both)}")
            if a_only := [v for v in a if v not in b]:
                b_only = [v for v in b if v not in a]
                differ.append(f"{name.replace('_', ' ')}: {shown(a_only)} / {shown(b_only) or 'none of its own'}")
        elif a == b:
            same.append(f"{name.replace('_', ' ')} {shown(a)}")
        else:
            differ.append(f"{name.replace('_', ' ')}: {shown(a)} / {shown(b)}")
    lines = [f"{titled(one)} and {titled(other)}."]
    lines.append(f"Both: {'; '.join(same)}." if same else "They share no field.")
    if differ:
        lines.append(f"They differ in {'; '.join(differ)}.")
    lines += [f"{item.title}: {first_sentence(item)}" for item in (one, other) if item.text]
    return "\n".join(lines)


def why(item: Item, row: Mapping[str, Any] | None, evidence: Sequence[Item], fulfilled: Sequence[Constraint]) -> str:
    """Why an item was shown: what found it, what speaks for it, and which conditions it fulfils. `row`: its channels and ranks."""
    if row is None:
        return f"I have not shown {titled(item)} in this conversation, so there is no reason to give."
    told = {
        "queries": "its description is close to what you asked for",
        "named": "the model named it",
        "dense": "it reads like what you liked",
        "collaborative": "people who chose what you liked chose it too",
        "lexical": "it shares words with what you said",
        "popular": "many chose it",
        "base": "all that your history says, weighed together, puts it here",
    }
    channels = sorted(row["channels"].items(), key=lambda entry: entry[1])
    found = [f"{told.get(channel, channel)} (place {rank} there)" for channel, rank in channels]
    lines = [f"{titled(item)} was number {row['rank']}, score {row['score']:.2f}."]
    lines.append(f"It was found because {'; '.join(found)}." if found else "Nothing but your conditions speaks for it.")
    if evidence:
        lines.append(f"What speaks for it: {', '.join(e.title for e in evidence)}.")
    if fulfilled:
        lines.append(f"It fulfils what you asked for: {', '.join(c.words for c in fulfilled)}.")
    if row["explanation"]:
        lines.append(row["explanation"])
    return " ".join(lines)


def question(lexicon: Lexicon) -> tuple[str, str] | None:
    """The field whose answer leaves the fewest items, and the question about it; None where no field sorts items into kinds.

    An answer v is as likely as v is frequent, so a field leaves sum over v of p(v) share(v) of the items; fields of more than
    KINDS_MOST values name what is an item's own, and nobody could answer.
    """
    total = len(lexicon.snapshot) or 1
    best: tuple[float, str, list[str]] | None = None
    for name, counts in lexicon.values.strings.items():
        if not lexicon.textual(name) or not 2 <= len(counts) <= KINDS_MOST or lexicon.schema[name].count < total / 2:
            continue
        left = sum(n * n for n in counts.values()) / (sum(counts.values()) * total)
        if best is None or left < best[0]:
            best = left, name, list(counts)[:5]
    if best is None:
        return None
    name = best[1].replace("_", " ")
    return best[1], f"Is there a {singular(name)} you feel like: {', '.join(best[2][:-1])} or {best[2][-1]}?"


KINDS_MOST = 40
"""Values of a field up to which people can be asked about it."""


def relaxing(
    constraints: Sequence[Constraint], catalog: Catalog, excluded: Collection[str]
) -> tuple[Constraint, int] | None:
    """The constraint whose removal frees the most items, and how many; None where no single one frees any."""
    freed: list[tuple[int, Constraint]] = []
    for constraint in constraints:
        others = [c.where for c in constraints if c != constraint]
        passing = catalog.matching({"$and": others} if others else None)
        snapshot = catalog.snapshot()
        passing = {id for id in snapshot.ids if snapshot.shows(id)} if passing is None else passing
        freed.append((len(passing - set(excluded)), constraint))
    n, best = max(freed, key=lambda entry: entry[0], default=(0, None))
    return (best, n) if best and n else None


def intro(n: int, state: State, understood: Understood, titles: Mapping[str, str]) -> str:
    """What stands above a list: how many, like what, under which conditions, and what could not be taken as one."""
    if understood.intent == "feedback" and n:
        head = "Noted. Instead" if understood.dislikes else "Noted. Next"
    else:
        head = "Here is one" if n == 1 else f"Here are {n}"
    like = f" like {_and([titles.get(s, s) for s in state.seeds[-2:]])}" if state.seeds else ""
    under = f" ({', '.join(c.words for c in state.constraints)})" if state.constraints else ""
    note = f" Note: {'; '.join(understood.dropped)}." if understood.dropped else ""
    return f"{head}{like}{under}:{note}"


def titled(item: Item) -> str:
    """The title, with the year where there is one."""
    year = item.metadata.get("year")
    return f"{item.title} ({shown(year)})" if year else item.title


def shown(value: Any) -> str:
    """A field's value for people."""
    if isinstance(value, list):
        return ", ".join(shown(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else ""
    return "not told" if value is None else str(value)


def singular(name: str) -> str:
    """A field's name for one of its values: genres, genre."""
    return (
        name[:-3] + "y"
        if name.endswith("ies")
        else name[:-1]
        if name.endswith("s") and not name.endswith("ss")
        else name
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
