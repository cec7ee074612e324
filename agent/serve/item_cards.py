"""What a card says of an item beside the recommendation itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.item_text import facts, first_sentence
from store import Catalog


def details(catalog: Catalog, ids: Sequence[str]) -> dict[str, Any]:
    """For each of these items title, facts and the first sentence of its text. It reads the catalog: not in an event loop."""
    return {
        id: {"title": item.title, "facts": facts(item), "text": first_sentence(item)}
        for id, item in catalog.get(list(dict.fromkeys(ids))).items()
    }
