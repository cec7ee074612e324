"""What people chose after what, from the events before the cut: the material of every training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.errors import EvalError
from eval.records import Cases
from store.cooccurrence import in_rows
from store.history import interactions_of
from store.snapshot import Snapshot

AHEAD = 6
"""How many of the items chosen next a pair holds."""
LEAST = 200
"""Pairs below which there is nothing to learn from."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A user's items up to some moment, and those chosen next, the first ones first; snapshot rows, oldest first."""

    user: str
    history: tuple[int, ...]
    chosen: tuple[int, ...]


def pairs(cases: Cases, snapshot: Snapshot, n: int, seed: int) -> list[Pair]:
    """Up to `n` pairs drawn from the events before the cut, users in turn, so that nobody's long history outweighs the rest.

    Raises EvalError where there are fewer than LEAST.
    """
    found = _pairs_of_users(cases, snapshot)
    total = sum(len(own) for own in found)
    if total < LEAST:
        raise EvalError(
            f"{cases.dataset}: {total} steps from one item to the next before the cut, and training needs {LEAST}; add events"
        )
    rng = np.random.default_rng(seed)
    for own in found:
        rng.shuffle(own)
    drawn: list[Pair] = []
    for turn in range(max(len(own) for own in found)):
        have = [own[turn] for own in found if len(own) > turn]
        drawn += [have[at] for at in rng.permutation(len(have))]
        if len(drawn) >= n:
            break
    return drawn[:n]


def _pairs_of_users(cases: Cases, snapshot: Snapshot) -> list[list[Pair]]:
    found = []
    for user, items in sequences(cases, snapshot).items():
        own = [
            Pair(user, tuple(items[:at]), tuple(dict.fromkeys(items[at : at + AHEAD]))) for at in range(1, len(items))
        ]
        if own:
            found.append(own)
    return found


def sequences(cases: Cases, snapshot: Snapshot) -> dict[str, list[int]]:
    """What each user chose before the cut, as snapshot rows, oldest first."""
    events = interactions_of(cases.events)
    users, rows, _ = in_rows(events, snapshot)
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return {
        events.user_ids[user]: own.tolist() for user, own in zip(users[starts], np.split(rows, starts)[1:], strict=True)
    }
