"""Linear item-item models, solved in closed form over the items with positive events.

EASE: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019. The transition models are ridge regressions of
the next items on the previous items of a history, both decayed by distance (the SLIT of Choi et al., "Session-aware Linear
Item-Item Models", WWW 2021). They are regularised towards similarity in content, so that items with few events are placed by
their text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from store.sparse import from_entries, rows_summing_to_one

LARGEST = 6000
"""Most items in a model, the most popular ones: a model takes 4 bytes times the square of this, and seconds to solve."""
PREFIXES = 60
"""Most transitions that are read of one user, the latest."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The range of a transition model: decays in steps, and the most steps, into past and future."""

    past: float
    future: float
    most_past: int
    most_future: int


REACHES = {"next": Reach(2.0, 1.0, 20, 10), "later": Reach(20.0, 20.0, 50, 20)}


@dataclass(frozen=True, eq=False)
class Linear:
    """EASE and two transition models. `items` (m,) are the snapshot rows they cover. `ease`, `next` and `later` (m, m) float32 hold
    the weight of a history item (row) for a candidate (column)."""

    items: np.ndarray
    ease: np.ndarray
    next: np.ndarray
    later: np.ndarray

    @classmethod
    def fit(cls, sequences: list[np.ndarray], near: Any, n: int, ridge: float = 20.0, pull: float = 15.0) -> Linear:
        """Fit all three models.

        Args:
            sequences: each user's rows, oldest first.
            near: `Content.near`.
            n: the number of rows of the snapshot.
            ridge: EASE's lambda.
            pull: the strength of the transitions' regularisation towards content, as a multiple of the mean diagonal.
        """
        flat = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int64)
        counts = np.bincount(flat, minlength=n)
        items = np.flatnonzero(counts)
        items = np.sort(items[np.argsort(-counts[items], kind="stable")[:LARGEST]])
        position = np.full(n, -1)
        position[items] = np.arange(len(items))
        users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
        chosen = from_entries(1, users, flat, (len(sequences), n))[:, items].sign()
        prior = 0.3 * rows_summing_to_one(near)[items][:, items].toarray()
        solved = [_transitions(sequences, position, len(items), reach, prior, pull) for reach in REACHES.values()]
        return cls(items, _ease((chosen.T @ chosen).toarray(), ridge), *solved)


def _ease(gram: np.ndarray, ridge: float) -> np.ndarray:
    """Return B = I - P diag(P)^-1 with P = (X'X + ridge I)^-1; its diagonal is zero."""
    if not len(gram):
        return np.zeros((0, 0), dtype=np.float32)
    gram = gram.astype(np.float32)
    np.fill_diagonal(gram, gram.diagonal() + ridge)
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def _transitions(
    sequences: list[np.ndarray], position: np.ndarray, m: int, reach: Reach, prior: np.ndarray, pull: float
) -> np.ndarray:
    """Return B = (S'S + l I)^-1 (S'T + l prior): decayed pasts S, decayed futures T, l = pull times the mean diagonal of S'S.

    S and T have a row for each cut of each sequence; a cut of a sequence with c cuts weighs 1/sqrt(c).
    """
    pasts, futures, weights = [], [], []
    for sequence in sequences:
        cuts = range(max(1, len(sequence) - PREFIXES), len(sequence))
        for cut in cuts:
            pasts.append(sequence[max(0, cut - reach.most_past) : cut][::-1])
            futures.append(sequence[cut : cut + reach.most_future])
            weights.append(1 / np.sqrt(len(cuts)))
    if not weights:
        return np.zeros((m, m), dtype=np.float32)
    past = _decayed(pasts, weights, reach.past, position, m)
    future = _decayed(futures, weights, reach.future, position, m)
    gram = (past.T @ past).toarray().astype(np.float32)
    towards = (past.T @ future).toarray().astype(np.float32)
    strength = pull * max(float(gram.diagonal().mean()), 1e-6)
    np.fill_diagonal(gram, gram.diagonal() + strength)
    return np.linalg.solve(gram, towards + strength * prior).astype(np.float32)


def _decayed(parts: list[np.ndarray], weights: list[float], decay: float, position: np.ndarray, m: int) -> Any:
    """Return a row for each part, with its weight for the first item, less for each further one, (parts, m) CSR."""
    lengths = [len(part) for part in parts]
    rows = np.repeat(np.arange(len(parts)), lengths)
    columns = position[np.concatenate(parts)]
    values = np.repeat(weights, lengths) * np.exp(-np.concatenate([np.arange(n) for n in lengths]) / decay)
    known = columns >= 0
    return from_entries(values[known], rows[known], columns[known], (len(parts), m))
