"""An item as a Chroma record and back, exactly: what Chroma refuses or changes is kept as JSON beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from store.records import Item

HASH, EMBEDDED, TITLE, HIDDEN, METADATA = (
    "evoke:hash",
    "evoke:embedded",
    "evoke:title",
    "evoke:hidden",
    "evoke:metadata",
)


def embedded_hash(item: Item) -> str:
    """A hash of what the item's vector depends on."""
    return hashlib.blake2b(json.dumps([item.title, item.text]).encode(), digest_size=12).hexdigest()


def record_metadata(item: Item, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of the item's record. Numbers are stored as floats, so that filters compare them alike.

    `before`: the record's present metadata, whose other fields are removed (Chroma merges, and removes what is None).
    """
    row: dict[str, Any] = dict.fromkeys(before or {})
    for name, value in item.metadata.items():
        if isinstance(value, list):
            # Chroma refuses an empty list: nothing can be asked of it anyway.
            row[name] = [_filterable(element) for element in value] or None
        else:
            row[name] = _filterable(value)
    row |= {
        HASH: item.content_hash,
        EMBEDDED: embedded_hash(item),
        TITLE: item.title,
        HIDDEN: item.hidden,
        METADATA: json.dumps(dict(item.metadata), ensure_ascii=False),
    }
    return {name: value for name, value in row.items() if value is not None or (before and name in before)}


def item_of(an_id: str, document: str | None, metadata: Mapping[str, Any]) -> Item:
    """The item that a record holds."""
    return Item(
        id=an_id,
        title=metadata[TITLE],
        text=document or "",
        metadata=json.loads(metadata[METADATA]),
        hidden=bool(metadata[HIDDEN]),
    )


def _filterable(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
