"""Convert an item to a Chroma record and back without loss: what Chroma refuses or changes is also kept as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from store.records import Item

HASH = "evoke:hash"
EMBEDDED = "evoke:embedded"
TITLE = "evoke:title"
HIDDEN = "evoke:hidden"
METADATA = "evoke:metadata"


def embedded_hash(item: Item) -> str:
    """Return a hash of everything that the item's vector depends on."""
    return hashlib.blake2b(json.dumps([item.title, item.text]).encode(), digest_size=12).hexdigest()


def record_metadata(item: Item, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the metadata of the item's record. Numbers are stored as floats, so that filters compare them alike.

    `before` is the record's present metadata: fields that the item no longer has become None, which Chroma takes as "remove".
    """
    row: dict[str, Any] = dict.fromkeys(before or {})
    for name, value in item.metadata.items():
        if isinstance(value, list):
            # Chroma refuses an empty list; no filter can match one anyway.
            row[name] = [_as_stored(element) for element in value] or None
        else:
            row[name] = _as_stored(value)
    row |= {
        HASH: item.content_hash,
        EMBEDDED: embedded_hash(item),
        TITLE: item.title,
        HIDDEN: item.hidden,
        METADATA: json.dumps(dict(item.metadata), ensure_ascii=False),
    }
    return {name: value for name, value in row.items() if value is not None or (before and name in before)}


def to_item(an_id: str, document: str | None, metadata: Mapping[str, Any]) -> Item:
    """Return the item that a record holds."""
    return Item(
        id=an_id,
        title=metadata[TITLE],
        text=document or "",
        metadata=json.loads(metadata[METADATA]),
        hidden=bool(metadata[HIDDEN]),
    )


def _as_stored(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
