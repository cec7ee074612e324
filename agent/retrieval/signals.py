"""Signals: item scores from a batch of histories, each computed in one way; the features of learned fusion.

No signal scores an item by its similarity to itself: a history item can only come back by what other people did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from store import Catalog, History
from store.cache import delete_cached, load_or_build
from store.content import Content
from store.cooccurrence import Cooccurrence, sequences
from store.history import Interactions
from store.linear import REACHES, Linear
from store.snapshot import Snapshot
from store.sparse import rows_summing_to_one, strongest

SHORT = (0.7, 20)
LONG = (0.9, 50)
"""Decay of a step, and most items of a history: for signals that read its end, and for those that read all of it."""
SPREAD = 0.5
"""Weight of a history's neighbours in content in the search for people with similar histories."""
AROUND = 0.2
"""Share of a transition's weight that the neighbours in content of the next item get."""

CHANNEL_OF = {
    "next": "collaborative",
    "later": "collaborative",
    "ease": "collaborative",
    "alike": "collaborative",
    "followed": "collaborative",
    "preceded": "collaborative",
    "together": "collaborative",
    "given": "collaborative",
    "near_given": "collaborative",
    "given_near": "collaborative",
    "last": "dense",
    "mean": "dense",
    "last_untrained": "dense",
    "mean_untrained": "dense",
    "near": "dense",
    "titles": "lexical",
}
"""The signals, in a fixed order, each with its channel. With a trained encoder there are those of the untrained vectors too."""


@dataclass(frozen=True, eq=False)
class Signals:
    """The statistics that signals are computed from, fitted on one set of events and one snapshot."""

    snapshot: Snapshot
    content: Content
    counts: Cooccurrence
    linear: Linear

    @cached_property
    def near(self) -> Any:
        """(n, n) CSR: neighbours in content, rows summing to one."""
        return rows_summing_to_one(self.content.near)

    @cached_property
    def _chosen_next(self) -> Any:
        return (self.counts.followed_by + 0.5 * self.counts.preceded_by + self.counts.given).tocsr()

    @cached_property
    def _near_given(self) -> Any:
        return strongest((self.content.near @ self._chosen_next).tocsr(), 200)

    @cached_property
    def _given_near(self) -> Any:
        return strongest((self._chosen_next @ self.content.near).tocsr(), 200)

    @classmethod
    def fit(cls, interactions: Interactions, snapshot: Snapshot, content: Content) -> Signals:
        """Fit the signals on these events alone."""
        counts = Cooccurrence.fit(interactions, snapshot)
        return cls(
            snapshot, content, counts, Linear.fit(sequences(interactions, snapshot), content.near, len(snapshot))
        )

    @classmethod
    def of(cls, catalog: Catalog, history: History, counts: Cooccurrence, *, refit: bool = False) -> Signals:
        """Return the signals of a store's events, with its linear models from the cache.

        Counts follow every event. The linear models take seconds to solve, and one event changes them little: they stay those of
        the last fit until the catalog changes, or with `refit`.

        Args:
            catalog: the items.
            history: everyone's events.
            counts: the counts of these events.
            refit: whether the linear models are to be fitted again.
        """
        snapshot = catalog.snapshot()
        content = Content.of(catalog, snapshot)

        def fit() -> Linear:
            return Linear.fit(sequences(history.interactions(), snapshot), content.near, len(snapshot))

        if refit and catalog.folder:
            delete_cached(catalog.folder, "linear")
        linear = load_or_build(catalog.cache_folder, "linear", snapshot.version, Linear, fit)
        return cls(snapshot, content, counts, linear)

    def scores(self, histories: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return each signal's (b, n) float32 scores for these histories (snapshot rows, oldest first); 0 says nothing."""
        n, counts, content = len(self.snapshot), self.counts, self.content
        short, long = weighted(histories, n, *SHORT), weighted(histories, n, *LONG)
        found = {
            "followed": short @ counts.followed_by,
            "preceded": short @ counts.preceded_by,
            "together": short @ counts.goes_with,
            "given": long @ counts.given,
            "near_given": short @ self._near_given,
            "given_near": short @ self._given_near,
            "near": long @ content.near,
            "titles": short @ content.titles,
            "alike": counts.alike(long + SPREAD * (long @ self.near)),
        }
        scores = {name: matrix.toarray().astype(np.float32, copy=False) for name, matrix in found.items()}
        scores["ease"] = self.modelled(long, self.linear.ease)
        for name, reach in REACHES.items():
            read = weighted(histories, n, float(np.exp(-1 / reach.past)), reach.most_past)
            own = self.modelled(read, getattr(self.linear, name))
            around = (self._near_modelled.T @ own[:, self.linear.items].T).T
            scores[name] = np.add(own, AROUND * around, out=own)
        scores["last"], scores["mean"] = _dense(histories, short, self.snapshot.vectors)
        if self.snapshot.untrained is not None:
            scores["last_untrained"], scores["mean_untrained"] = _dense(histories, short, self.snapshot.untrained)
        return {name: scores[name] for name in CHANNEL_OF if name in scores}

    @cached_property
    def _near_modelled(self) -> Any:
        return self.near[self.linear.items]

    def modelled(self, weights: Any, model: np.ndarray) -> np.ndarray:
        """Return the (b, n) float32 scores of one of the linear models for (b, n) weighted histories."""
        items = self.linear.items
        scores = np.zeros((weights.shape[0], len(self.snapshot)), dtype=np.float32)
        if len(items):
            scores[:, items] = weights[:, items] @ model
        return scores


def _dense(histories: Sequence[np.ndarray], short: Any, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine to the last item, and to the decayed mean, (b, n) each; 0 for the history's own items."""
    vectors = np.asarray(vectors)
    last = np.stack([vectors[h[-1]] if len(h) else np.zeros(vectors.shape[1], np.float32) for h in histories])
    mean = short @ vectors
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
    scores = last @ vectors.T, mean @ vectors.T
    for found in scores:
        for row, history in enumerate(histories):
            found[row, history] = 0
        np.maximum(found, 0, out=found)
    return scores


def weighted(histories: Sequence[np.ndarray], n: int, decay: float, most: int) -> Any:
    """Return (b, n) CSR: the last items of each history, weighing decay ** age; an item chosen twice counts as its latest.

    Args:
        histories: b histories, snapshot rows, oldest first.
        n: the number of items of the catalog.
        decay: the weight of an item relative to the next newer one.
        most: how many items of each history are read.
    """
    from scipy import sparse

    rows, columns, values = [], [], []
    for row, history in enumerate(histories):
        last, first_seen = np.unique(np.asarray(history[-most:], dtype=np.int64)[::-1], return_index=True)
        rows.append(np.full(len(last), row))
        columns.append(last)
        values.append(decay ** first_seen.astype(np.float64))
    if not rows:
        return sparse.csr_matrix((0, n), dtype=np.float32)
    flat = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(flat, shape=(len(histories), n))
