"""Pairs of a history and the items chosen next, from events before the cut: what learned fusion and every training learn from."""

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
"""Number of the items chosen next that a pair holds."""
LEAST = 200
"""Fewest pairs to train on."""
FOLDS = 4
"""Folds of the users; each fold is read by what the users of the other folds did."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A user's items up to some moment, and those chosen next, the first ones first; snapshot rows, oldest first."""

    user: str
    history: tuple[int, ...]
    chosen: tuple[int, ...]


def pairs(cases: Cases, snapshot: Snapshot, n: int, seed: int) -> list[Pair]:
    """Return up to `n` pairs drawn from the events before the cut, users in turn, so that no long history outweighs the others.

    Args:
        cases: the cases, whose events are read.
        snapshot: the catalog.
        n: how many pairs at most.
        seed: of the draw.

    Raises EvalError where there are fewer than LEAST.
    """
    total = sum(len(own) for own in _pairs_of_users(cases, snapshot))
    if total < LEAST:
        raise EvalError(
            f"{cases.dataset}: {total} steps from one item to the next before the cut, and training needs {LEAST}; add events"
        )
    return drawn(cases, snapshot, n, seed)


def drawn(cases: Cases, snapshot: Snapshot, n: int, seed: int) -> list[Pair]:
    """Return `pairs` without a lower limit.

    Args:
        cases: the cases, whose events are read.
        snapshot: the catalog.
        n: how many pairs at most.
        seed: of the draw.
    """
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
    """Return the fold of a user, the same in everything that is fitted on other users."""
    return hashlib.blake2b(user.encode(), digest_size=4).digest()[0] % FOLDS


def by_other_people(cases: Cases, pairs: Sequence[Pair]) -> Iterator[tuple[Cases, list[int]]]:
    """Yield for each fold the cases with the events of the other folds alone, and the positions of its own users' pairs: anything
    fitted on those events has not seen what these users chose next."""
    for own in range(FOLDS):
        others = replace(cases, events=tuple(event for event in cases.events if fold_of(event.user) != own))
        yield others, [at for at, pair in enumerate(pairs) if fold_of(pair.user) == own]


def _pairs_of_users(cases: Cases, snapshot: Snapshot) -> list[list[Pair]]:
    return [
        [Pair(user, tuple(items[:at]), tuple(dict.fromkeys(items[at : at + AHEAD]))) for at in range(1, len(items))]
        for user, items in sequences(cases, snapshot).items()
    ]


def sequences(cases: Cases, snapshot: Snapshot) -> dict[str, list[int]]:
    """Return the items that each user chose before the cut, as snapshot rows, oldest first."""
    events = positive_interactions(cases.events)
    users, rows, _ = to_rows(events, snapshot)
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return {
        events.user_ids[user]: own.tolist() for user, own in zip(users[starts], np.split(rows, starts)[1:], strict=True)
    }
