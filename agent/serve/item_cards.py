"""The item details that cards of the chat page show besides the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.item_text import field_summary, first_sentence
from store import Catalog


def item_cards(catalog: Catalog, ids: Sequence[str]) -> dict[str, Any]:
    """Return title, facts and first sentence of each item. It reads the catalog, so do not call it in an event loop."""
    return {
        id: {"title": item.title, "facts": field_summary(item), "text": first_sentence(item)}
        for id, item in catalog.get(list(dict.fromkeys(ids))).items()
    }
