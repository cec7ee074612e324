"""What goes together and what follows what, counted over everyone's positive events: sparse item-item matrices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.derived import kept

if TYPE_CHECKING:
    from store.history import History, Interactions
    from store.snapshot import Snapshot

_LONGEST = 500
_NEIGHBOURS = 200
_WINDOW = 5
_BLOCK = 4096
_RECENT = 0.75


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    """Item-item statistics over a snapshot's rows.

    `_together` is the cosine of two items' user sets and `_next` the share of transitions, both (n, n) CSR with the strongest
    entries of each row. `popularity` (n,) counts positive events; `recent` (n,) those of the last quarter of the data's time.
    """

    popularity: np.ndarray
    recent: np.ndarray
    _together: Any
    _next: Any

    @classmethod
    def of(cls, history: History, snapshot: Snapshot, folder: Path | None) -> Cooccurrence:
        """The statistics of a whole history, kept in the store's folder and refitted when items or events have changed."""
        version = f"{snapshot.version}.{history.version}"
        return kept(folder, "cooccurrence", version, lambda: cls.fit(history.interactions(), snapshot), _save, _load)

    @classmethod
    def fit(cls, interactions: Interactions, snapshot: Snapshot) -> Cooccurrence:
        """Count over these events; those of items that are not in the snapshot do not count."""
        row_of = np.array([snapshot.rows.get(an_id, -1) for an_id in interactions.item_ids], dtype=np.int64)
        rows = row_of[interactions.items] if len(interactions) else np.zeros(0, dtype=np.int64)
        users, rows, times = (column[rows >= 0] for column in (interactions.users, rows, interactions.timestamps))
        n = len(snapshot)
        recent = times >= _recent_from(times)
        late = _last_of_each(users, _LONGEST)
        return cls(
            popularity=np.bincount(rows, minlength=n).astype(np.float32),
            recent=np.bincount(rows[recent], minlength=n).astype(np.float32),
            _together=_cosine(users[late], rows[late], n),
            _next=_transitions(users[late], rows[late], n),
        )

    def together(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(n,) float32: how much each item goes with these rows, weighted; no item goes with itself."""
        return _weighted(self._together, rows, weights)

    def next(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(n,) float32: how often each item followed these rows within five steps, weighted, nearer steps more."""
        return _weighted(self._next, rows, weights)


def _weighted(matrix: Any, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(matrix[rows].T @ np.asarray(weights, dtype=np.float32), dtype=np.float32).ravel()


def _recent_from(times: np.ndarray) -> float:
    """Where the last quarter of the time range begins; a few wrong clocks at either end do not stretch the range."""
    if not len(times):
        return np.inf
    low, high = np.quantile(times, [0.005, 0.995])
    return float(low + _RECENT * (high - low))


def _last_of_each(users: np.ndarray, most: int) -> np.ndarray:
    """Which events are among the last `most` of their user; users stand together, their events in order."""
    if not len(users):
        return np.zeros(0, dtype=bool)
    ends = np.append(np.flatnonzero(np.diff(users)), len(users) - 1)
    end_of = np.repeat(ends, np.diff(np.concatenate([[-1], ends])))
    return end_of - np.arange(len(users)) < most


def _cosine(users: np.ndarray, rows: np.ndarray, n: int) -> Any:
    """Shared users of two items over the geometric mean of their users (item-item collaborative filtering)."""
    from scipy import sparse

    shape = (int(users.max()) + 1 if len(users) else 1, n)
    seen = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (users, rows)), shape=shape)
    seen.data[:] = 1
    lengths = np.sqrt(np.asarray(seen.sum(axis=0)).ravel())
    scaled = (seen @ sparse.diags(1 / np.maximum(lengths, 1).astype(np.float32))).tocsc()
    blocks = []
    for start in range(0, n, _BLOCK):
        block = (scaled[:, start : start + _BLOCK].T @ scaled).tocsr()
        blocks.append(_strongest(_without_self(block, start)))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((n, n), dtype=np.float32)


def _transitions(users: np.ndarray, rows: np.ndarray, n: int) -> Any:
    """What followed an item in one history within a few steps, each step weighing one over its distance; rows sum to 1."""
    from scipy import sparse

    total = sparse.csr_matrix((n, n), dtype=np.float32)
    for step in range(1, _WINDOW + 1):
        same = (users[step:] == users[:-step]) & (rows[step:] != rows[:-step])
        before, after = rows[:-step][same], rows[step:][same]
        total += sparse.csr_matrix((np.full(len(before), 1 / step, dtype=np.float32), (before, after)), shape=(n, n))
    sums = np.asarray(total.sum(axis=1)).ravel()
    return _strongest((sparse.diags((1 / np.maximum(sums, 1e-9)).astype(np.float32)) @ total).tocsr())


def _without_self(block: Any, start: int) -> Any:
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    block.data[block.indices == rows + start] = 0
    block.eliminate_zeros()
    return block


def _strongest(matrix: Any) -> Any:
    """Only the largest entries of each row."""
    from scipy import sparse

    data, indices, lengths = [], [], []
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        values, columns = matrix.data[start:end], matrix.indices[start:end]
        if len(values) > _NEIGHBOURS:
            best = np.argpartition(-values, _NEIGHBOURS)[:_NEIGHBOURS]
            values, columns = values[best], columns[best]
        data.append(values)
        indices.append(columns)
        lengths.append(len(values))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    kept_entries = (np.concatenate(data), np.concatenate(indices), indptr) if data else ([], [], indptr)
    return sparse.csr_matrix(kept_entries, shape=matrix.shape, dtype=np.float32)


def _save(fitted: Cooccurrence, folder: Path) -> None:
    from scipy import sparse

    np.save(folder / "popularity.npy", np.stack([fitted.popularity, fitted.recent]))
    sparse.save_npz(folder / "together.npz", fitted._together, compressed=False)
    sparse.save_npz(folder / "next.npz", fitted._next, compressed=False)


def _load(folder: Path) -> Cooccurrence:
    from scipy import sparse

    popularity, recent = np.load(folder / "popularity.npy")
    return Cooccurrence(
        popularity, recent, sparse.load_npz(folder / "together.npz"), sparse.load_npz(folder / "next.npz")
    )
