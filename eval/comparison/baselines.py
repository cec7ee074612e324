"""Single arms: what one channel or baseline says of every item, from the signals alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent.retrieval.signals import Signals, weighted

RECENT = 10
"""Latest items of a history that are interests of their own."""
BLOCK = 8192
"""Items of the catalog that are compared with at once."""

Scores = Mapping[str, np.ndarray]
PARAMETERS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "mean-history": {"decay": (1.0, 0.8, 0.6)},
    "item-knn": {"decay": (1.0, 0.9, 0.7, 0.5)},
    "ease": {"decay": (1.0, 0.9, 0.7, 0.5)},
    "star": {"decay": (0.9, 0.7, 0.5), "content": (0.3, 0.5, 0.7)},
    "dense": {"decay": (1.0, 0.9, 0.8, 0.6)},
}
"""What each arm can be tuned in, and the values that are tried; the first are the defaults."""


def single_scores(
    arm: str, signals: Signals, scores: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]
) -> np.ndarray:
    """(b, n) scores of a single arm for these histories, 0 where it says nothing. `scores` are the signals' own for those in
    FROM_SIGNALS; `given` overrides the arm's parameters."""
    parameters = {name: values[0] for name, values in PARAMETERS.get(arm, {}).items()} | dict(given)
    return _SINGLES[arm](signals, scores, histories, parameters)


def _scaled(scores: np.ndarray) -> np.ndarray:
    return scores / np.maximum(scores.max(axis=1, keepdims=True), 1e-9)


def _collaborative(_: Signals, scores: Scores, __: Any, ___: Any) -> np.ndarray:
    return _scaled(scores["next"]) + _scaled(scores["later"]) + _scaled(scores["alike"])


def dense(vectors: np.ndarray, histories: Sequence[np.ndarray], decay: float) -> np.ndarray:
    """(b, n): each recent item is an interest of its own: the best decayed cosine to any of them, never to itself."""
    vectors = np.asarray(vectors)
    found = np.zeros((len(histories), len(vectors)), dtype=np.float32)
    recent = [history[-RECENT:] for history in histories]
    some = [row for row, items in enumerate(recent) if len(items)]
    if not some:
        return found
    items = np.concatenate([recent[row] for row in some])
    weights = np.concatenate([decay ** np.arange(len(recent[row]) - 1, -1, -1.0) for row in some])
    starts = np.cumsum([0, *(len(recent[row]) for row in some[:-1])])
    interests = (vectors[items] * weights[:, None]).astype(np.float32)
    # All interests at once, a block of the catalog at a time: one by one, each would read the whole catalog from memory.
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        likeness = interests @ block.T
        inside = np.flatnonzero((items >= start) & (items < start + len(block)))
        likeness[inside, items[inside] - start] = 0
        found[some, start : start + len(block)] = np.maximum.reduceat(likeness, starts, axis=0)
    return found


def _dense(signals: Signals, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    return dense(signals.snapshot.vectors, histories, given["decay"])


def _mean(signals: Signals, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    vectors = np.asarray(signals.snapshot.vectors)
    return (weighted(histories, len(vectors), given["decay"], 10) @ vectors) @ vectors.T


def _by_matrix(matrix: Callable[[Signals], Any]) -> Callable[..., np.ndarray]:
    def ranked(signals: Signals, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
        n = len(signals.snapshot)
        return np.asarray((weighted(histories, n, given["decay"], 50) @ matrix(signals)).todense())

    return ranked


def _ease(signals: Signals, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    return signals.modelled(weighted(histories, len(signals.snapshot), given["decay"], 50), signals.linear.ease)


def _star(signals: Signals, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    """STAR's retrieval (arXiv 2410.16458): likeness in content and co-occurrence mixed, decayed over the recent history."""
    vectors = np.asarray(signals.snapshot.vectors)
    recent = weighted(histories, len(vectors), given["decay"], 10)
    together = np.asarray((recent @ signals.counts.goes_with).todense())
    return given["content"] * np.asarray((recent @ vectors) @ vectors.T) + (1 - given["content"]) * together


def _popular(signals: Signals, _: Scores, histories: Sequence[np.ndarray], __: Any) -> np.ndarray:
    counts = signals.counts
    return np.tile(counts.recent + 1e-3 * counts.popularity, (len(histories), 1))


FROM_SIGNALS = frozenset({"collaborative", "lexical", "last-item"})
"""Those that read the signals' scores."""
_SINGLES: Mapping[str, Callable[..., np.ndarray]] = {
    "collaborative": _collaborative,
    "dense": _dense,
    "lexical": lambda _, scores, __, ___: scores["titles"],
    "popular": _popular,
    "last-item": lambda _, scores, __, ___: scores["last"],
    "mean-history": _mean,
    "item-knn": _by_matrix(lambda signals: signals.counts.goes_with),
    "ease": _ease,
    "star": _star,
    "mentioned": lambda signals, scores, histories, _: _dense(signals, scores, histories, {"decay": 1.0}),
}
