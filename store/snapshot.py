"""The whole catalog at hand, as recall needs it: ids, titles, vectors in rows. Derived from the catalog, kept beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from store.cache import kept
from store.embedder import UNTRAINED
from store.records import Hit, Item

if TYPE_CHECKING:
    from store.catalog import Catalog

_PAGE = 2000


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One version of a catalog, item by item in rows.

    `vectors` is (n, dim) float32 with rows of length 1, mapped from disk where there is a folder; `untrained` are those of the same
    items before the encoder was trained, where it was. `hidden` is (n,) bool; `facets[row]` is the item's year, else its brand,
    else "": what tells two items of one title apart.
    """

    version: str
    ids: list[str]
    titles: list[str]
    facets: list[str]
    hidden: np.ndarray
    vectors: np.ndarray
    untrained: np.ndarray | None = None
    rows: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", {an_id: row for row, an_id in enumerate(self.ids)})

    @classmethod
    def of(cls, catalog: Catalog) -> Snapshot:
        """The catalog as it stands now; built once for each of its versions."""
        return catalog.snapshot()

    @classmethod
    def built(cls, catalog: Catalog, version: str) -> Snapshot:
        """The snapshot of this version of the catalog, loaded where it is kept."""
        return kept(
            catalog.derived_in,
            "snapshot",
            version,
            lambda: _build(catalog, version),
            _save,
            lambda home: _load(home, version),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def alike(self) -> np.ndarray:
        """(n, dim): the vectors that say how alike two items are in content. Training brings near what people choose together,
        which is another thing, and worth more beside likeness than in its place (eval/log/2026-11-30a)."""
        return np.asarray(self.vectors if self.untrained is None else self.untrained)

    def shows(self, an_id: str) -> bool:
        """Whether the item is in the catalog and not hidden."""
        row = self.rows.get(an_id)
        return row is not None and not self.hidden[row]

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """The rows of the ids that are in the snapshot, ascending."""
        return np.array(sorted(self.rows[an_id] for an_id in ids if an_id in self.rows), dtype=np.int64)

    def nearest(self, vectors: np.ndarray, k: int, rows: np.ndarray) -> list[list[Hit]]:
        """The `k` of these rows nearest to each of the (q, dim) vectors, exactly, by cosine similarity, best first."""
        if not len(rows):
            return [[] for _ in vectors]
        queries = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        similarities = queries @ self.vectors[rows].T
        k = min(k, len(rows))
        return [[Hit(self.ids[rows[at]], float(scores[at])) for at in _top(scores, k)] for scores in similarities]


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    best = np.argpartition(-scores, k - 1)[:k]
    return best[np.argsort(-scores[best], kind="stable")]


def _build(catalog: Catalog, version: str) -> Snapshot:
    ids = catalog.ids()
    vectors = np.zeros((len(ids), catalog.embedder.dim), dtype=np.float32)
    titles: list[str] = []
    facets: list[str] = []
    hidden = np.zeros(len(ids), dtype=bool)
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        vectors[start : start + len(page)] = catalog.vectors(page)
        for row, item in enumerate(catalog.get(page).values(), start):
            titles.append(item.title)
            facets.append(_facet(item))
            hidden[row] = item.hidden
    return Snapshot(version, ids, titles, facets, hidden, vectors, catalog.embedder.untrained(vectors))


def _facet(item: Item) -> str:
    value = item.metadata.get("year") or item.metadata.get("brand") or ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _save(snapshot: Snapshot, folder: Path) -> None:
    np.save(folder / "vectors.npy", snapshot.vectors)
    if snapshot.untrained is not None:
        np.save(folder / UNTRAINED, snapshot.untrained)
    np.save(folder / "hidden.npy", snapshot.hidden)
    words = {"ids": snapshot.ids, "titles": snapshot.titles, "facets": snapshot.facets}
    (folder / "items.json").write_text(json.dumps(words), encoding="utf-8")


def _load(folder: Path, version: str) -> Snapshot:
    words = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    untrained = np.load(folder / UNTRAINED, mmap_mode="r") if (folder / UNTRAINED).is_file() else None
    return Snapshot(version, **words, hidden=np.load(folder / "hidden.npy"), vectors=vectors, untrained=untrained)
