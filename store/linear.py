"""Linear item-item models, solved in closed form over the items that have been chosen.

EASE: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019. The transition models are ridge regressions of
what is chosen next on what was chosen before, both decayed by their distance (the SLIT of Choi et al., "Session-aware Linear
Item-Item Models", WWW 2021), drawn towards likeness in content, so that items with few events are placed by their text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from store.sparse import rows_summing_to_one

LARGEST = 6000
"""Items of the dense models, the most chosen ones: a model takes 4 bytes times the square of this, and seconds to solve."""
PREFIXES = 60
"""Transitions read of one person, the latest."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a transition model looks: decays in steps, and the most steps, into past and future."""

    past: float
    future: float
    most_past: int
    most_future: int


REACHES = {"next": Reach(2.0, 1.0, 20, 10), "later": Reach(20.0, 20.0, 50, 20)}


@dataclass(frozen=True, eq=False)
class Linear:
    """`items` (m,): the snapshot rows modelled. `ease`, `next`, `later` (m, m) float32: weight of a history item (row) for a
    candidate (column)."""

    items: np.ndarray
    ease: np.ndarray
    next: np.ndarray
    later: np.ndarray

    @classmethod
    def fit(cls, sequences: list[np.ndarray], near: Any, n: int, ridge: float = 20.0, pull: float = 15.0) -> Linear:
        """Solve all three over people's sequences of rows, oldest first; `near` is `Content.near`.

        `ridge` is EASE's lambda. `pull` times the mean diagonal is how strongly transitions are drawn to content.
        """
        from scipy import sparse

        flat = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int64)
        counts = np.bincount(flat, minlength=n)
        items = np.flatnonzero(counts)
        items = np.sort(items[np.argsort(-counts[items], kind="stable")[:LARGEST]])
        place = np.full(n, -1)
        place[items] = np.arange(len(items))
        people = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
        chosen = sparse.csr_matrix((np.ones(len(flat), np.float32), (people, flat)), shape=(len(sequences), n))
        chosen = chosen[:, items].sign()
        prior = 0.3 * rows_summing_to_one(near)[items][:, items].toarray()
        solved = [_transitions(sequences, place, len(items), reach, prior, pull) for reach in REACHES.values()]
        return cls(items, _ease((chosen.T @ chosen).toarray(), ridge), *solved)

    def save(self, folder: Path) -> None:
        """Write the matrices into the folder."""
        for name in ("items", "ease", "next", "later"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Linear:
        """The matrices of the folder, mapped from disk."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("items", "ease", "next", "later")))


def _ease(gram: np.ndarray, ridge: float) -> np.ndarray:
    """B = I - P diag(P)^-1 with P = (X'X + ridge I)^-1; the diagonal is zero."""
    if not len(gram):
        return np.zeros((0, 0), dtype=np.float32)
    gram = gram.astype(np.float32)
    np.fill_diagonal(gram, gram.diagonal() + ridge)
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def _transitions(
    sequences: list[np.ndarray], place: np.ndarray, m: int, reach: Reach, prior: np.ndarray, pull: float
) -> np.ndarray:
    """B = (S'S + l I)^-1 (S'T + l prior): decayed pasts S, decayed futures T, l = pull times the mean diagonal of S'S."""
    past, future = _pasts_and_futures(sequences, place, m, reach)
    if past is None:
        return np.zeros((m, m), dtype=np.float32)
    gram = (past.T @ past).toarray().astype(np.float32)
    towards = (past.T @ future).toarray().astype(np.float32)
    strength = pull * max(float(gram.diagonal().mean()), 1e-6)
    np.fill_diagonal(gram, gram.diagonal() + strength)
    return np.linalg.solve(gram, towards + strength * prior).astype(np.float32)


def _pasts_and_futures(sequences: list[np.ndarray], place: np.ndarray, m: int, reach: Reach) -> tuple[Any, Any]:
    """A row for each cut of each sequence into past and future, everybody's cuts weighing as much as one over their root."""
    from scipy import sparse

    back, on = np.exp(-np.arange(reach.most_past) / reach.past), np.exp(-np.arange(reach.most_future) / reach.future)
    parts: tuple[list[np.ndarray], ...] = ([], [], [], [], [], [])
    row = 0
    for sequence in sequences:
        cuts = range(max(1, len(sequence) - PREFIXES), len(sequence))
        weight = 1 / np.sqrt(max(1, len(cuts)))
        for cut in cuts:
            before = sequence[max(0, cut - reach.most_past) : cut][::-1]
            after = sequence[cut : cut + reach.most_future]
            for at, (rows, decay) in enumerate(((before, back), (after, on))):
                parts[3 * at].append(np.full(len(rows), row))
                parts[3 * at + 1].append(rows)
                parts[3 * at + 2].append(weight * decay[: len(rows)])
            row += 1
    if not row:
        return None, None
    made = []
    for at in (0, 3):
        rows, columns, values = (np.concatenate(part) for part in parts[at : at + 3])
        columns = place[columns]
        known = columns >= 0
        made.append(
            sparse.csr_matrix((values[known].astype(np.float32), (rows[known], columns[known])), shape=(row, m))
        )
    return made[0], made[1]
