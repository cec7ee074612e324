"""What a conversation has come to: all of it but the last words is state, so nothing is lost when the words grow long."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from agent.dialogue.events import Constraint

KEPT = 200
"""Messages that are kept word by word, and items whose reasons are; what they came to is kept whole."""


@dataclass(slots=True)
class State:
    """What was said, asked for, liked and shown. Ids are the catalog's; lists are oldest first.

    `topic`, `avoid` and `seeds` are what is looked for now: phrases, phrases to steer away from, items to be like.
    `last` is the list shown last, which "the second" speaks of; `focus` is the item spoken of last; `asked` is the open question:
    the name of the field asked about, or "relax" where an answer offered to drop the constraint `offered`. `questioned` are
    the fields that were asked about. `reasons` tells how each
    item that was shown lately came to be.
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
        """The state as it is stored, long dialogues condensed; `from_json` reads it back."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        row["messages"] = self.messages[-KEPT:]
        row["reasons"] = dict(list(self.reasons.items())[-KEPT:])
        row["constraints"] = [c.as_json() for c in self.constraints]
        row["offered"] = self.offered.as_json() if self.offered else None
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> State:
        """The state that `as_json` wrote."""
        constraints = [Constraint.from_json(c) for c in row["constraints"]]
        offered = Constraint.from_json(row["offered"]) if row["offered"] else None
        return cls(**{**row, "constraints": constraints, "offered": offered})

    def copy(self) -> State:
        """A state that can be changed without changing this one."""
        return copy.deepcopy(self)


def merged(before: State, mine: State, theirs: State) -> State:
    """What was changed from `before` to `mine`, done to `theirs`: so two that go on from one state lose nothing of either."""
    joined = mine.copy()
    for part in fields(State):
        was, now, other = (getattr(state, part.name) for state in (before, mine, theirs))
        if isinstance(now, list) and part.name != "last":
            kept = [one for one in other if one in now or one not in was]
            setattr(joined, part.name, kept + [one for one in now if one not in was and one not in kept])
        elif isinstance(now, dict):
            setattr(joined, part.name, {**other, **now})
        elif now == was:
            setattr(joined, part.name, other)
    # The same words said twice are two messages.
    joined.messages = theirs.messages + mine.messages[len(before.messages) :]
    return joined
