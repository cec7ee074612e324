"""Two encoders of a store side by side on validation cases: what is found by their vectors alone, by everything that is fused, and
by titles that are searched for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent.ranking.learned_fusion import SEEDS, Learned
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.comparison.arms import Bench, Lists
from eval.comparison.llm_cache import Progress
from eval.data.cases import Cases
from eval.fitting.cross_fitting import lessons
from eval.fitting.signals import fit
from eval.training.verdict import Verdict
from eval.tuning.grid_search import Say, ranked
from eval.tuning.tune import repeating
from store import Catalog
from store.embedder import Embedder
from store.snapshot import Snapshot

FUSIONS = SEEDS[:3]
"""Models that fusion is learned by here, for each encoder: enough to tell, in a third of the time."""
SEARCHES = 500
"""Titles that are searched for, to see that requests in words find as much as before."""
SURE = 1.645
"""Standard errors by which title search may not be worse (one-sided p < .05)."""


def compared(
    known: Cases, present: Catalog, trained: Catalog, store: Path, seed: int, say: Say, progress: Progress
) -> Verdict:
    """The arms `dense` and `base` by the trained vectors and by the present ones, fusion learned with each on the same steps by the
    trees that tuning found for the present ones, or the default ones.

    It paid where `dense` is surely ahead in recall@50 and `base` in recall@100: `base` is what recommends, and what anything
    new has to add to.
    """
    tuned = Tuned.load(store)
    settings = tuned.applied(Settings.load(), store)
    snapshot = present.snapshot()
    lists: dict[str, Lists] = {}
    for name, catalog in ((", trained", trained), ("", present)):
        say(f"judging what is fused with the {'trained' if name else 'present'} vectors")
        for arm, found in _found(known, catalog, settings, tuned.evidence.get("trees", {}), seed, progress).items():
            # Items may be added meanwhile; what pays is then not put in force.
            lists[arm + name] = [[snapshot.rows[id] for id in ids if id in snapshot.rows] for ids in found]
    pairs = [(f"{arm}, trained", arm) for arm in ("dense", "base")]
    decisive = [(*pair, measure) for pair, measure in zip(pairs, ("recall@50", "recall@100"), strict=True)]
    return Verdict.of(known.cases, lists, snapshot.ids, pairs, decisive)


def _found(
    known: Cases, catalog: Catalog, settings: Settings, trees: Mapping[str, Any], seed: int, progress: Progress
) -> dict[str, list[list[str]]]:
    """The ids that `dense` and `base` rank for each case by the vectors of this catalog."""
    signals, repeats = fit(known, catalog), repeating(known)
    taught = lessons(known, catalog, repeats=repeats, seed=seed, progress=progress)
    fusion = Learned.fit(*taught, seeds=FUSIONS, **trees) if taught[1].any() else None
    bench = Bench(signals, fusion, settings.weights, {"dense": {"decay": settings.decay}}, repeats)
    lists = ranked(bench, ["dense", "base"], known.cases)
    ids = bench.snapshot.ids
    return {arm: [[ids[row] for row in rows] for rows in found] for arm, found in lists.items()}


def searched(
    snapshot: Snapshot, after: np.ndarray, present: Embedder, trained: Embedder, seed: int
) -> tuple[dict[str, float], bool]:
    """How often a title finds its own item first, by both encoders; and whether that has become worse by more than luck.

    `after` are the trained vectors of the snapshot's items, (n, dim).
    """
    rows = np.random.default_rng(seed).permutation(len(snapshot))[:SEARCHES]
    titles = [snapshot.titles[row] for row in rows]
    first = {}
    for name, vectors, embedder in (("present", snapshot.vectors, present), ("trained", after, trained)):
        scores = embedder.encode_queries(titles) @ np.asarray(vectors).T
        first[name] = (scores > scores[np.arange(len(rows)), rows][:, None]).sum(axis=1) == 0
    lost = first["present"].astype(np.float64) - first["trained"]
    worse = bool(lost.mean() > SURE * lost.std() / np.sqrt(len(lost)))
    return {name: float(own.mean()) for name, own in first.items()}, worse
