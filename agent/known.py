"""What is known of whom a request is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store import History
from store.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of whom the request is for: liked ids, oldest first, and every id not to be shown."""

    liked: list[str]
    seen: set[str]
    notes: list[str]

    @classmethod
    def of(cls, history: History, snapshot: Snapshot, user: str | None, given: Sequence[str] | None = None) -> Known:
        """What the user's history says, or a history given outright, which stands in for the likes alone."""
        events = history.of(user) if user is not None else []
        notes = [] if events or user is None else [f"user {user} has no history"]
        liked = [e.item for e in history.positive(events)] if given is None else list(given)
        if unknown := [id for id in liked if id not in snapshot.rows]:
            notes.append(f"{len(unknown)} history items are not in the catalog: {', '.join(unknown[:3])}")
        return cls(liked, {e.item for e in events} | set(liked), notes)
