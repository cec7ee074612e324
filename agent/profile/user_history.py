"""The liked and seen items of the user a request is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store import Event, History
from store.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class UserHistory:
    """The ids of a user's liked items, oldest first, and of every item not to be shown again."""

    liked: list[str]
    seen: set[str]
    notes: list[str]

    @classmethod
    def of(
        cls, history: History, snapshot: Snapshot, user: str | None, given: Sequence[str] | None = None
    ) -> UserHistory:
        """Read the user's events.

        Args:
            history: everyone's events.
            snapshot: the catalog; liked items that are not in it are named in a note.
            user: the user's id, if known.
            given: ids in place of the liked items; items that the user has seen stay excluded.
        """
        events = history.of(user) if user is not None else []
        notes = [] if events or user is None else [f"user {user} has no history"]
        liked = _liked(history, events) if given is None else list(given)
        if unknown := [id for id in liked if id not in snapshot.rows]:
            notes.append(f"{len(unknown)} history items are not in the catalog: {', '.join(unknown[:3])}")
        return cls(liked, {e.item for e in events} | set(liked), notes)


def _liked(history: History, events: Sequence[Event]) -> list[str]:
    """The items of positive events, without those that the user's latest like or dislike speaks against. A view changes nothing."""
    good = history.positive(events)
    speaking = set(good)
    latest = {event.item: event for event in events if event.kind not in ("view", "seen")}
    return [event.item for event in good if latest.get(event.item, event) in speaking]
