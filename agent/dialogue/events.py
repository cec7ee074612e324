"""What a conversation is made of: constraints, what was understood of a message, the events of a stream, the finished turn.

A stream gives `Understanding`, `Items`, `Words` ..., `Done`, in this order. `Understanding` and `Items` may come a second
time before the first `Words`, where the model read more in the message than the parser did: they then replace the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.results import Profile, Recommendation, Trace

Intent = Literal["recommend", "refine", "critique", "ask", "compare", "why", "feedback", "chat"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A hard condition on one metadata field.

    `op` is a filter operator of `store.filters`, `$between` or `$outside` (two bounds), or `$ranges` (any of several pairs).

    `words` says it for people: "from 1990 on", "no Horror".
    """

    field: str
    op: str
    value: Any
    words: str

    @property
    def where(self) -> dict[str, Any]:
        """The filter that enforces it, in the language of `store.filters`."""
        if self.op == "$between":
            return {self.field: {"$gte": self.value[0], "$lte": self.value[1]}}
        if self.op == "$outside":
            return {"$or": [{self.field: {"$lt": self.value[0]}}, {self.field: {"$gt": self.value[1]}}]}
        if self.op == "$ranges":
            return {"$or": [{self.field: {"$gte": low, "$lte": high}} for low, high in self.value]}
        return {self.field: {self.op: self.value}}

    def as_json(self) -> dict[str, Any]:
        """The constraint as a plain dict; `from_json` reads it back."""
        return {"field": self.field, "op": self.op, "value": self.value, "words": self.words}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Constraint:
        """The constraint that `as_json` wrote."""
        return cls(row["field"], row["op"], row["value"], row["words"])


@dataclass(frozen=True, slots=True)
class Understood:
    """What was made of a message. `constraints` are all that are in force after it; ids are the catalog's.

    `dropped` says in words what was asked for and cannot be filtered by, as the catalog has no such field or value.
    """

    intent: Intent
    constraints: list[Constraint] = field(default_factory=list)
    likes: list[str] = field(default_factory=list)
    dislikes: list[str] = field(default_factory=list)
    mentioned: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished answer: its words, the items shown with explanations, and what is open after it."""

    text: str
    items: list[Recommendation]
    intent: Intent
    constraints: list[Constraint]
    question: str | None = None
    degraded: list[dict[str, str]] = field(default_factory=list)
    trace: Trace | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    session: str | None = None
    profile: Profile | None = None

    def as_json(self) -> dict[str, Any]:
        """The turn as plain dicts and lists."""
        return {
            "text": self.text,
            "items": [item.as_json() for item in self.items],
            "intent": self.intent,
            "constraints": [constraint.as_json() for constraint in self.constraints],
            "question": self.question,
            "degraded": self.degraded,
            "session": self.session,
        }


@dataclass(frozen=True, slots=True)
class Understanding:
    """What was made of the message."""

    understood: Understood


@dataclass(frozen=True, slots=True)
class Items:
    """The items as retrieval gives them, explanations still empty; maybe none."""

    items: list[Recommendation]


@dataclass(frozen=True, slots=True)
class Words:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream: the whole turn."""

    turn: Turn


Event = Understanding | Items | Words | Done
