"""Steering: what a conversation adds to a request, and how dislikes and the lack of finds act on the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from agent.ranking.fusion import Candidate
from agent.retrieval.channels import Request, Sources, allowed_rows

PUSH = 0.8
"""How much of its score an item loses that is all like a disliked one."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a conversation adds to a request: more to look for, items disliked, and what to steer away from, in words."""

    queries: Sequence[str] = ()
    disliked: Sequence[str] = ()
    avoid: Sequence[str] = ()


def completed(candidates: Sequence[Candidate], sources: Sources, request: Request, n: int) -> list[Candidate]:
    """The candidates and, where they are fewer than n, others that fulfil the request's conditions, found by no channel."""
    if len(candidates) >= n:
        return list(candidates)
    known = {c.id for c in candidates}
    others = (sources.snapshot.ids[row] for row in np.flatnonzero(allowed_rows(sources, request)))
    more = (Candidate(id, 0.0) for id in others if id not in known)
    return [*candidates, *islice(more, n - len(candidates))]


def pushed(
    candidates: Sequence[Candidate], sources: Sources, disliked: Sequence[str], avoid: Sequence[str]
) -> list[Candidate]:
    """The candidates with those like a disliked item, or like the words to avoid, pushed back; best first.

        score(i) <- score(i) (1 - PUSH max over d of max(0, cos(i, d)))

    which is Rocchio's negative feedback (1971) taken one disliked item at a time, so that two of a kind do not count twice.
    """
    snapshot = sources.snapshot
    rows = [snapshot.rows[id] for id in disliked if id in snapshot.rows]
    parts = [np.asarray(snapshot.vectors[rows])] if rows else []
    parts += [sources.catalog.embedder.encode_queries(list(avoid))] if avoid else []
    if not parts or not candidates:
        return list(candidates)
    mine = np.asarray(snapshot.vectors[[snapshot.rows[c.id] for c in candidates]])
    near = np.maximum(mine @ np.concatenate(parts).T, 0).max(axis=1)
    moved = [replace(c, score=c.score * (1 - PUSH * float(cos))) for c, cos in zip(candidates, near, strict=True)]
    return sorted(moved, key=lambda c: -c.score)
