"""Fusion: the channels' lists become one, with a score between 0 and 1 and the provenance of every candidate; then the spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.item_text import plain
from store import Hit
from store.snapshot import Snapshot

K = 30
"""How quickly a rank's worth falls: rank r is worth (K + 1) / (K + r)."""
SAME = 0.98
"""Cosine from which two candidates are near-duplicates."""

TEXT_BOOST = {"queries": 4.0, "lexical": 2.0, "popular": 0.0}
"""What a request's own words do to the channel weights: what was asked for goes before what is usually liked."""
TEXT_LEAST = {"queries": 1.2, "lexical": 0.6}
"""What they weigh at least where weights were tuned: tuning judges what a model adds to a history, not requests in words."""
FILLING = 1e-6
"""The least weight of popular items: enough to fill up a short list, too little to change an order."""


def channel_weights(weights: Mapping[str, float], in_words: bool, tuned: bool) -> dict[str, float]:
    """The weight of each channel that is on, by these settings. `in_words`: the request has a text of its own; `tuned`: the
    weights are those that tuning found for histories."""
    boost = TEXT_BOOST if in_words else {}
    own = {channel: weight * boost.get(channel, 1.0) for channel, weight in weights.items()}
    if in_words and tuned:
        own |= {channel: max(own.get(channel, 0.0), least) for channel, least in TEXT_LEAST.items()}
    own["popular"] = max(own.get("popular", 0.0), FILLING)
    return {channel: weight for channel, weight in own.items() if weight > 0}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recalled item with its fused score (0..1) and its rank in every channel that found it."""

    id: str
    score: float
    channels: dict[str, int] = field(default_factory=dict)


def fuse(found: Mapping[str, Sequence[Hit]], weights: Mapping[str, float]) -> list[Candidate]:
    """Weighted reciprocal ranks (Cormack, Clarke and Buettcher, SIGIR 2009), best first.

        score(i) = sum over channels c of w_c (K + 1) / (K + rank_c(i))  /  sum of w_c over channels that brought anything

    so 1 is an item that every channel ranks first and 0 one that none found. Ties keep the order of the heaviest channel.
    A channel without weight brings no candidate, but its rank of one that others bring is told.
    """
    live = {c: weights.get(c, 0.0) for c, hits in found.items() if hits and weights.get(c, 0.0) > 0}
    total = sum(live.values())
    scores: dict[str, float] = {}
    ranks: dict[str, dict[str, int]] = {}
    for channel in sorted(live, key=lambda c: -live[c]):
        for rank, hit in enumerate(found[channel], 1):
            scores[hit.id] = scores.get(hit.id, 0.0) + live[channel] * (K + 1) / (K + rank) / total
            ranks.setdefault(hit.id, {})[channel] = rank
    for channel in found.keys() - live.keys():
        for rank, hit in enumerate(found[channel], 1):
            if hit.id in scores:
                ranks[hit.id][channel] = rank
    return [Candidate(id, scores[id], ranks[id]) for id in sorted(scores, key=lambda id: -scores[id])]


def spread(candidates: Sequence[Candidate], snapshot: Snapshot, diversity: float, depth: int) -> list[Candidate]:
    """The first `depth` candidates with near-duplicates moved behind them and, from `diversity` above 0, unlike ones forward.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) on the items' vectors:
    argmax (1 - diversity) score(i) - diversity max over chosen j of cos(i, j). Scores are left as they are.
    """
    pool, rest = list(candidates[:depth]), list(candidates[depth:])
    if len(pool) < 2:
        return pool + rest
    rows = [snapshot.rows[c.id] for c in pool]
    vectors = snapshot.alike[rows]
    alike = vectors @ vectors.T
    names = [(plain(snapshot.titles[row]), snapshot.facets[row]) for row in rows]
    relevance = np.array([c.score for c in pool])
    order: list[int] = []
    twins: list[int] = []
    left = list(range(len(pool)))
    while left:
        if diversity > 0 and order:
            value = (1 - diversity) * relevance[left] - diversity * alike[np.ix_(left, order)].max(axis=1)
            pick = left.pop(int(value.argmax()))
        else:
            pick = left.pop(0)
        twin = any(alike[pick, j] >= SAME or names[pick] == names[j] for j in order)
        (twins if twin else order).append(pick)
    return [pool[i] for i in order] + rest + [pool[i] for i in twins]
