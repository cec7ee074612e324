"""Compare a store's present encoder with a newly trained one on validation cases: by its vectors alone, by everything fused, and by
searching for titles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent.ranking.candidates import Fusion
from agent.ranking.learned_fusion import SEEDS, Learned
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.comparison.bench import Bench, Lists
from eval.data.cases import Cases
from eval.fitting.cross_fitting import lessons
from eval.fitting.signals import fit_sources
from eval.progress import Progress
from eval.significance import pays
from eval.training.verdict import Verdict
from eval.tuning.objective import Say
from eval.tuning.tune import repeating
from store import Catalog
from store.embedder import Embedder
from store.snapshot import Snapshot

FUSIONS = SEEDS[:3]
"""The seeds of learned fusion in this comparison: fewer than in production, in a third of the time."""
SEARCHES = 500
"""The titles to search for, which show whether requests in words work as well as before."""


def compare_encoders(
    known: Cases, present: Catalog, trained: Catalog, store: Path, seed: int, say: Say, progress: Progress
) -> Verdict:
    """Compare the arms `dense` and `base` with the vectors of the trained encoder and of the present one.

    Fusion is learned anew for each encoder, from the same pairs, with the tree parameters that tuning found for the present one
    or the default ones. The training paid if `dense` gains in recall@50 and `base`, which recommends, gains in recall@100.

    Args:
        known: the validation cases.
        present: the catalog with the vectors of the present encoder.
        trained: the catalog with the vectors of the trained encoder.
        store: the store's folder.
        seed: the seed of learned fusion.
        say: prints a line about what is done.
        progress: the progress display.
    """
    tuned = Tuned.load(store)
    settings = tuned.applied(Settings.load(), store)
    snapshot = present.snapshot()
    lists: dict[str, Lists] = {}
    for name, catalog in ((", trained", trained), ("", present)):
        say(f"judging the {'trained' if name else 'present'} encoder, alone and fused with everything else")
        for arm, found in _rank(known, catalog, settings, tuned.evidence.get("trees", {}), seed, progress).items():
            # Items may have been added in the meantime; the trained encoder is not put into use then.
            lists[arm + name] = [[id for id in ids if id in snapshot.rows] for ids in found]
    pairs = [(f"{arm}, trained", arm) for arm in ("dense", "base")]
    decisive = [(*pair, measure) for pair, measure in zip(pairs, ("recall@50", "recall@100"), strict=True)]
    return Verdict.of(known.cases, lists, pairs, decisive)


def _rank(
    known: Cases, catalog: Catalog, settings: Settings, trees: Mapping[str, Any], seed: int, progress: Progress
) -> dict[str, list[list[str]]]:
    """Return the ids that `dense` and `base` rank for each case with the vectors of this catalog."""
    repeats = repeating(known)
    examples = lessons(known, catalog, repeats=repeats, seed=seed, progress=progress)
    fusion = Learned.fit(*examples, seeds=FUSIONS, **trees) if examples[1].any() else None
    fused = Fusion(settings.weights, learned=fusion, diversity=settings.diversity)
    return Bench(fit_sources(known, catalog), fused, repeats=repeats).rank(["dense", "base"], known.cases)


def compare_title_search(
    snapshot: Snapshot, after: np.ndarray, present: Embedder, trained: Embedder, seed: int
) -> tuple[dict[str, float], bool]:
    """Return how often a title finds its own item first with each encoder, and whether the trained one is significantly worse.

    Args:
        snapshot: the items, with the vectors of the present encoder.
        after: (n, dim) the vectors of the same items by the trained encoder.
        present: the present encoder.
        trained: the trained encoder.
        seed: the seed that draws SEARCHES titles.
    """
    rows = np.random.default_rng(seed).permutation(len(snapshot))[:SEARCHES]
    titles = [snapshot.titles[row] for row in rows]
    first = {}
    for name, vectors, embedder in (("present", snapshot.vectors, present), ("trained", after, trained)):
        scores = embedder.encode_queries(titles) @ np.asarray(vectors).T
        first[name] = (scores > scores[np.arange(len(rows)), rows][:, None]).sum(axis=1) == 0
    lost = first["present"].astype(np.float64) - first["trained"]
    worse = pays(lost, [str(row) for row in rows])  # a loss of the present encoder's finds: each title is a unit
    return {name: float(own.mean()) for name, own in first.items()}, worse
