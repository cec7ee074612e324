"""Diversity: near-duplicates move behind, and from `diversity` above 0 unlike items come forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.item_text import normalize_title
from agent.ranking.fusion import Candidate
from store.snapshot import Snapshot

NEAR_DUPLICATE = 0.98
"""Cosine from which two candidates are near-duplicates."""


def diversify(candidates: Sequence[Candidate], snapshot: Snapshot, diversity: float, depth: int) -> list[Candidate]:
    """Return all the candidates, the first `depth` of them reordered; scores stay as they are.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) on the items' vectors:
    argmax (1 - diversity) score(i) - diversity max over chosen j of cos(i, j). Near-duplicates of an item that comes earlier
    (by vector, or the same title and year or brand) go to the end of the list.

    Args:
        candidates: best first.
        snapshot: the catalog's vectors and titles.
        diversity: 0 keeps the order by score, 1 makes neighbours as unlike as possible.
        depth: how many of the first candidates are looked at.
    """
    pool, rest = list(candidates[:depth]), list(candidates[depth:])
    if len(pool) < 2:
        return pool + rest
    rows = [snapshot.rows[c.id] for c in pool]
    vectors = snapshot.content_vectors[rows]
    alike = vectors @ vectors.T
    names = [(normalize_title(snapshot.titles[row]), snapshot.facets[row]) for row in rows]
    relevance = np.array([c.score for c in pool])
    nearest = np.full(len(pool), -1.0)  # of each candidate, the highest cosine to one that was chosen
    chosen: list[int] = []
    duplicates: list[int] = []
    shown: set[tuple[str, str]] = set()
    left = list(range(len(pool)))
    while left:
        value = (1 - diversity) * relevance[left] - diversity * nearest[left]
        pick = left.pop(int(value.argmax()) if diversity > 0 and chosen else 0)
        if nearest[pick] >= NEAR_DUPLICATE or names[pick] in shown:
            duplicates.append(pick)
            continue
        chosen.append(pick)
        shown.add(names[pick])
        nearest = np.maximum(nearest, alike[:, pick])
    return [pool[i] for i in chosen] + rest + [pool[i] for i in duplicates]
