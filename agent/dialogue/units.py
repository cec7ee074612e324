"""Units of fields that hold a length of time. Filters and the words about them both take the unit from here."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TimeUnit:
    """A unit of time: its name in the plural, and how many of it make a minute."""

    name: str
    per_minute: float


MINUTES = TimeUnit("minutes", 1.0)
_UNITS = (
    ("milliseconds millisecond millis msecs msec ms", TimeUnit("milliseconds", 60_000.0)),
    ("seconds second secs sec s", TimeUnit("seconds", 60.0)),
    ("minutes minute mins", MINUTES),
    ("hours hour hrs hr h", TimeUnit("hours", 1 / 60)),
    ("days day", TimeUnit("days", 1 / 1440)),
)
_BY_WORD = {word: unit for words, unit in _UNITS for word in words.split()}


def time_unit(field: str) -> TimeUnit:
    """Return the unit of a field of lengths of time, read from the whole words of its name; minutes where it names none.

    "runtime_hours" and "playtimeH" are hours, "duration_ms" is milliseconds. "min" needs no entry: it is minutes, or it
    means the minimum and another word names the unit.
    """
    words = words_of(field)
    units = [_BY_WORD[word] for word in words if word in _BY_WORD and (len(word) > 1 or word == words[-1])]
    return units[-1] if units else MINUTES


def words_of(name: str) -> list[str]:
    """Return the words of a field's name in lower case, in order: "runTime_ms" gives run, time, ms."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
