"""Learned fusion without one channel (`full-x`), or on the vectors of before a training (`x-retriever`): refitted, so that what is
left can make up for what is gone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from agent.ranking.features import Candidates
from agent.ranking.learned_fusion import FILE, Learned
from agent.ranking.tuned import Tuned
from agent.retrieval.signals import CHANNEL_OF, Signals
from eval.data.leakage import measured_catalog
from eval.data.read_cases import known_in_use
from eval.fitting.cross_fitting import lessons
from store import Catalog

MOST_CASES = 6000
"""Validation cases that are looked at: memory grows with them, and more tell little."""

OF_CHANNEL = {
    "dense": ("cosine",),
    "popular": ("popular", "recent", "trend", "late", "known", "neighbours", "history popular", "history last popular"),
}
"""How the names of features begin that a channel stands for, beside those of its signals."""


def without(signals: Signals, channel: str) -> Signals:
    """The signals, those of one channel silent."""
    return cast("Signals", _Without(signals, channel))


class _Without:
    """Signals of which those of one channel say nothing of any item."""

    def __init__(self, signals: Signals, channel: str) -> None:
        self._signals, self._channel = signals, channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._signals, name)

    def scores(self, histories: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """As `Signals.scores`, with zeros for the channel that is left out."""
        scores = self._signals.scores(histories)
        return {name: np.zeros_like(own) if CHANNEL_OF[name] == self._channel else own for name, own in scores.items()}


def refitted(dataset: Path, tuned: Tuned, folder: Path, channel: str, former: Catalog | None = None) -> Learned:
    """Learned fusion trained as tuning did, on the same steps, but without this channel and what training taught where the catalog
    `former` of before it is given; kept beside it."""
    kept = (
        folder
        / "tuned"
        / "-".join(["without", *(["retriever"] if former is not None else []), *([channel] if channel else [])])
    )
    if not (kept / FILE).is_file():
        known, evidence = known_in_use(dataset), tuned.evidence
        with nullcontext(former) if former is not None else measured_catalog(folder, known.on) as catalog:
            taught, chosen = lessons(
                known,
                catalog,
                repeats=evidence["repeats"],
                seed=evidence["seed"],
                silenced=partial(without, channel=channel),
            )
        Learned.fit(blinded(taught, channel), chosen, **evidence["trees"]).save(kept)
    return Learned.load(kept)


def blinded(table: Candidates, channel: str) -> Candidates:
    """The candidates with the features that this channel stands for set to 0: trees then find nothing to split on."""
    features = table.features.copy()
    features[:, [name.startswith(OF_CHANNEL.get(channel, ())) for name in table.names]] = 0
    return replace(table, features=features)
