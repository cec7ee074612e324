"""Evidence: the history items that speak for a recommended item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.ranking.fusion import Candidate
from agent.retrieval.sources import Sources
from store import Item

ALIKE = 0.35
"""Cosine from which two items' texts count as similar."""
READ = 50
"""Latest history items that are looked at."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An item about to be shown, with the history items that speak for it."""

    item: Item
    candidate: Candidate
    evidence: Sequence[Item]


def evidence(sources: Sources, ids: Sequence[str], history: Sequence[str], most: int = 2) -> dict[str, list[str]]:
    """Return for each id the history items that speak for it: similar in content, or chosen by the same people.

    Args:
        sources: the vectors and counts.
        ids: recommended items.
        history: ids of liked items, oldest first.
        most: at most so many for each id, the strongest first.
    """
    snapshot = sources.snapshot
    known = [id for id in dict.fromkeys(reversed(history)) if id in snapshot.rows][:READ]
    if not known or not ids:
        return {id: [] for id in ids}
    rows = np.array([snapshot.rows[id] for id in known], dtype=np.int64)
    similar = snapshot.content_vectors[[snapshot.rows[id] for id in ids]] @ snapshot.content_vectors[rows].T
    one = np.ones(1, dtype=np.float32)
    together = np.stack([sources.counts.together(rows[i : i + 1], one) for i in range(len(rows))])
    found = {}
    for i, id in enumerate(ids):
        strength = np.where(similar[i] >= ALIKE, similar[i], 0) + together[:, snapshot.rows[id]]
        order = np.argsort(-strength, kind="stable")[:most]
        found[id] = [known[j] for j in order if strength[j] > 0 and known[j] != id]
    return found
