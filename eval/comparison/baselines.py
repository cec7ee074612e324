"""Baselines: simple rankers that no request is served by, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent.retrieval.signals import Signals, weighted

RECENT = 10
"""Latest items of a history that are read, where all of it would be too much."""
BLOCK = 8192
"""Items of the catalog that are compared with at once."""
PARAMETERS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "mean-history": {"decay": (1.0, 0.8, 0.6)},
    "item-knn": {"decay": (1.0, 0.9, 0.7, 0.5)},
    "ease": {"decay": (1.0, 0.9, 0.7, 0.5)},
    "star": {"decay": (0.9, 0.7, 0.5), "content": (0.3, 0.5, 0.7)},
}
"""The parameters of each baseline, and the values that tuning tries; the first are the defaults."""


def baseline_scores(
    name: str, signals: Signals, histories: Sequence[np.ndarray], given: Mapping[str, float]
) -> np.ndarray:
    """Return (b, n) scores of a baseline for these histories (snapshot rows, oldest first); 0 says nothing of an item.

    Args:
        name: one of BASELINES.
        signals: fitted before the cut.
        histories: b histories.
        given: parameters other than the defaults.
    """
    parameters = {name: values[0] for name, values in PARAMETERS.get(name, {}).items()} | dict(given)
    return BASELINES[name](signals, histories, parameters)


def nearest(vectors: np.ndarray, histories: Sequence[np.ndarray], decay: float = 1.0) -> np.ndarray:
    """(b, n): the best decayed cosine to any recent item of the history, never to itself."""
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


def _last_item(signals: Signals, histories: Sequence[np.ndarray], _: Mapping[str, float]) -> np.ndarray:
    return nearest(signals.snapshot.vectors, [history[-1:] for history in histories])


def _mean_history(signals: Signals, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    vectors = np.asarray(signals.snapshot.vectors)
    return (weighted(histories, len(vectors), given["decay"], RECENT) @ vectors) @ vectors.T


def _item_knn(signals: Signals, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    read = weighted(histories, len(signals.snapshot), given["decay"], 50)
    return np.asarray((read @ signals.counts.goes_with).todense())


def _ease(signals: Signals, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    return signals.modelled(weighted(histories, len(signals.snapshot), given["decay"], 50), signals.linear.ease)


def _star(signals: Signals, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    """STAR's retrieval (arXiv 2410.16458): likeness in content and co-occurrence mixed, decayed over the recent history."""
    vectors = np.asarray(signals.snapshot.vectors)
    recent = weighted(histories, len(vectors), given["decay"], RECENT)
    together = np.asarray((recent @ signals.counts.goes_with).todense())
    return given["content"] * np.asarray((recent @ vectors) @ vectors.T) + (1 - given["content"]) * together


def _mentioned(signals: Signals, histories: Sequence[np.ndarray], _: Mapping[str, float]) -> np.ndarray:
    """The items nearest to those that a dialogue mentions, which stand for its history."""
    return nearest(signals.snapshot.vectors, histories)


BASELINES: Mapping[str, Callable[[Signals, Sequence[np.ndarray], Mapping[str, Any]], np.ndarray]] = {
    "last-item": _last_item,
    "mean-history": _mean_history,
    "item-knn": _item_knn,
    "ease": _ease,
    "star": _star,
    "mentioned": _mentioned,
}
