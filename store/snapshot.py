"""A snapshot of the catalog in memory: ids, titles and vectors in rows. `Catalog.snapshot` makes and caches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from store.filters import Field
from store.records import Hit, Item
from store.sparse import best_first

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One version of a catalog, one item a row.

    `vectors` is (n, dim) float32 with rows of length 1, mapped from disk if the catalog has a folder. `untrained` is of the same
    shape: the vectors by the encoder before training, if the store's encoder was trained. `hidden` is (n,) bool. `facets[row]` is
    the item's year, else its brand, else "", to tell items of the same title apart. `schema` are the metadata fields that filters
    may use, most frequent first.
    """

    version: str
    ids: list[str]
    titles: list[str]
    facets: list[str]
    hidden: np.ndarray
    vectors: np.ndarray
    untrained: np.ndarray | None = None
    schema: dict[str, Field] = field(default_factory=dict)
    rows: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        schema = {name: found if isinstance(found, Field) else Field(**found) for name, found in self.schema.items()}
        object.__setattr__(self, "schema", schema)
        object.__setattr__(self, "rows", {an_id: row for row, an_id in enumerate(self.ids)})

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content_vectors(self) -> np.ndarray:
        """Return the vectors that say how similar two items are in content, (n, dim): those by the encoder before training.

        A trained encoder brings items near that the same users choose, which is not similarity in content, and finds more when
        it is used beside that than in its place (see eval/log/2026-11-30a).
        """
        return np.asarray(self.vectors if self.untrained is None else self.untrained)

    def is_visible(self, an_id: str) -> bool:
        """Return whether the item is in the catalog and not hidden."""
        row = self.rows.get(an_id)
        return row is not None and not self.hidden[row]

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Return the rows of those ids that are in the snapshot, ascending."""
        return np.array(sorted(self.rows[an_id] for an_id in ids if an_id in self.rows), dtype=np.int64)

    def by_row(self, items: Iterable[Item], value: Callable[[Item], T], missing: T) -> list[T]:
        """Return the value of each row's item; `missing` for rows whose items are not among these."""
        values = [missing] * len(self)
        for item in items:
            if item.id in self.rows:
                values[self.rows[item.id]] = value(item)
        return values

    def nearest(self, vectors: np.ndarray, k: int, rows: np.ndarray) -> list[list[Hit]]:
        """Return, for each of the (q, dim) vectors, the `k` of these rows with the highest cosine similarity, best first; exact."""
        if not len(rows):
            return [[] for _ in vectors]
        queries = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        similarities = queries @ self.vectors[rows].T
        return [[Hit(self.ids[rows[at]], float(scores[at])) for at in best_first(scores, k)] for scores in similarities]
