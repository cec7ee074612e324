"""What people chose after what, from the events before the cut: the material of learned fusion and of every training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.data.cases import Cases
from eval.errors import EvalError
from store.cooccurrence import to_rows
from store.history import positive_interactions
from store.snapshot import Snapshot

AHEAD = 6
"""How many of the items chosen next a pair holds."""
LEAST = 200
"""Pairs below which there is nothing to train on."""
FOLDS = 4
"""Parts of the people, of whom each is read by what the others did."""


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
    total = sum(len(own) for own in _pairs_of_users(cases, snapshot))
    if total < LEAST:
        raise EvalError(
            f"{cases.dataset}: {total} steps from one item to the next before the cut, and training needs {LEAST}; add events"
        )
    return drawn(cases, snapshot, n, seed)


def drawn(cases: Cases, snapshot: Snapshot, n: int, seed: int) -> list[Pair]:
    """`pairs`, however few there are."""
    found = _pairs_of_users(cases, snapshot)
    rng = np.random.default_rng(seed)
    for own in found:
        rng.shuffle(own)
    turns: list[Pair] = []
    for turn in range(max((len(own) for own in found), default=0)):
        have = [own[turn] for own in found if len(own) > turn]
        turns += [have[at] for at in rng.permutation(len(have))]
        if len(turns) >= n:
            break
    return turns[:n]


def fold_of(user: str) -> int:
    """Which of FOLDS parts of the people this one belongs to, the same in everything that is fitted on the others."""
    return hashlib.blake2b(user.encode(), digest_size=4).digest()[0] % FOLDS


def by_other_people(cases: Cases, pairs: Sequence[Pair]) -> Iterator[tuple[Cases, list[int]]]:
    """For each fold the cases whose events are the other people's alone, and the places of its own people's pairs: what is fitted
    on those events has not seen what these people chose next."""
    for own in range(FOLDS):
        others = replace(cases, events=tuple(event for event in cases.events if fold_of(event.user) != own))
        yield others, [at for at, pair in enumerate(pairs) if fold_of(pair.user) == own]


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
    events = positive_interactions(cases.events)
    users, rows, _ = to_rows(events, snapshot)
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return {
        events.user_ids[user]: own.tolist() for user, own in zip(users[starts], np.split(rows, starts)[1:], strict=True)
    }
