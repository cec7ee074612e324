"""Fitting for a comparison: signals and sources of the events before the cut alone, and cases as rows of the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from agent.ranking.features import Candidates, candidates
from agent.retrieval.signals import Signals
from agent.retrieval.sources import Sources
from eval.data.cases import Case, Cases
from store import Catalog
from store.content import Content
from store.embedder import transform
from store.history import positive_interactions
from store.lexical import Lexical
from store.snapshot import Snapshot

BATCH = 64
TURNS = "turns.npy"
"""File next to a trained encoder: see `turns_of`."""


def fit(cases: Cases, catalog: Catalog, turn: np.ndarray | None = None) -> Signals:
    """Return the signals that these cases may be answered with: of `cases.events`, and of nothing that the store's history holds.

    With `turn`, (dim, dim), histories are read by the catalog's vectors multiplied by it.
    """
    snapshot = catalog.snapshot()
    content = Content.of(catalog, snapshot)
    if turn is not None:
        snapshot = replace(snapshot, vectors=transform(snapshot.vectors, turn))
    return Signals.fit(positive_interactions(cases.events), snapshot, content)


def fit_sources(cases: Cases, catalog: Catalog) -> Sources:
    """Return what the recommender retrieves from, as it was before the cut: see `fit`."""
    signals = fit(cases, catalog)
    return Sources(catalog, signals.snapshot, signals.counts, Lexical.of(catalog, signals.snapshot), signals)


def turns_of(catalog: Catalog) -> np.ndarray | None:
    """Return (FOLDS, dim, dim): for each fold of the users the matrix that turns a trained encoder's vectors into those of an
    encoder that did not learn from their steps. None where the encoder was not trained here."""
    file = None if catalog.embedder.remote else catalog.embedder.folder / TURNS
    return np.load(file) if file and file.is_file() else None


def histories(cases: Sequence[Case], snapshot: Snapshot) -> list[np.ndarray]:
    """Return each case's known items as snapshot rows, oldest first; items that are not in the catalog are left out."""
    return [np.array([snapshot.rows[id] for id in c.known if id in snapshot.rows], dtype=np.int64) for c in cases]


def batches(n: int) -> Iterator[slice]:
    """Yield slices that cover n cases."""
    return (slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def allowed_rows(cases: Sequence[Case], snapshot: Snapshot, repeats: bool) -> np.ndarray:
    """Return (b, n) bool: the items that may be recommended for each case; without `repeats` none that the user has seen."""
    allowed = np.tile(~snapshot.hidden, (len(cases), 1))
    if not repeats:
        for row, case in enumerate(cases):
            allowed[row, snapshot.rows_of(case.excluded)] = False
    return allowed


def table(
    cases: Sequence[Case], signals: Signals, *, repeats: bool, without: str = ""
) -> tuple[Candidates, np.ndarray]:
    """Return all the cases' candidates with their features, and which of them are targets, (r,) bool.

    Args:
        cases: the cases.
        signals: fitted before their cut.
        repeats: whether history items may come back.
        without: a channel whose signals are to say nothing.
    """
    snapshot = signals.snapshot
    read = histories(cases, snapshot)
    made = []
    for at in batches(len(read)):
        part = candidates(signals, read[at], allowed_rows(cases[at], snapshot, repeats), without)
        made.append(replace(part, case=part.case + at.start))
    whole, n = join_tables(made), len(snapshot)
    targets = [row * n + snapshot.rows[id] for row, c in enumerate(cases) for id in c.targets if id in snapshot.rows]
    return whole, np.isin(whole.case * n + whole.item, targets)


def join_tables(parts: Sequence[Candidates]) -> Candidates:
    """Return the candidates of all parts, one part after the other."""
    case, item, features = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("case", "item", "features")
    )
    return Candidates(case, item, features, parts[0].names)


def take_rows(whole: Candidates, rows: np.ndarray) -> Candidates:
    """Return these rows of the candidates, in this order."""
    return Candidates(whole.case[rows], whole.item[rows], whole.features[rows], whole.names)
