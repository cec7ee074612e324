"""Negative feedback: candidates like a disliked item, or like words to avoid, lose score; short lists are filled up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from agent.ranking.fusion import Candidate
from agent.retrieval.channels import Batch

PUSH = 0.8
"""Share of its score that an item loses which is exactly like a disliked one."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a conversation adds to a request: more queries, ids of disliked items, and words for what to avoid."""

    queries: Sequence[str] = ()
    disliked: Sequence[str] = ()
    avoid: Sequence[str] = ()


def fill_up(candidates: Sequence[Candidate], batch: Batch, n: int) -> list[Candidate]:
    """Return the candidates and, where they are fewer than n, other allowed items, which no channel retrieved.

    `batch` holds the one request that the candidates are for.
    """
    if len(candidates) >= n:
        return list(candidates)
    known = {c.id for c in candidates}
    others = (batch.sources.snapshot.ids[row] for row in np.flatnonzero(batch.allowed[0]))
    more = (Candidate(id, 0.0) for id in others if id not in known)
    return [*candidates, *islice(more, n - len(candidates))]


def demote(candidates: Sequence[Candidate], batch: Batch, wishes: Wishes) -> list[Candidate]:
    """Return the candidates, best first, those like a disliked item or like words to avoid with a lower score.

        score(i) <- score(i) (1 - PUSH max over d of max(0, cos(i, d)))

    This is Rocchio's negative feedback (1971) taken one disliked item at a time, so that two of a kind do not count twice.
    """
    snapshot = batch.sources.snapshot
    rows = [snapshot.rows[id] for id in wishes.disliked if id in snapshot.rows]
    parts = [np.asarray(snapshot.vectors[rows])] if rows else []
    parts += [batch.sources.catalog.embedder.encode_queries(list(wishes.avoid))] if wishes.avoid else []
    if not parts or not candidates:
        return list(candidates)
    own = np.asarray(snapshot.vectors[[snapshot.rows[c.id] for c in candidates]])
    kept = 1 - PUSH * np.maximum(own @ np.concatenate(parts).T, 0).max(axis=1)
    return sorted((scaled(c, float(share)) for c, share in zip(candidates, kept, strict=True)), key=lambda c: -c.score)


def scaled(candidate: Candidate, share: float) -> Candidate:
    """Return the candidate with its score, and each part of it, times `share`."""
    parts = {channel: share * part for channel, part in candidate.contributions.items()}
    return replace(candidate, score=share * candidate.score, contributions=parts)
