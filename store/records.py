"""The records of all modules: items, events and ranked hits, and the checks that they can be stored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["view", "like", "dislike", "seen", "hide"]
KINDS: frozenset[str] = frozenset(get_args(Kind))

# Prefixes of field names that Chroma or Evoke uses itself.
_RESERVED = ("$", "#", "chroma:", "evoke:")

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar | list[str] | list[int] | list[float]]


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be recommended. `hidden` items are stored but never returned."""

    id: str
    title: str
    text: str = ""
    metadata: Metadata = field(default_factory=dict)
    hidden: bool = False

    @property
    def document(self) -> str:
        """Return the text to embed: the title, then the text, unless that begins with the title."""
        if not self.text or self.text == self.title:
            return self.title
        return self.text if self.text.startswith(self.title) else f"{self.title}. {self.text}"

    @property
    def content_hash(self) -> str:
        """Return a hash of everything but the id: an item with an equal hash need not be indexed again."""
        content = json.dumps([self.title, self.text, dict(self.metadata), self.hidden], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Event:
    """What a user did with an item. Its identity is (user, item, timestamp, kind): adding it twice adds nothing.

    `timestamp` is any number that orders one user's events (Unix seconds if it is a time).
    `split` names the part of a benchmark that the event belongs to, if any.
    """

    user: str
    item: str
    timestamp: float
    rating: float | None = None
    kind: Kind | None = None
    split: str | None = None


class Hit(NamedTuple):
    """An entry of a ranked list. Higher scores are better; they are comparable only within the list."""

    id: str
    score: float


def item_fault(item: Item) -> str | None:
    """Return why the item cannot be stored in a catalog, or None. No value is ever converted to another type."""
    for name, text in (("id", item.id), ("title", item.title), ("text", item.text)):
        if problem := text_fault(text):
            return f'"{name}" {problem}'
    if not item.id:
        return '"id" is empty'
    if not isinstance(item.hidden, bool):
        return '"hidden" is not true or false'
    if not isinstance(item.metadata, Mapping):
        return '"metadata" is not an object'
    for name, value in item.metadata.items():
        if problem := _field_fault(name, value):
            return f'metadata "{name}" {problem}'
    return None


def event_fault(event: Event) -> str | None:
    """Return why the event cannot be stored in a history, or None."""
    for name, value in (("user", event.user), ("item", event.item)):
        problem = text_fault(value)
        if problem or not value:
            return f'"{name}" {problem or "is empty"}'
    if not is_number(event.timestamp):
        return '"timestamp" is not a finite number'
    if event.rating is not None and not is_number(event.rating):
        return '"rating" is not a finite number'
    if event.kind is not None and not (isinstance(event.kind, str) and event.kind in KINDS):
        return f'"kind" is none of {", ".join(sorted(KINDS))}'
    if event.split is not None and text_fault(event.split):
        return '"split" is not text'
    return None


def _field_fault(name: Any, value: Any) -> str | None:
    if not isinstance(name, str) or not name or text_fault(name) or name.startswith(_RESERVED):
        return f"is no usable name: it must be text and not begin with {' or '.join(_RESERVED)}"
    if not isinstance(value, list):
        return None if _is_scalar(value) else "is not text, a finite number, true or false, or a list"
    strings = all(isinstance(element, str) for element in value)
    if not strings and not all(is_number(element) for element in value):
        return "is a list of neither texts alone nor finite numbers alone"
    return None if not strings else next((fault for fault in map(text_fault, value) if fault), None)


def text_fault(value: Any) -> str | None:
    """Return why this is not a text that every database here can hold, or None."""
    if not isinstance(value, str):
        return "is not text"
    if "\x00" in value:
        return "holds a NUL character"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is no character"
    return None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool) or is_number(value) or (isinstance(value, str) and text_fault(value) is None)


def is_number(value: Any) -> bool:
    """Return whether this is a number that every database here can hold: finite, and an integer within 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)


def as_json(item: Item) -> dict[str, Any]:
    """Return the item as a line of `items.jsonl` holds it."""
    row: dict[str, Any] = {"id": item.id, "title": item.title, "text": item.text, "metadata": dict(item.metadata)}
    return row | {"hidden": True} if item.hidden else row
