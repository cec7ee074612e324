"""Similarity of items in content: in text, title and fields, derived from the catalog alone and cached with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.cache import load_or_build
from store.sparse import highest, rows_scaled_to_best, strongest

if TYPE_CHECKING:
    from store.catalog import Catalog
    from store.records import Item
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
    values, rows of length 1. `numbers`: each numeric field that most items have, standardised, (n,) with NaN where it is missing.
    """

    near: Any
    titles: Any
    fields: Any
    numbers: dict[str, np.ndarray]

    @classmethod
    def of(cls, catalog: Catalog, snapshot: Snapshot) -> Content:
        """Return the content similarity of this version of the catalog, from the cache if it is there."""
        return load_or_build(
            catalog.cache_folder, "content", snapshot.version, lambda: _build(catalog, snapshot), _save, _load
        )


def _build(catalog: Catalog, snapshot: Snapshot) -> Content:
    n = len(snapshot)
    items: list[Item | None] = [None] * n
    for item in catalog.items():
        if item.id in snapshot.rows:
            items[snapshot.rows[item.id]] = item
    fields, numbers = _fields([dict(item.metadata) if item else {} for item in items])
    return Content(_near(snapshot.content_vectors), _titles(snapshot.titles), fields, numbers)


def _near(vectors: np.ndarray) -> Any:
    from scipy import sparse

    n, k = len(vectors), min(_NEIGHBOURS, len(vectors) - 1)
    if k < 1:
        return sparse.csr_matrix((n, n), dtype=np.float32)
    columns, values = [], []
    for start in range(0, n, _BLOCK):
        similarity = vectors[start : start + _BLOCK] @ vectors.T
        at = np.arange(len(similarity))
        similarity[at, at + start] = 0
        for row, best in zip(similarity, highest(similarity, k), strict=True):
            columns.append(best)
            values.append(row[best])
    ends = np.cumsum([0] + [len(best) for best in columns])
    sharp = np.concatenate(values) ** _SHARPNESS
    return sparse.csr_matrix((sharp, np.concatenate(columns), ends), shape=(n, n), dtype=np.float32)


def _titles(titles: list[str]) -> Any:
    """Return BM25 (k1 1.2, b 0.75) of every title as a query for every other; words that are in very many titles are not used."""
    from scipy import sparse

    n = len(titles)
    words = [re.findall(r"\w+", title.casefold()) for title in titles]
    known: dict[str, int] = {}
    columns = np.array([known.setdefault(word, len(known)) for title in words for word in title], dtype=np.int64)
    rows = np.repeat(np.arange(n), [len(title) for title in words])
    counts = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(n, max(len(known), 1)))
    counts.sum_duplicates()
    held = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.where(held <= max(1000, n // 50), np.log(1 + (n - held + 0.5) / (held + 0.5)), 0)
    length = np.asarray(counts.sum(axis=1)).ravel()
    row_of = np.repeat(np.arange(n), np.diff(counts.indptr))
    norm = 1.2 * (1 - 0.75 + 0.75 * length / max(length.mean(), 1e-9))
    weighed = counts.copy()
    weighed.data = (idf[counts.indices] * counts.data * 2.2 / (counts.data + norm[row_of])).astype(np.float32)
    weighed.eliminate_zeros()
    query = counts.sign()
    by_word = weighed.T.tocsr()
    blocks = []
    for start in range(0, n, _BLOCK):
        block = (query[start : start + _BLOCK] @ by_word).tocsr()
        own = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)) + start
        block.data[block.indices == own] = 0
        block.eliminate_zeros()
        blocks.append(rows_scaled_to_best(strongest(block, _TITLES)))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((n, n), dtype=np.float32)


def _fields(metadata: list[dict[str, Any]]) -> tuple[Any, dict[str, np.ndarray]]:
    from scipy import sparse

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
    counts = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(n, max(len(known), 1))).sign()
    idf = np.log(n / np.maximum(np.bincount(counts.indices, minlength=counts.shape[1]), 1))
    weighed = (counts @ sparse.diags(idf.astype(np.float32))).tocsr()
    lengths = np.sqrt(np.asarray(weighed.multiply(weighed).sum(axis=1)).ravel())
    unit = (sparse.diags((1 / np.maximum(lengths, 1e-9)).astype(np.float32)) @ weighed).tocsr()
    return unit, {name: _standardise(values) for name, values in numbers.items() if _is_informative(values)}


def _texts_of(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one.strip():
            yield one.casefold()


def _is_informative(values: np.ndarray) -> bool:
    there = values[np.isfinite(values)]
    return len(there) > len(values) / 2 and len(np.unique(there)) > 5


def _standardise(values: np.ndarray) -> np.ndarray:
    return ((values - np.nanmean(values)) / (np.nanstd(values) + 1e-9)).astype(np.float32)


def _save(content: Content, folder: Path) -> None:
    from scipy import sparse

    for name in ("near", "titles", "fields"):
        sparse.save_npz(folder / f"{name}.npz", getattr(content, name), compressed=False)
    np.save(folder / "numbers.npy", np.array(list(content.numbers.values()), dtype=np.float32))
    (folder / "numbers.json").write_text(json.dumps(list(content.numbers)), encoding="utf-8")


def _load(folder: Path) -> Content:
    from scipy import sparse

    names = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    numbers = dict(zip(names, np.load(folder / "numbers.npy"), strict=True))
    near, titles, fields = (sparse.load_npz(folder / f"{name}.npz") for name in ("near", "titles", "fields"))
    return Content(near, titles, fields, numbers)
