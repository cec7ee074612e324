"""The rule for positive feedback: which events say that a user liked the item.

The kind decides where it is given: view and like are positive; dislike, hide and seen are not. Otherwise the rating decides:
on a 5-point scale from 4 up, on any other scale from the user's own mean up. An event with neither is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from store.records import Event

_POSITIVE = ("view", "like")


@dataclass(frozen=True, slots=True)
class Scale:
    """The lowest and the highest rating of a history; None where nothing is rated."""

    low: float | None
    high: float | None

    @property
    def five_points(self) -> bool:
        """Return whether this looks like a 5-point scale. Ratings of 0 and 1, or up to three or ten, do not."""
        return self.low is not None and self.high is not None and self.low >= 0 and 3 < self.high <= 5


def positive_events(events: Sequence[Event], scale: Scale) -> list[Event]:
    """Return the positive events, in their order. A user's mean rating is taken over the events given."""
    codes: dict[str, int] = {}
    users = np.array([codes.setdefault(event.user, len(codes)) for event in events], dtype=np.int64)
    ratings = np.array([np.nan if event.rating is None else event.rating for event in events], dtype=np.float64)
    kinds = np.array([event.kind or "" for event in events], dtype=object)
    return [event for event, keep in zip(events, positive_mask(users, ratings, kinds, scale), strict=True) if keep]


def positive_mask(users: np.ndarray, ratings: np.ndarray, kinds: np.ndarray, scale: Scale) -> np.ndarray:
    """Return which events are positive, (n,) bool.

    Args:
        users: (n,) int, each event's user as a code from 0 on.
        ratings: (n,) float, NaN for none.
        kinds: (n,) text, "" for none.
        scale: the scale of the ratings.
    """
    if not len(users):
        return np.zeros(0, dtype=bool)
    rated = ~np.isnan(ratings)
    if scale.five_points:
        bars = np.full(len(users), 4.0)
    else:
        counts = np.bincount(users[rated], minlength=users.max() + 1)
        sums = np.bincount(users[rated], weights=ratings[rated], minlength=users.max() + 1)
        # A mean of equal ratings may come out a rounding error above them.
        bars = (sums / np.maximum(counts, 1))[users] - 1e-9
    return np.where(kinds == "", ~rated | (ratings >= bars), np.isin(kinds, _POSITIVE))
