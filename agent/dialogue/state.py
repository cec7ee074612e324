"""The state of a conversation: everything that later messages can refer to. Only old messages are cut, so nothing is lost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from agent.dialogue.events import Constraint

MAX_STORED = 200
"""Messages that are stored word by word, and items whose provenance is. The rest of the state is stored whole."""


@dataclass(slots=True)
class State:
    """The messages, constraints, likes and shown items of a conversation. Lists of ids and phrases are oldest first.

    messages: the chat messages; an answer's has the ids of its items.
    constraints: the active hard constraints.
    liked, disliked, seen: items that the user spoke of so, or gave such feedback on.
    shown: items that were shown, which are not shown again.
    topic, avoid, seeds: the current search: phrases, phrases to avoid, and items to find similar ones to.
    last: the list shown last, which "the second" refers to.
    focus: the item mentioned last, which "it" refers to.
    asked: the open question: the field it asks about, or "relax" if an answer offered to drop the constraint `offered`.
    questioned: fields that were asked about.
    reasons: for each item shown lately, its rank, score, channels, contributions, explanation and evidence.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    liked: list[str] = field(default_factory=list)
    disliked: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    topic: list[str] = field(default_factory=list)
    avoid: list[str] = field(default_factory=list)
    seeds: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    focus: str | None = None
    asked: str | None = None
    offered: Constraint | None = None
    questioned: list[str] = field(default_factory=list)
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the state as it is stored, with the oldest messages cut; `from_json` reads it."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        row["messages"] = self.messages[-MAX_STORED:]
        row["reasons"] = dict(list(self.reasons.items())[-MAX_STORED:])
        row["constraints"] = [c.as_json() for c in self.constraints]
        row["offered"] = self.offered.as_json() if self.offered else None
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> State:
        """Return the state that `as_json` wrote, also in another version: keys unknown here are ignored, missing ones empty."""
        known = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        known["constraints"] = [Constraint.from_json(c) for c in row.get("constraints", [])]
        known["offered"] = Constraint.from_json(row["offered"]) if row.get("offered") else None
        return cls(**known)

    def copy(self) -> State:
        """Return a copy that shares nothing with this state."""
        return copy.deepcopy(self)


def merge(before: State, mine: State, theirs: State) -> State:
    """Return `theirs` with the changes from `before` to `mine` applied, so that two processes lose nothing of either.

    Args:
        before: the state that both started from.
        mine: the state that this process made of it.
        theirs: the state that another process stored meanwhile.
    """
    merged = mine.copy()
    for part in fields(State):
        was, now, other = (getattr(state, part.name) for state in (before, mine, theirs))
        if isinstance(now, list) and part.name != "last":
            kept = [one for one in other if one in now or one not in was]
            setattr(merged, part.name, kept + [one for one in now if one not in was and one not in kept])
        elif isinstance(now, dict):
            setattr(merged, part.name, {**other, **now})
        elif now == was:
            setattr(merged, part.name, other)
    # Messages are appended whole: the same words sent twice are two messages.
    merged.messages = theirs.messages + mine.messages[len(before.messages) :]
    return merged
