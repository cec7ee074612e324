"""Similarity of items in content: in text, title and fields, derived from the catalog alone and cached with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from store.cache import load_or_build
from store.lexical import bm25
from store.sparse import from_entries, highest, rows_scaled_to_best, scale, stack, strongest, without_diagonal

if TYPE_CHECKING:
    from store.catalog import Catalog
    from store.snapshot import Snapshot

_NEIGHBOURS = 20
_TITLES = 100
_BLOCK = 1024
_SHARPNESS = 4


@dataclass(frozen=True, eq=False)
class Content:
    """Similarity between a snapshot's rows. The first three are CSR matrices; the square ones have empty diagonals.

    `near` (n, n): the cosine, to the power of 4, of each item with its 20 nearest by `Snapshot.content_vectors`. `titles` (n, n):
    BM25 of other titles for the row's title as a query, divided by the best of the row. `fields` (n, values): TF-IDF of metadata
    values, rows of length 1. `numeric` (fields, n): the numeric fields that most items have, standardised, NaN where one is
    missing; `numeric_names` are their names.
    """

    near: Any
    titles: Any
    fields: Any
    numeric: np.ndarray
    numeric_names: list[str]

    @classmethod
    def of(cls, catalog: Catalog, snapshot: Snapshot) -> Content:
        """Return the content similarity of this version of the catalog, from the cache if it is there."""
        return load_or_build(catalog.cache_folder, "content", snapshot.version, cls, lambda: _build(catalog, snapshot))

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """The numeric fields, (n,) each, by name."""
        return dict(zip(self.numeric_names, self.numeric, strict=True))


def _build(catalog: Catalog, snapshot: Snapshot) -> Content:
    metadata: list[dict[str, Any]] = snapshot.by_row(catalog.items(), lambda item: dict(item.metadata), {})
    return Content(_near(snapshot.content_vectors), _titles(snapshot.titles), *_fields(metadata))


def _near(vectors: np.ndarray) -> Any:
    n = len(vectors)
    columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for start in range(0, n, _BLOCK):
        similarity = vectors[start : start + _BLOCK] @ vectors.T
        at = np.arange(len(similarity))
        similarity[at, at + start] = 0
        for row, best in zip(similarity, highest(similarity, min(_NEIGHBOURS, n - 1)), strict=True):
            columns.append(best)
            values.append(row[best])
    rows = np.repeat(np.arange(n), [len(best) for best in columns[1:]])
    return from_entries(np.concatenate(values) ** _SHARPNESS, rows, np.concatenate(columns), (n, n))


def _titles(titles: list[str]) -> Any:
    """Return BM25 (k1 1.2) of every title as a query for every other; words that are in very many titles are not used."""
    n = len(titles)
    weighed, _ = bm25(titles, k1=1.2)
    weighed = scale(weighed, columns=np.diff(weighed.indptr) <= max(1000, n // 50))
    weighed.eliminate_zeros()
    query, by_word = weighed.sign(), weighed.T.tocsr()
    blocks = []
    for start in range(0, max(n, 1), _BLOCK):
        block = without_diagonal((query[start : start + _BLOCK] @ by_word).tocsr(), start)
        blocks.append(rows_scaled_to_best(strongest(block, _TITLES)))
    return stack(blocks)


def _fields(metadata: list[dict[str, Any]]) -> tuple[Any, np.ndarray, list[str]]:
    """Return the last three fields of Content."""
    n = len(metadata)
    known: dict[tuple[str, str], int] = {}
    rows, columns = [], []
    numbers: dict[str, np.ndarray] = {}
    for row, found in enumerate(metadata):
        for name, value in found.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name, np.full(n, np.nan, np.float32))[row] = value
            for word in _texts_of(value):
                rows.append(row)
                columns.append(known.setdefault((name, word), len(known)))
    counts = from_entries(1, rows, columns, (n, max(len(known), 1))).sign()
    held = np.bincount(counts.indices, minlength=counts.shape[1])
    weighed = scale(counts, columns=np.log(n / np.maximum(held, 1)))
    lengths = np.sqrt(np.asarray(weighed.multiply(weighed).sum(axis=1)).ravel())
    unit = scale(weighed, rows=1 / np.maximum(lengths, 1e-9))
    standardised = {name: _standardise(values) for name, values in numbers.items() if _is_informative(values)}
    return unit, np.array(list(standardised.values()), dtype=np.float32), list(standardised)


def _texts_of(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one.strip():
            yield one.casefold()


def _is_informative(values: np.ndarray) -> bool:
    there = values[np.isfinite(values)]
    return len(there) > len(values) / 2 and len(np.unique(there)) > 5


def _standardise(values: np.ndarray) -> np.ndarray:
    return ((values - np.nanmean(values)) / (np.nanstd(values) + 1e-9)).astype(np.float32)
