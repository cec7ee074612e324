"""Operations on the rows of sparse and dense matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def from_entries(values: Any, rows: Any, columns: Any, shape: tuple[int, int]) -> Any:
    """Return the float32 CSR matrix with these entries, (e,) each, or one value for all; entries of the same place are added."""
    from scipy import sparse

    values = np.broadcast_to(np.asarray(values, dtype=np.float32), np.shape(rows))
    return sparse.csr_matrix((values, (rows, columns)), shape=shape)


def stack(blocks: Sequence[Any]) -> Any:
    """Return the CSR matrix of these blocks, one below the other."""
    from scipy import sparse

    return sparse.vstack(blocks, format="csr")


def scale(matrix: Any, *, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> Any:
    """Return the matrix as CSR, with each row and each column multiplied by its factor, (n,) float32."""
    for factors, shape in ((rows, (-1, 1)), (columns, (1, -1))):
        if factors is not None:
            matrix = matrix.multiply(factors.astype(np.float32).reshape(shape))
    return matrix.tocsr()


def strongest(matrix: Any, k: int) -> Any:
    """Return the CSR matrix with only the k largest entries of each row."""
    matrix = matrix.tocsr()
    lengths = np.diff(matrix.indptr)
    if not len(lengths) or lengths.max() <= k:
        return matrix
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)
    order = np.lexsort((-matrix.data, rows))
    place = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], lengths)
    kept = np.sort(order[place < k])
    return from_entries(matrix.data[kept], rows[kept], matrix.indices[kept], matrix.shape)


def highest(scores: np.ndarray, k: int) -> list[np.ndarray]:
    """Return, for each row of a dense (b, n) matrix, the columns of its k largest positive entries, best first, ties by column.

    The k-th largest of the maxima of column blocks bounds the k-th largest entry from below, so that few entries are sorted.
    """
    b, n = scores.shape
    width = n // (4 * k) if k > 0 else 0
    floors = np.zeros(b, dtype=scores.dtype)
    if width > 1:
        blocks = n // width
        maxima = scores[:, : blocks * width].reshape(b, blocks, width).max(axis=2)
        floors = np.maximum(np.partition(maxima, blocks - k, axis=1)[:, blocks - k], 0)
    found = []
    for row, floor in zip(scores, floors, strict=True):
        at = np.flatnonzero(row >= floor if floor > 0 else row > 0)
        found.append(at[np.lexsort((at, -row[at]))[:k]])
    return found


def best_first(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k highest scores, (n,), best first; all positions if there are fewer."""
    best = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    return best[np.argsort(-scores[best], kind="stable")]


def rows_summing_to_one(matrix: Any) -> Any:
    """Return the matrix with every row divided by its sum; empty rows stay empty."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return scale(matrix, rows=1 / np.maximum(sums, 1e-9))


def rows_scaled_to_best(matrix: Any) -> Any:
    """Return the matrix with every row divided by its largest entry; empty rows stay empty."""
    best = matrix.max(axis=1).toarray().ravel() if matrix.nnz else np.ones(matrix.shape[0])
    return scale(matrix, rows=1 / np.maximum(best, 1e-9))


def without_diagonal(matrix: Any, start: int = 0) -> Any:
    """Return the rows from `start` on of a square CSR matrix with an empty diagonal (the matrix itself is changed)."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) + start
    matrix.data[rows == matrix.indices] = 0
    matrix.eliminate_zeros()
    return matrix
