"""The arms of a comparison: ways to rank the catalog for a history, from one signal to everything fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.fusion import fuse
from agent.learned import Learned
from agent.signals import Signals, weighted
from eval.errors import EvalError
from store import Hit

CHANNELS = ("queries", "named", "dense", "collaborative", "lexical", "popular")
BASELINES = ("last-item", "mean-history", "item-knn", "ease", "star")
MODEL = frozenset({"queries", "named", "full"})
"""Arms that call a language model."""
FUSED = ("dense", "collaborative", "lexical", "popular")
"""What `base` fuses by rank where learned fusion is off."""
DEFAULT = ("base", "dense", "collaborative", "lexical", "popular", *BASELINES)

PARAMETERS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "mean-history": {"decay": (1.0, 0.8, 0.6)},
    "item-knn": {"decay": (1.0, 0.9, 0.7, 0.5)},
    "ease": {"decay": (1.0, 0.9, 0.7, 0.5)},
    "star": {"decay": (0.9, 0.7, 0.5), "content": (0.3, 0.5, 0.7)},
    "dense": {"decay": (1.0, 0.9, 0.8, 0.6)},
}
"""What each arm can be tuned in, and the values that are tried; the first are the defaults."""

Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Bench:
    """What model-free arms rank with: signals fitted before the cut, and what tuning found (its own fitting included)."""

    signals: Signals
    learned: Learned | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    repeats: bool = False

    def rank(self, arms: Sequence[str], histories: Sequence[np.ndarray], k: int) -> dict[str, list[list[int]]]:
        """For each model-free arm the k best snapshot rows of each history; the signals are computed once for all."""
        wanted = {part for arm in arms for part in parts(arm)}
        singles = wanted - {"base"} | (set() if self.learned or "base" not in wanted else set(FUSED))
        scores = self.signals.scores(histories) if singles & _FROM_SIGNALS else {}
        lists = {arm: self._top(self.arm_scores(arm, scores, histories), histories, k) for arm in singles}
        if "base" in wanted:
            lists["base"] = self._base(lists, histories, k)
        return {arm: lists[arm] if arm in lists else self.fused(parts(arm), lists, k) for arm in arms}

    def arm_scores(self, arm: str, scores: Scores, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(b, n) scores of one single arm."""
        return _ARMS[arm](self, scores, histories, self._parameters(arm))

    def fused(self, arms: Sequence[str], lists: Mapping[str, list[list[int]]], k: int) -> list[list[int]]:
        """Reciprocal ranks of these arms' lists, by the weights in force (1 where none is set)."""
        weights = {arm: self.weights.get(arm, 1.0) for arm in arms}
        fused = []
        for row in range(len(next(iter(lists.values())))):
            found = {arm: [Hit(str(item), 0.0) for item in lists[arm][row]] for arm in arms}
            fused.append([int(c.id) for c in fuse(found, weights)[:k]])
        return fused

    def _base(self, lists: Mapping[str, list[list[int]]], histories: Sequence[np.ndarray], k: int) -> list[list[int]]:
        if self.learned is None:
            return self.fused(FUSED, lists, k)
        ranked = self.learned.rank(self.signals, histories, k, repeats=self.repeats)
        return [[row for row, _ in best] for best in ranked]

    def _parameters(self, arm: str) -> dict[str, float]:
        return {name: values[0] for name, values in PARAMETERS.get(arm, {}).items()} | dict(self.baselines.get(arm, {}))

    def _top(self, scores: np.ndarray, histories: Sequence[np.ndarray], k: int) -> list[list[int]]:
        scores = np.where(self.signals.snapshot.hidden, -np.inf, scores)
        if not self.repeats:
            for row, history in enumerate(histories):
                scores[row, history] = -np.inf
        k = min(k, scores.shape[1])
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(scores, best, 1)
        order = np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), 1)
        # What an arm says nothing of is not ranked: a list padded with the first rows of the catalog would measure those.
        return [[int(item) for item in items if scores[row, item] > 0] for row, items in enumerate(order)]


def parts(arm: str) -> tuple[str, ...]:
    """The single arms that an arm fuses; the arm alone where it fuses none. Raises EvalError for an unknown one."""
    found = tuple(arm.split("+"))
    for part in found:
        if part not in {*CHANNELS, *BASELINES, "base", "full"}:
            known = ", ".join((*CHANNELS, *BASELINES, "base", "full"))
            raise EvalError(f'there is no arm "{part}"; there are {known}, and a+b fuses two')
    return found


def _scaled(scores: np.ndarray) -> np.ndarray:
    return scores / np.maximum(scores.max(axis=1, keepdims=True), 1e-9)


def _collaborative(_: Bench, scores: Scores, __: Any, ___: Any) -> np.ndarray:
    return _scaled(scores["next"]) + _scaled(scores["later"]) + _scaled(scores["alike"])


def _dense(bench: Bench, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    """Each recent item is an interest of its own: the best decayed cosine to any of them, never to itself."""
    vectors = np.asarray(bench.signals.snapshot.vectors)
    found = np.zeros((len(histories), len(vectors)), dtype=np.float32)
    for row, history in enumerate(histories):
        recent = history[-10:]
        if len(recent):
            likeness = vectors[recent] @ vectors.T * (given["decay"] ** np.arange(len(recent) - 1, -1, -1))[:, None]
            likeness[np.arange(len(recent)), recent] = 0
            found[row] = likeness.max(axis=0)
    return found


def _mean(bench: Bench, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    vectors = np.asarray(bench.signals.snapshot.vectors)
    return (weighted(histories, len(vectors), given["decay"], 10) @ vectors) @ vectors.T


def _by_matrix(matrix: Callable[[Signals], Any]) -> Callable[..., np.ndarray]:
    def ranked(bench: Bench, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
        n = len(bench.signals.snapshot)
        return np.asarray((weighted(histories, n, given["decay"], 50) @ matrix(bench.signals)).todense())

    return ranked


def _ease(bench: Bench, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    return bench.signals._linear(
        weighted(histories, len(bench.signals.snapshot), given["decay"], 50), bench.signals.linear.ease
    )


def _star(bench: Bench, _: Scores, histories: Sequence[np.ndarray], given: Mapping[str, float]) -> np.ndarray:
    """STAR's retrieval (arXiv 2410.16458): likeness in content and co-occurrence mixed, decayed over the recent history."""
    vectors = np.asarray(bench.signals.snapshot.vectors)
    recent = weighted(histories, len(vectors), given["decay"], 10)
    together = np.asarray((recent @ bench.signals.counts.goes_with).todense())
    return given["content"] * np.asarray((recent @ vectors) @ vectors.T) + (1 - given["content"]) * together


def _popular(bench: Bench, _: Scores, histories: Sequence[np.ndarray], __: Any) -> np.ndarray:
    counts = bench.signals.counts
    return np.tile(counts.recent + 1e-3 * counts.popularity, (len(histories), 1))


_FROM_SIGNALS = frozenset({"collaborative", "lexical", "last-item"})
_ARMS: Mapping[str, Callable[..., np.ndarray]] = {
    "collaborative": _collaborative,
    "dense": _dense,
    "lexical": lambda _, scores, __, ___: scores["titles"],
    "popular": _popular,
    "last-item": lambda _, scores, __, ___: scores["last"],
    "mean-history": _mean,
    "item-knn": _by_matrix(lambda signals: signals.counts.goes_with),
    "ease": _ease,
    "star": _star,
}
