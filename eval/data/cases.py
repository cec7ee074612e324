"""Evaluation cases, and the events that models may be fitted on while these cases are measured. Guards against leakage."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from eval.errors import EvalError
from store.records import Event

FITTED: Mapping[str, frozenset[str]] = {"valid": frozenset({"train"}), "test": frozenset({"train", "valid"})}
"""The splits before the cut, by the part that is measured on."""


@dataclass(frozen=True, slots=True)
class Case:
    """One request with a known answer.

    Args:
        user: the user's id, the unit of resampling.
        history: the ids of the user's items before the request, oldest first.
        targets: the ids that should be recommended.
        dialogue: the messages of a conversation, oldest first.
        mentioned: the ids of the items that the dialogue names.
        seen: the ids of all items of the user's events before the cut, disliked ones too; `Cases` fills it in.
    """

    user: str
    history: tuple[str, ...]
    targets: tuple[str, ...]
    dialogue: tuple[dict[str, str], ...] = ()
    mentioned: tuple[str, ...] = ()
    seen: tuple[str, ...] = field(default=(), compare=False)

    @property
    def excluded(self) -> tuple[str, ...]:
        """The items that are not recommended again, unless repeats are allowed: all that the user has seen."""
        return (*self.known, *self.seen)

    @property
    def known(self) -> tuple[str, ...]:
        """The items to recommend from: the history, or for a dialogue without a history the mentioned items."""
        return self.history or self.mentioned


@dataclass(frozen=True)
class Cases:
    """The cases of one part of a dataset ("valid" or "test"), with `events`: all events that models may be fitted on.

    Raises EvalError if an event has a split after the cut. Events that give away a target (the same user, and an item that is
    a target and not in the case's history) are removed and counted in `warnings`. Both are checked whenever an object is made,
    also by `dataclasses.replace`.
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
                f"when {self.on} is measured; give only events of split {' and '.join(sorted(FITTED[self.on]))}"
            )
        hidden = target_pairs(self.cases)
        kept = tuple(event for event in self.events if (event.user, event.item) not in hidden)
        left_out = len(self.events) - len(kept)
        seen: dict[str, dict[str, None]] = {}
        for event in kept:
            seen.setdefault(event.user, {})[event.item] = None
        cases = tuple(replace(case, seen=tuple(seen.get(case.user, ()))) for case in self.cases)
        warnings = list(self.warnings)
        if left_out:
            warnings.append(f"{left_out} events that give away a case's target were left out of fitting")
        for name, value in (("cases", cases), ("events", kept), ("warnings", warnings)):
            object.__setattr__(self, name, value)

    @property
    def users(self) -> int:
        """The number of users in the cases."""
        return len({case.user for case in self.cases})

    @property
    def hash(self) -> str:
        """A hash of the cases in their order."""
        text = json.dumps([{k: v for k, v in asdict(case).items() if k != "seen"} for case in self.cases])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def __len__(self) -> int:
        return len(self.cases)

    def sample(self, n: int, seed: int = 0) -> Cases:
        """Return all cases of randomly drawn users, at least `n` cases in all. A smaller sample is part of a larger one."""
        if n >= len(self.cases):
            return self
        sizes = Counter(case.user for case in self.cases)
        users = np.random.default_rng(seed).permutation(sorted(sizes))
        enough = int(np.searchsorted(np.cumsum([sizes[user] for user in users]), n)) + 1
        drawn = set(users[:enough].tolist())
        return replace(self, cases=tuple(case for case in self.cases if case.user in drawn))


def target_pairs(cases: tuple[Case, ...]) -> set[tuple[str, str]]:
    """Return the (user, item) pairs that no event before the cut may contain: targets that are not in their case's history."""
    return {(case.user, target) for case in cases for target in set(case.targets) - set(case.history)}


def check_part(on: str) -> None:
    """Raise EvalError unless this is a part that can be measured on."""
    if on not in FITTED:
        raise EvalError(f'"{on}" cannot be measured on; give valid or test')
