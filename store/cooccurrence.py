"""Co-occurrence, transitions, popularity and similar users, counted over the positive events of all users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.cache import load_or_build
from store.sparse import from_entries, rows_summing_to_one, scale, stack, strongest, without_diagonal

if TYPE_CHECKING:
    from store.history import History, Interactions
    from store.snapshot import Snapshot

_LONGEST = 500
_NEIGHBOURS = 300
_WINDOW = 5
_BLOCK = 4096
_RECENT = 0.75
_LAST = 2
_FIRST_CLOCK, _LAST_CLOCK, _DAY = 315_532_800.0, 4_102_444_800.0, 86_400.0
_VOTERS = 100


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    """Statistics over a snapshot's rows.

    `popularity` (n,) counts positive events; `recent` (n,) counts those of the last quarter of the data's time range, or, if the
    timestamps are not clock times, each user's last two. `firsts` (n,) counts how often an item was a user's first, `repeats` (n,)
    how often an item was chosen again. CSR matrices, with empty diagonals where they are square: `goes_with` (n, n) holds the
    cosine of two items' users, `given` (n, n) the share of the row's users who chose the column too, both with less weight for
    users with long histories; `followed_by` and `preceded_by` (n, n) the share of transitions within five steps, nearer ones
    with more weight; `people` (m, n) which user chose which item.
    """

    popularity: np.ndarray
    recent: np.ndarray
    firsts: np.ndarray
    repeats: np.ndarray
    goes_with: Any
    given: Any
    followed_by: Any
    preceded_by: Any
    people: Any

    @classmethod
    def of(cls, history: History, snapshot: Snapshot, folder: Path | None) -> Cooccurrence:
        """Return the statistics of a whole history, from the cache in the store's folder unless items or events have changed."""
        version = f"{snapshot.version}.{history.version}"
        return load_or_build(folder, "cooccurrence", version, cls, lambda: cls.fit(history.interactions(), snapshot))

    @classmethod
    def fit(cls, interactions: Interactions, snapshot: Snapshot) -> Cooccurrence:
        """Count over these events, without those of items that are not in the snapshot."""
        users, rows, times = to_rows(interactions, snapshot)
        n = len(snapshot)
        counts = np.bincount(rows, minlength=n).astype(np.float32)
        recent = _is_recent(users, times)
        people = _people(users, rows, n)
        late = _events_after(users) < _LONGEST
        goes_with, given = _cooccurrences(_people(users[late], rows[late], n))
        steps = _count_transitions(users[late], rows[late], n)
        return cls(
            popularity=counts,
            recent=np.bincount(rows[recent], minlength=n).astype(np.float32),
            firsts=np.bincount(rows[np.diff(users, prepend=-1) != 0], minlength=n).astype(np.float32),
            repeats=counts - np.asarray(people.sum(axis=0), dtype=np.float32).ravel(),
            goes_with=goes_with,
            given=given,
            followed_by=_shares(steps, counts),
            preceded_by=_shares(steps.T.tocsr(), counts),
            people=people,
        )

    def together(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return how much each item co-occurs with these rows, weighted, (n,) float32; an item does not co-occur with itself."""
        scores = self.goes_with[rows].T @ np.asarray(weights, dtype=np.float32)
        return np.asarray(scores, dtype=np.float32).ravel()

    def alike(self, histories: Any) -> Any:
        """Return the items of the 100 most similar users, weighted, for each of the (b, n) weighted `histories`: (b, n) CSR.

        Session-based nearest neighbours (Ludewig and Jannach, UMUAI 2018): rare items weigh more, users with long histories
        less, and similarity counts squared.
        """
        similarity = strongest(histories @ self._choosers, _VOTERS)
        similarity.data **= 2
        return rows_summing_to_one(similarity) @ self.people

    @cached_property
    def _choosers(self) -> Any:
        """Return which users chose each item, (n, m) CSR; rare items and users with short histories weigh more."""
        chosen_by = np.asarray(self.people.sum(axis=0)).ravel()
        rarity = np.log(1 + self.people.shape[0] / np.maximum(chosen_by, 1))
        lengths = np.asarray(self.people.sum(axis=1)).ravel()
        return scale(self.people.T, rows=rarity, columns=np.maximum(lengths, 1) ** -0.35)


def to_rows(interactions: Interactions, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (users, rows, times) of the events whose items are in the snapshot, in (user, time) order, (e,) each."""
    row_of = np.array([snapshot.rows.get(id, -1) for id in interactions.item_ids], dtype=np.int64)
    rows = row_of[interactions.items] if len(interactions) else np.zeros(0, dtype=np.int64)
    known = rows >= 0
    return interactions.users[known], rows[known], interactions.timestamps[known]


def sequences(interactions: Interactions, snapshot: Snapshot) -> list[np.ndarray]:
    """Return each user's rows, oldest first."""
    users, rows, _ = to_rows(interactions, snapshot)
    return np.split(rows, np.flatnonzero(np.diff(users)) + 1) if len(rows) else []


def is_clock(times: Sequence[float] | np.ndarray) -> bool:
    """Return whether timestamps are clock times, which can be compared between users.

    They are if 99 % of them are Unix seconds or milliseconds between the years 1980 and 2100, and all but the outermost 2 % span
    a day or more. Positions in a sequence, years and days are not clock times.
    """
    if not len(times):
        return False
    for unit in (1.0, 1000.0):
        seconds = np.asarray(times, dtype=np.float64) / unit
        low, high = np.quantile(seconds, (0.01, 0.99))
        if np.mean((seconds >= _FIRST_CLOCK) & (seconds < _LAST_CLOCK)) >= 0.99 and high - low >= _DAY:
            return True
    return False


def _events_after(users: np.ndarray) -> np.ndarray:
    """Return, for events in (user, time) order, how many later events the same user has, (e,)."""
    return np.cumsum(np.bincount(users))[users] - 1 - np.arange(len(users))


def _is_recent(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    if not is_clock(times):
        return _events_after(users) < _LAST
    # Quantiles, so that a few wrong clocks do not stretch the range.
    low, high = np.quantile(times, [0.005, 0.995])
    return times >= low + _RECENT * (high - low)


def _people(users: np.ndarray, rows: np.ndarray, n: int) -> Any:
    m = int(users.max()) + 1 if len(users) else 1
    return from_entries(1, users, rows, (m, n)).sign()


def _cooccurrences(people: Any) -> tuple[Any, Any]:
    """Return the shared users of two items, over the geometric mean of both items' users, and over the row's users."""
    n = people.shape[1]
    lengths = np.asarray(people.sum(axis=1)).ravel()
    counts = np.asarray(people.sum(axis=0)).ravel()
    weighed = scale(people, rows=1 / np.maximum(1, np.log(np.maximum(lengths, 1)))).tocsc()
    columns, root = people.tocsc(), 1 / np.sqrt(np.maximum(counts, 1))
    goes_with, given = [], []
    for start in range(0, max(n, 1), _BLOCK):
        block = slice(start, start + _BLOCK)
        shared = without_diagonal((columns[:, block].T @ weighed).tocsr(), start)
        goes_with.append(strongest(scale(shared, rows=root[block], columns=root), _NEIGHBOURS))
        given.append(strongest(scale(shared, rows=1 / (counts[block] + 1)), _NEIGHBOURS))
    return stack(goes_with), stack(given)


def _count_transitions(users: np.ndarray, rows: np.ndarray, n: int) -> Any:
    """Return how often an item (column) followed another (row) in one history within a few steps, weighted by 1/distance."""
    total = from_entries(0, [], [], (n, n))
    for step in range(1, _WINDOW + 1):
        same = users[step:] == users[:-step]
        before, after = rows[:-step][same], rows[step:][same]
        total += from_entries(1 / step, before, after, (n, n))
    return without_diagonal(total.tocsr())


def _shares(steps: Any, counts: np.ndarray) -> Any:
    """Return transitions divided by the row's count plus two, which damps the shares of rare items."""
    return strongest(scale(steps, rows=1 / (counts + 2)), _NEIGHBOURS)
