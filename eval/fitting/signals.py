"""Fitting for a comparison: signals on the events before the cut alone, and cases as rows of the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from agent.ranking.features import Candidates, candidates
from agent.retrieval.signals import Signals
from eval.data.cases import Case, Cases
from store import Catalog
from store.content import Content
from store.embedder import turned
from store.history import interactions_of
from store.snapshot import Snapshot

BATCH = 64
TURNS = "turns.npy"
"""Beside a trained encoder: see `turns_of`."""


def fit(cases: Cases, catalog: Catalog, turn: np.ndarray | None = None) -> Signals:
    """The signals that these cases may be answered with: of `cases.events`, and of nothing the store's history holds. With `turn`,
    (dim, dim), histories are read by the catalog's vectors turned by it."""
    snapshot = catalog.snapshot()
    content = Content.of(catalog, snapshot)
    if turn is not None:
        snapshot = replace(snapshot, vectors=turned(snapshot.vectors, turn))
    return Signals.fit(interactions_of(cases.events), snapshot, content)


def turns_of(catalog: Catalog) -> np.ndarray | None:
    """(FOLDS, dim, dim): for each part of the people what turns a trained encoder's vectors into those of one that has not learned
    from their steps. None where the encoder was not trained here."""
    file = None if catalog.embedder.remote else catalog.embedder.folder / TURNS
    return np.load(file) if file and file.is_file() else None


def histories(cases: Sequence[Case], snapshot: Snapshot) -> list[np.ndarray]:
    """Each case's known items as snapshot rows, oldest first; what is not in the catalog is left out."""
    return [np.array([snapshot.rows[id] for id in c.known if id in snapshot.rows], dtype=np.int64) for c in cases]


def batches(n: int) -> Iterator[slice]:
    """Slices that cover n cases."""
    return (slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def table(cases: Cases, signals: Signals, *, repeats: bool) -> tuple[Candidates, np.ndarray]:
    """All the cases' candidates with their features, and which of them are targets, (r,) bool."""
    return table_of(cases.cases, signals, repeats=repeats)


def table_of(
    cases: Sequence[Case], signals: Signals, *, repeats: bool, beside: Sequence[np.ndarray] | None = None
) -> tuple[Candidates, np.ndarray]:
    """`table` of some cases; `beside` are rows that others than the signals bring for each."""
    rows = signals.snapshot.rows
    read = histories(cases, signals.snapshot)
    made = [
        candidates(signals, read[at], repeats=repeats, beside=None if beside is None else beside[at])
        for at in batches(len(read))
    ]
    case = np.concatenate([part.case + at.start for part, at in zip(made, batches(len(read)), strict=True)])
    item = np.concatenate([part.item for part in made])
    features = np.concatenate([part.features for part in made])
    n = len(rows)
    targets = [row * n + rows[id] for row, c in enumerate(cases) for id in c.targets if id in rows]
    return Candidates(case, item, features, made[0].names), np.isin(case * n + item, targets)
