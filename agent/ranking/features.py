"""Features of candidates for learned fusion: the signals and how they agree, the item, its ties to the history.

Counts enter as shares, so that a model trained on less data reads the same on more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from agent.retrieval.signals import CHANNEL_OF, Signals
from store.sparse import highest

PER_SIGNAL = {"next": 100, "later": 60, "alike": 60, "followed": 60}
OTHERWISE = 40
"""Candidates that each signal brings."""
PAIRS = 10
"""Latest history items that a candidate is compared with one by one."""
FAR = 999.0
"""Rank of a candidate that a signal says nothing of."""
OF_CHANNEL = {
    "dense": ("cosine",),
    "popular": ("popular", "recent", "trend", "late", "known", "neighbours", "history popular", "history last popular"),
    "fields": ("fields", "number"),
    "repeats": ("again", "repeat rate", "history repeats"),
}
"""How the names of features begin that belong to a channel (or to the item's fields, or to repeats), apart from its signals."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of many histories, one row each, those of a history together.

    `case` (r,) and `item` (r,) say which history and which snapshot row; `features` (r, f) float32, named by `names`.
    """

    case: np.ndarray
    item: np.ndarray
    features: np.ndarray
    names: list[str]


def candidates(signals: Signals, histories: Sequence[np.ndarray], allowed: np.ndarray, without: str = "") -> Candidates:
    """Return the candidates that any signal brings for these histories, with their features.

    Args:
        signals: the fitted signals.
        histories: b histories, snapshot rows, oldest first.
        allowed: (b, n) bool, the rows that may come back; history items may be among them.
        without: a channel whose signals are to say nothing.
    """
    scores = signals.scores(histories)
    for name, found in scores.items():
        if CHANNEL_OF[name] == without:
            found[:] = 0
        found[~allowed] = 0
    rows = _brought(signals, scores, histories, allowed)
    case, item = np.repeat(np.arange(len(rows)), [len(own) for own in rows]), np.concatenate(rows)
    columns: dict[str, np.ndarray] = {}
    starts = np.searchsorted(case, np.arange(len(histories)))
    _signal_features(columns, scores, case, item, starts, len(histories))
    columns |= {name: values[item] for name, values in _items(signals).items()}
    _pair_features(columns, signals, histories, case, item, starts)
    _history_features(columns, signals, histories, case)
    features = np.stack(list(columns.values()), axis=1).astype(np.float32) if len(case) else np.zeros((0, len(columns)))
    return Candidates(case, item, features, list(columns))


def channel_of(feature: str) -> str:
    """Return the channel that a feature belongs to, "fields" or "repeats" for the item's own, else "other"."""
    signal = feature.removesuffix("/best").removesuffix(" rank")
    if signal in CHANNEL_OF:
        return CHANNEL_OF[signal]
    return next((channel for channel, beginnings in OF_CHANNEL.items() if feature.startswith(beginnings)), "other")


def _brought(
    signals: Signals, scores: dict[str, np.ndarray], histories: Sequence[np.ndarray], allowed: np.ndarray
) -> list[np.ndarray]:
    """For each history the allowed rows that any signal brings, the most popular ones, and its own items; ascending."""
    found: list[list[np.ndarray]] = [[] for _ in histories]
    for name, of_all in scores.items():
        for rows, best in zip(found, highest(of_all, PER_SIGNAL.get(name, OTHERWISE)), strict=True):
            rows.append(best)
    popular = _popular(signals)
    brought = [np.unique(np.concatenate([*rows, popular, own])) for rows, own in zip(found, histories, strict=True)]
    return [rows[may[rows]] for rows, may in zip(brought, allowed, strict=True)]


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
    """The features of every item of the snapshot, (n,) each."""
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
    """Row means of the finite values, NaN where there is none."""
    there = np.isfinite(values)
    return np.where(
        there.any(axis=1), np.where(there, values, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1), np.nan
    )


def _history_features(
    columns: dict[str, np.ndarray], signals: Signals, histories: Sequence[np.ndarray], case: np.ndarray
) -> None:
    counts, vectors = signals.counts, signals.snapshot.content_vectors
    popular = _items(signals)["popular"]
    found = np.zeros((len(histories), 6), dtype=np.float32)
    for row, history in enumerate(histories):
        if len(history):
            found[row] = (
                np.log1p(len(history)),
                popular[history[-10:]].mean(),
                popular[history[-1]],
                (counts.popularity[history[-3:]] == 0).mean(),
                1 - (vectors[history[-6:]] @ vectors[history[-1]]).mean(),
                len(history) - len(np.unique(history)),
            )
    names = ("length", "popular", "last popular", "unknown", "variety", "repeats")
    columns |= {f"history {name}": found[case, at] for at, name in enumerate(names)}
