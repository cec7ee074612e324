"""An item's own fields in words: what prompts show, what queries are built from, what explanations may say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prompts.cleaning import harmless
from store import Item
from store.catalog import Field

WINDOW, STEP = 12, 8
TITLE = 48
"""Characters of a title in a search: longer ones take time to write, shorter ones find less."""
WORDS = 32
"""Characters up to which a search says more than the title."""


def facts(item: Item) -> str:
    """The first three of the item's fields on one line, e.g. "1995; Crime, Thriller; Michael Mann".

    Long values are left out: every word here is paid for in every prompt.
    """
    values = []
    for value in item.metadata.values():
        if isinstance(value, list):
            values.append(", ".join(str(v) for v in value[:3]))
        elif not isinstance(value, bool):
            values.append(f"{value:g}" if isinstance(value, float) else str(value))
    return "; ".join([v for v in values if v and len(v) <= 60][:3])


def line(label: int | str, item: Item) -> dict[str, Any]:
    """The item as prompts take it: a label to point at it by, its title, its fields, the first sentence of its text."""
    return {"label": label, "title": item.title, "facts": facts(item), "text": first_sentence(item)}


def lines(history: Sequence[Item], start: int | None = None) -> list[dict[str, Any]]:
    """The history as prompts show it, oldest first, from `start` on or its latest 12 to 19 items.

    All prompts of one person thus begin alike, and the beginning moves only once in STEP events, so that servers find the
    prefix in their cache.
    """
    if start is None:
        start = max(0, (len(history) - WINDOW) // STEP * STEP)
    return [line(i + 1, item) for i, item in enumerate(history) if i >= start]


def descriptive(item: Item, schema: Mapping[str, Field]) -> list[str]:
    """The item's values that tell it from most of the catalog (genre, brand, director), the most general first.

    What holds for over a third of the items describes none of them.
    """
    found: dict[str, int] = {}
    for name, value in item.metadata.items():
        field = schema.get(name)
        if field is None or field.type not in ("str", "list"):
            continue
        for one in value if isinstance(value, list) else [value]:
            count = field.values.get(one, 1) if isinstance(one, str) else field.count
            if one and count <= field.count / 3:
                found[str(one)] = count
    return sorted(found, key=lambda value: -found[value])


def newest(history: Sequence[Item], n: int) -> list[Item]:
    """The latest `n` distinct items of a history (oldest first), the newest first."""
    return list({item.id: item for item in reversed(history)}.values())[:n]


def described(item: Item, schema: Mapping[str, Field]) -> str:
    """The item as one would search for it: its title, cut, and what else tells its kind where there is room."""
    words = harmless(item.title, 200)
    for value in descriptive(item, schema)[:3]:
        value = harmless(value, WORDS)
        if len(words) + len(value) + 2 <= WORDS and value.casefold() not in words.casefold():
            words += f", {value}"
    return cut(words)


def cut(title: str) -> str:
    """As much of a title as a search says of it, whole words."""
    return title if len(title) <= TITLE else title[:TITLE].rsplit(" ", 1)[0]


def first_sentence(item: Item) -> str:
    """The first sentence of the item's text (at most 160 characters), without a title it may open with."""
    # "Heat. A thief." opens with its title; "Murder" does not open with "M", nor "Heat's" with "Heat".
    text = re.sub(rf"\A{re.escape(item.title)}(?![\w'’]|-\w)", "", item.text).lstrip(" .:-")
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    return sentence if len(sentence) <= 160 else sentence[:160].rsplit(" ", 1)[0]


def plain(title: str) -> str:
    """Lower case, words only, a leading or trailing article dropped ("Matrix, The" and "The Matrix" are one title)."""
    words = re.findall(r"\w+", title.casefold())
    if len(words) > 1 and words[-1] in ARTICLES:
        words.pop()
    if len(words) > 1 and words[0] in ARTICLES:
        words.pop(0)
    return " ".join(words)


ARTICLES = frozenset({"the", "a", "an", "la", "le", "les", "el", "il", "der", "die", "das"})
