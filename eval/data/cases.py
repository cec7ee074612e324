"""Cases, and the events that may be fitted on while measuring with them: the guard against leaks stands here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from eval.errors import EvalError
from store.records import Event

# What lies before the cut, by the part that is measured on.
FITTED: Mapping[str, frozenset[str]] = {"valid": frozenset({"train"}), "test": frozenset({"train", "valid"})}


@dataclass(frozen=True, slots=True)
class Case:
    """One request whose answer is known.

    Args:
        user: the unit of resampling.
        history: ids of the user's liked items, oldest first.
        targets: the items to find.
        dialogue: chat messages in place of a history.
        mentioned: items that the dialogue names.
        seen: all items of the user's events before the cut, disliked ones too; `Cases` fills it in.
    """

    user: str
    history: tuple[str, ...]
    targets: tuple[str, ...]
    dialogue: tuple[dict[str, str], ...] = ()
    mentioned: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()

    @property
    def excluded(self) -> tuple[str, ...]:
        """The items that are not recommended again, unless repeats are allowed: all that the user has seen."""
        return (*self.known, *self.seen)

    @property
    def known(self) -> tuple[str, ...]:
        """The items that say what the case is about: its history, or in a dialogue without one those mentioned."""
        return self.history or self.mentioned


@dataclass(frozen=True)
class Cases:
    """The cases of one part of a dataset ("valid" or "test"), and `events`: all that may be fitted on, each with a split
    that lies before the cut.

    Raises EvalError for an event of a later split. An event that tells a case's target to whoever fits on it (same user,
    an item that is a target and not in the case's history) is left out, and counted in `warnings`. Both hold for every
    way of making the object, `dataclasses.replace` included.
    """

    dataset: str
    on: str
    cases: tuple[Case, ...]
    events: tuple[Event, ...]
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_part(self.on)
        late = next((event for event in self.events if event.split not in FITTED[self.on]), None)
        if late is not None:
            raise EvalError(
                f'an event of split "{late.split}" (user "{late.user}", item "{late.item}") may not be fitted on '
                f"while measuring on {self.on}; give only events of split {' and '.join(sorted(FITTED[self.on]))}"
            )
        told = told_targets(self.cases)
        kept = tuple(event for event in self.events if (event.user, event.item) not in told)
        left_out = len(self.events) - len(kept)
        seen: dict[str, dict[str, None]] = {}
        for event in kept:
            seen.setdefault(event.user, {})[event.item] = None
        cases = tuple(replace(case, seen=tuple(seen.get(case.user, ()))) for case in self.cases)
        warnings = list(self.warnings)
        if left_out:
            warnings.append(f"{left_out} events that would tell a case's target were left out of what is fitted on")
        for name, value in (("cases", cases), ("events", kept), ("warnings", warnings)):
            object.__setattr__(self, name, value)

    @property
    def users(self) -> int:
        """How many users the cases come from."""
        return len({case.user for case in self.cases})

    @property
    def hash(self) -> str:
        """A hash of what is asked: the cases, in their order."""
        asked = [{name: value for name, value in asdict(case).items() if name != "seen"} for case in self.cases]
        return hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()

    def __len__(self) -> int:
        return len(self.cases)

    def sample(self, n: int, seed: int = 0) -> Cases:
        """All the cases of users drawn at random until there are `n` cases or more. A smaller draw is part of a larger one."""
        if n >= len(self.cases):
            return self
        sizes: dict[str, int] = {}
        for case in self.cases:
            sizes[case.user] = sizes.get(case.user, 0) + 1
        users = sorted(sizes)
        drawn: set[str] = set()
        total = 0
        for row in np.random.default_rng(seed).permutation(len(users)):
            if total >= n:
                break
            drawn.add(users[row])
            total += sizes[users[row]]
        return replace(self, cases=tuple(case for case in self.cases if case.user in drawn))


def told_targets(cases: tuple[Case, ...]) -> set[tuple[str, str]]:
    """The (user, item) pairs that no event before the cut may show: targets that are not in their case's history."""
    told: set[tuple[str, str]] = set()
    for case in cases:
        known = set(case.history)
        told.update((case.user, target) for target in case.targets if target not in known)
    return told


def check_part(on: str) -> None:
    """Raises EvalError unless this names a part that can be measured on."""
    if on not in FITTED:
        raise EvalError(f'"{on}" is no part to measure on; give valid or test')
