"""The text of an item, made from its fields, for prompts, queries and explanations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prompts.cleaning import harmless
from store import Item
from store.catalog import Field

WINDOW, STEP = 12, 8
"""Prompts show the latest WINDOW to WINDOW + STEP - 1 items of a history. The first one changes every STEP events."""
TITLE = 48
"""Maximum length of a title in a query of a trained model: longer ones take time to write, shorter ones find less."""
WORDS = 32
"""Values are added to a title in such a query up to this length."""
ARTICLES = frozenset({"the", "a", "an", "la", "le", "les", "el", "il", "der", "die", "das"})


def field_summary(item: Item) -> str:
    """Return the item's first three fields on one line, such as "1995; Crime, Thriller; Michael Mann".

    Long values are left out, because every word costs tokens in every prompt.
    """
    values = []
    for value in item.metadata.values():
        if isinstance(value, list):
            values.append(", ".join(str(v) for v in value[:3]))
        elif not isinstance(value, bool):
            values.append(f"{value:g}" if isinstance(value, float) else str(value))
    return "; ".join([v for v in values if v and len(v) <= 60][:3])


def prompt_line(label: int | str, item: Item) -> dict[str, Any]:
    """Return an item for a prompt: its label, title, fields (`facts`) and the first sentence of its text."""
    return {"label": label, "title": item.title, "facts": field_summary(item), "text": first_sentence(item)}


def prompt_lines(history: Sequence[Item], start: int | None = None) -> list[dict[str, Any]]:
    """Return a history (oldest first) for a prompt: from index `start` on, or its latest 12 to 19 items.

    All prompts of a user thus begin with the same text, which changes only every STEP events, so that servers find it in their
    prefix cache.
    """
    if start is None:
        start = max(0, (len(history) - WINDOW) // STEP * STEP)
    return [prompt_line(i + 1, item) for i, item in enumerate(history) if i >= start]


def descriptive_values(item: Item, schema: Mapping[str, Field]) -> list[str]:
    """Return the values that distinguish the item from most others (genre, brand, director), the most frequent first.

    Values that over a third of the items have are left out.
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


def latest_items(history: Sequence[Item], n: int) -> list[Item]:
    """Return the latest `n` distinct items of a history (oldest first), the newest first."""
    return list({item.id: item for item in reversed(history)}.values())[:n]


def item_query(item: Item, schema: Mapping[str, Field]) -> str:
    """Return a query for the item: its shortened title, and descriptive values up to WORDS characters."""
    words = harmless(item.title, 200)
    for value in descriptive_values(item, schema)[:3]:
        value = harmless(value, WORDS)
        if len(words) + len(value) + 2 <= WORDS and value.casefold() not in words.casefold():
            words += f", {value}"
    return truncate_title(words)


def truncate_title(title: str) -> str:
    """Return the title, shortened to TITLE characters at the end of a word."""
    return title if len(title) <= TITLE else title[:TITLE].rsplit(" ", 1)[0]


def first_sentence(item: Item) -> str:
    """Return the first sentence of the item's text (at most 160 characters), without the title if the text begins with it."""
    # "Heat. A thief." begins with its title. "Murder" does not begin with the title "M", nor "Heat's" with "Heat".
    text = re.sub(rf"\A{re.escape(item.title)}(?![\w'’]|-\w)", "", item.text).lstrip(" .:-")
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    return sentence if len(sentence) <= 160 else sentence[:160].rsplit(" ", 1)[0]


def normalize_title(title: str) -> str:
    """Return a title in lower case, without punctuation and a leading or trailing article.

    "Matrix, The" and "The Matrix" become the same text.
    """
    words = re.findall(r"\w+", title.casefold())
    if len(words) > 1 and words[-1] in ARTICLES:
        words.pop()
    if len(words) > 1 and words[0] in ARTICLES:
        words.pop(0)
    return " ".join(words)
