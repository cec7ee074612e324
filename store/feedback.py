"""Which events speak for their item.

By kind where it is given: view and like do, dislike, hide and seen do not. Else by rating: on a 5-point scale from 4 up,
on any other at or above the user's own mean; an event without a rating speaks for its item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from store.records import Event

_GOOD = ("view", "like")


@dataclass(frozen=True, slots=True)
class Scale:
    """The lowest and the highest rating of a history; None where nothing is rated."""

    low: float | None
    high: float | None

    @property
    def five_points(self) -> bool:
        """Whether this looks like stars out of five. Likes as 0 and 1, marks out of three or ten do not."""
        return self.low is not None and self.high is not None and self.low >= 0 and 3 < self.high <= 5


def positive_events(events: Sequence[Event], scale: Scale) -> list[Event]:
    """The events that speak for their item, in their order; a user's mean is over the events given."""
    ratings = defaultdict(list)
    for event in events:
        if event.rating is not None:
            ratings[event.user].append(event.rating)
    bars = {user: 4.0 if scale.five_points else float(np.mean(given)) for user, given in ratings.items()}
    return [event for event in events if _speaks(event, bars.get(event.user, 0.0))]


def _speaks(event: Event, bar: float) -> bool:
    if event.kind is not None:
        return event.kind in _GOOD
    return event.rating is None or event.rating >= bar


def positive_mask(users: np.ndarray, ratings: np.ndarray, kinds: np.ndarray, scale: Scale) -> np.ndarray:
    """The same rule over columns: user codes (n,), ratings (n,) with NaN for none, kinds (n,) with "" for none."""
    if not len(users):
        return np.zeros(0, dtype=bool)
    rated = ~np.isnan(ratings)
    if scale.five_points:
        bars = np.full(len(users), 4.0)
    else:
        counts = np.bincount(users[rated], minlength=users.max() + 1)
        sums = np.bincount(users[rated], weights=ratings[rated], minlength=users.max() + 1)
        bars = (sums / np.maximum(counts, 1))[users]
    return np.where(kinds == "", ~rated | (ratings >= bars), np.isin(kinds, _GOOD))
