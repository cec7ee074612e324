"""The catalog (Chroma), the histories (SQL), and what is derived from them. Names are loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.catalog import Catalog as Catalog
    from store.cooccurrence import Cooccurrence as Cooccurrence
    from store.embedder import Embedder as Embedder
    from store.errors import BadData as BadData
    from store.errors import MissingExtra as MissingExtra
    from store.errors import StoreBusy as StoreBusy
    from store.errors import StoreError as StoreError
    from store.history import History as History
    from store.lexical import Lexical as Lexical
    from store.records import Event as Event
    from store.records import Hit as Hit
    from store.records import Item as Item
    from store.snapshot import Snapshot as Snapshot

_HOMES = {
    "Catalog": "catalog",
    "Cooccurrence": "cooccurrence",
    "Embedder": "embedder",
    "BadData": "errors",
    "MissingExtra": "errors",
    "StoreBusy": "errors",
    "StoreError": "errors",
    "History": "history",
    "Lexical": "lexical",
    "Event": "records",
    "Hit": "records",
    "Item": "records",
    "Snapshot": "snapshot",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'store' has no attribute {name!r}")
    return getattr(import_module(f"store.{_HOMES[name]}"), name)
