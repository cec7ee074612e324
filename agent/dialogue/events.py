"""Types of a conversation: constraints, the interpretation of a message, the events of a stream, the finished turn.

A stream yields `Understanding`, `Items`, `Words` ..., `Done`, in this order. `Understanding` and `Items` may come a second
time before the first `Words`, if the LLM parser found more in the message than the rules did: they then replace the first.
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

    field: the field's name.
    op: a filter operator of `store.filters`, `$between` or `$outside` (two bounds), or `$ranges` (any of several pairs).
    value: the operand.
    words: the condition as people read it: "from 1990 on", "no Horror".
    """

    field: str
    op: str
    value: Any
    words: str

    @property
    def where(self) -> dict[str, Any]:
        """The filter that enforces the constraint, in the language of `store.filters`."""
        if self.op == "$between":
            return {self.field: {"$gte": self.value[0], "$lte": self.value[1]}}
        if self.op == "$outside":
            return {"$or": [{self.field: {"$lt": self.value[0]}}, {self.field: {"$gt": self.value[1]}}]}
        if self.op == "$ranges":
            return {"$or": [{self.field: {"$gte": low, "$lte": high}} for low, high in self.value]}
        return {self.field: {self.op: self.value}}

    def as_json(self) -> dict[str, Any]:
        """Return the constraint as a plain dict; `from_json` reads it."""
        return {"field": self.field, "op": self.op, "value": self.value, "words": self.words}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Constraint:
        """Return the constraint that `as_json` wrote."""
        return cls(row["field"], row["op"], row["value"], row["words"])


@dataclass(frozen=True, slots=True)
class Interpretation:
    """How a message was understood, and the constraints and queries that are active after it.

    likes, dislikes, mentioned: ids of items in the message.
    queries: phrases that are searched for.
    dropped: in words, requests that cannot be filtered by because the catalog has no such field or value.
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
    """One finished answer: its text, its items with explanations, and the question it ends with."""

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
        """Return the turn as plain dicts and lists, without its trace."""
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
    """The interpretation of the message."""

    understood: Interpretation


@dataclass(frozen=True, slots=True)
class Items:
    """The retrieved items, explanations still empty; may be none."""

    items: list[Recommendation]


@dataclass(frozen=True, slots=True)
class Words:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream, with the whole turn."""

    turn: Turn


Event = Understanding | Items | Words | Done
