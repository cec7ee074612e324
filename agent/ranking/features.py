"""Features of candidates for learned fusion: what the signals say and how they agree, the item, its ties to the history.

Counts enter as shares, so that a model trained on less data reads the same on more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from agent.retrieval.signals import Signals
from store.sparse import highest

PER_SIGNAL = {"next": 100, "later": 60, "alike": 60, "followed": 60}
OTHERWISE = 40
"""Candidates each signal brings."""
PAIRS = 10
"""History items that a candidate is compared with one by one, the latest."""
FAR = 999.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of many histories, one row each, those of a history together.

    `case` (r,) and `item` (r,) say which history and which snapshot row; `features` (r, f) float32, named by `names`.
    """

    case: np.ndarray
    item: np.ndarray
    features: np.ndarray
    names: list[str]


def candidates(
    signals: Signals,
    histories: Sequence[np.ndarray],
    *,
    repeats: bool,
    allowed: np.ndarray | None = None,
    scores: dict[str, np.ndarray] | None = None,
    beside: Sequence[np.ndarray] | None = None,
) -> Candidates:
    """The candidates that any signal brings for these histories, with their features.

    `repeats`: history items may come back. `allowed` (n,) bool: which rows may at all. `scores`: the signals' scores of these
    histories where they are at hand; they are changed. `beside`: rows that others than the signals bring for each history.
    """
    scores = signals.scores(histories) if scores is None else scores
    brought = _brought(signals, scores, histories, repeats, allowed, beside)
    case, item = np.repeat(np.arange(len(brought)), [len(rows) for rows in brought]), np.concatenate(brought)
    columns: dict[str, np.ndarray] = {}
    starts = np.searchsorted(case, np.arange(len(histories)))
    _signal_features(columns, scores, case, item, starts, len(histories))
    columns |= {name: values[item] for name, values in _items(signals).items()}
    _pair_features(columns, signals, histories, case, item, starts)
    _history_features(columns, signals, histories, case)
    features = np.stack(list(columns.values()), axis=1).astype(np.float32) if len(case) else np.zeros((0, len(columns)))
    return Candidates(case, item, features, list(columns))


def _brought(
    signals: Signals,
    scores: dict[str, np.ndarray],
    histories: Sequence[np.ndarray],
    repeats: bool,
    allowed: np.ndarray | None,
    beside: Sequence[np.ndarray] | None,
) -> list[np.ndarray]:
    """For each history the rows that may come back and that anything brings, ascending. Scores of the others become 0."""
    may = ~signals.snapshot.hidden if allowed is None else allowed
    closed = np.flatnonzero(~may)
    found: list[list[np.ndarray]] = [[rows] for rows in beside] if beside is not None else [[] for _ in histories]
    for name, of_all in scores.items():
        if len(closed):
            of_all[:, closed] = 0
        if not repeats:
            for row, history in enumerate(histories):
                of_all[row, history] = 0
        for rows, best in zip(found, highest(of_all, PER_SIGNAL.get(name, OTHERWISE)), strict=True):
            rows.append(best)
    popular = _popular(signals)
    brought = []
    for rows, history in zip(found, histories, strict=True):
        together = np.unique(np.concatenate([*rows, popular, history if repeats else popular]))
        together = together[may[together]]
        brought.append(together if repeats else together[~np.isin(together, history)])
    return brought


def _popular(signals: Signals) -> np.ndarray:
    return np.argsort(-(signals.counts.recent + 1e-3 * signals.counts.popularity), kind="stable")[:OTHERWISE]


def _signal_features(
    columns: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    case: np.ndarray,
    item: np.ndarray,
    starts: np.ndarray,
    b: int,
) -> None:
    ranks = []
    for name, found in scores.items():
        values = found[case, item]
        best = np.zeros(b, dtype=np.float32)
        np.maximum.at(best, case, values)
        order = np.lexsort((-values, case))
        rank = np.empty(len(values))
        rank[order] = np.arange(len(values)) - starts[case[order]]
        rank = np.where(values > 0, rank, FAR)
        ranks.append(rank)
        columns[name] = values
        columns[f"{name}/best"] = values / np.maximum(best[case], 1e-9)
        columns[f"{name} rank"] = np.log1p(rank)
    together = np.stack(ranks)
    columns["reciprocal ranks"] = (1 / (20 + together)).sum(axis=0)
    columns["in first ten"] = (together < 10).sum(axis=0)
    columns["best rank"] = np.log1p(together.min(axis=0))


@lru_cache(maxsize=2)
def _items(signals: Signals) -> dict[str, np.ndarray]:
    """What is told of every item of the snapshot, (n,) each."""
    counts = signals.counts
    n = len(signals.snapshot)
    popular = counts.popularity / max(counts.popularity.sum(), 1) * n
    recent = counts.recent / max(counts.recent.sum(), 1) * n
    there = np.maximum(counts.popularity, 1)
    return {
        "popular": np.log1p(popular),
        "recent": np.log1p(recent),
        "trend": np.log((recent + 0.3) / (popular + 0.3)),
        "late": np.where(counts.popularity > 0, 1 - counts.firsts / there, np.nan),
        "known": counts.popularity > 0,
        "neighbours popular": np.log1p(signals.near @ popular),
        "neighbours recent": np.log1p(signals.near @ recent),
        "repeat rate": (counts.repeats + 0.05) / (counts.popularity - counts.repeats + 1),
    }


def _pair_features(
    columns: dict[str, np.ndarray],
    signals: Signals,
    histories: Sequence[np.ndarray],
    case: np.ndarray,
    item: np.ndarray,
    starts: np.ndarray,
) -> None:
    b = len(histories)
    latest = np.full((b, PAIRS), -1)
    for row, history in enumerate(histories):
        newest_first = history[-PAIRS:][::-1]
        latest[row, : len(newest_first)] = newest_first
    there = latest >= 0
    rows = np.where(there, latest, 0)
    same = there[case] & (rows[case] == item[:, None])
    counted = there[case] & ~same
    ends = np.append(starts[1:], len(case))
    for name, vectors in (("cosine", signals.snapshot.vectors), ("cosine untrained", signals.snapshot.untrained)):
        if vectors is None:
            continue
        vectors = np.asarray(vectors)
        cosine = np.empty((len(case), PAIRS), dtype=np.float32)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            cosine[start:end] = vectors[item[start:end]] @ vectors[rows[row]].T
        _cosine_features(columns, name, np.where(counted, cosine, -1), counted)
    shared = np.zeros(counted.shape, dtype=np.float32)
    if signals.content.fields.nnz:
        mine = signals.content.fields[item]
        for at in range(PAIRS):
            theirs = signals.content.fields[rows[:, at]][case]
            shared[:, at] = np.asarray(mine.multiply(theirs).sum(axis=1)).ravel()
        shared = np.where(counted, shared, 0)
    columns["fields last"], columns["fields best"] = shared[:, 0], shared.max(axis=1)
    columns["fields mean"] = shared.sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    columns["fields best age"] = np.where(shared.max(axis=1) > 0.3, shared.argmax(axis=1), 99)
    columns["again"] = same.sum(axis=1)
    columns["again age"] = np.where(same.any(axis=1), same.argmax(axis=1), 99)
    for name, values in signals.content.numbers.items():
        own = values[item]
        others = np.where(there, values[rows], np.nan)
        mean = _mean(others)
        columns[f"number {name}"] = own
        columns[f"number {name} off mean"] = own - mean[case]
        columns[f"number {name} off last"] = own - others[case, 0]


def _cosine_features(columns: dict[str, np.ndarray], name: str, cosine: np.ndarray, counted: np.ndarray) -> None:
    """Cosines to the latest history items, (r, PAIRS), of which some are `counted`; the others are -1."""
    decay = 0.7 ** np.arange(PAIRS)
    positive = np.where(counted, cosine, 0)
    columns[f"{name} last"], columns[f"{name} before"] = cosine[:, 0], cosine[:, 1]
    columns[f"{name} best"], columns[f"{name} best age"] = cosine.max(axis=1), cosine.argmax(axis=1)
    columns[f"{name} mean"] = positive.sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    columns[f"{name} decayed"] = (positive * decay).sum(axis=1) / np.maximum((counted * decay).sum(axis=1), 1e-9)


def _mean(values: np.ndarray) -> np.ndarray:
    """Row means over what is there, NaN where nothing is."""
    there = np.isfinite(values)
    return np.where(
        there.any(axis=1), np.where(there, values, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1), np.nan
    )


def _history_features(
    columns: dict[str, np.ndarray], signals: Signals, histories: Sequence[np.ndarray], case: np.ndarray
) -> None:
    counts, vectors = signals.counts, signals.snapshot.alike
    popular = _items(signals)["popular"]
    told = np.zeros((len(histories), 6), dtype=np.float32)
    for row, history in enumerate(histories):
        if len(history):
            told[row] = (
                np.log1p(len(history)),
                popular[history[-10:]].mean(),
                popular[history[-1]],
                (counts.popularity[history[-3:]] == 0).mean(),
                1 - (vectors[history[-6:]] @ vectors[history[-1]]).mean(),
                len(history) - len(np.unique(history)),
            )
    names = ("length", "popular", "last popular", "unknown", "variety", "repeats")
    columns |= {f"history {name}": told[case, at] for at, name in enumerate(names)}
