"""Ablation: learned fusion refitted without one channel (`full-x`), or on the untrained encoder's vectors (`x-retriever`), so
that the remaining features can make up for the missing ones."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from agent.ranking.features import Candidates, channel_of
from agent.ranking.learned_fusion import FILE, Learned
from agent.ranking.tuned import Tuned
from eval.data.leakage import open_measured_catalog
from eval.data.read_cases import load_production_cases
from eval.fitting.cross_fitting import lessons
from store import Catalog

MOST_CASES = 6000
"""Most validation cases that are looked at: memory grows with them."""


def refitted(dataset: Path, tuned: Tuned, folder: Path, channel: str, former: Catalog | None = None) -> Learned:
    """Return learned fusion, fitted as tuning did and on the same steps, without one channel or the trained encoder; kept in the
    store.

    Args:
        dataset: the dataset folder.
        tuned: what tuning found.
        folder: the store.
        channel: the channel to leave out, or "".
        former: the catalog with the untrained encoder's vectors, to leave out the trained encoder.
    """
    left_out = [*(["retriever"] if former is not None else []), *([channel] if channel else [])]
    kept = folder / "tuned" / "-".join(["without", *left_out])
    if not (kept / FILE).is_file():
        known, evidence = load_production_cases(dataset), tuned.evidence
        with nullcontext(former) if former is not None else open_measured_catalog(folder, known.on) as catalog:
            taught, chosen = lessons(
                known,
                catalog,
                repeats=evidence["repeats"],
                seed=evidence["seed"],
                without=channel,
            )
        Learned.fit(without_features(taught, channel), chosen, **evidence["trees"]).save(kept)
    return Learned.load(kept)


def without_features(table: Candidates, channel: str) -> Candidates:
    """Return the candidates with this channel's features set to 0: trees then find nothing to split on."""
    features = table.features.copy()
    features[:, [channel_of(name) == channel for name in table.names]] = 0
    return replace(table, features=features)
