"""Make evaluation cases from an events file: split the events into train, valid and test; later items of a user are targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.data.cases import FITTED, Case, Cases, check_part
from eval.data.dataset import Data, read_data, warn_of_hidden_targets
from eval.errors import EvalError
from store.cooccurrence import is_clock
from store.feedback import positive_events
from store.records import Event

PARTS = ("train", "valid", "test")
HOWS = ("temporal", "per-user", "last-out", "given")

_CUTS = (0.8, 0.9)  # where valid and test begin
_CASES_PER_USER = 5
_TARGETS_PER_CASE = 10

_SEES_FUTURE = (
    "{how} sees the future: models are fitted on what other users did after a case, so results are too good; "
    "split by time (temporal) if times are a clock"
)


def make_cases(dataset: Path, on: str, how: str = "temporal") -> Cases:
    """Make cases from the events of a dataset.

    The history of a case holds all items that the user liked before it, those of the measured period too; the targets are the
    next items liked, at most ten. A user gets up to five cases, spread over the period.

    Args:
        dataset: the dataset folder.
        on: the part to make cases for, "valid" or "test".
        how: how events are split into train, valid and test:
            "temporal": at the quantiles .8 and .9 of all times, for all users at once; times must be a clock.
            "per-user": after the shares .8 and .9 of each user's positive events; sees other users' future (with a warning).
            "last-out": a user's last positive event is test, the second to last valid; sees other users' future.
            "given": by the events' own `split`.

    Raises EvalError if there are no cases.
    """
    check_part(on)
    if how not in HOWS:
        raise EvalError(f'"{how}" is not a way to split; give {", ".join(HOWS)}')
    return _make(read_data(dataset), on, how, [])


def make_cases_from(data: Data, on: str) -> Cases:
    """Make cases with the split that fits the events: their own, else by time if times are a clock, else per user."""
    warnings = []
    if any(event.split in FITTED for event in data.events):
        how = "given"
    elif is_clock([event.timestamp for event in data.events]):
        how = "temporal"
    else:
        how = "per-user"
        warnings.append(
            "the times are not a clock, so the split is per user; add valid.jsonl and test.jsonl for another split"
        )
    return _make(data, on, how, warnings)


def _make(data: Data, on: str, how: str, warnings: list[str]) -> Cases:
    if not data.events:
        raise EvalError(f"{data.name}: there are no events to make cases from; add events.csv or {on}.jsonl")
    events = [
        replace(event, split=label)
        for event, label in zip(data.events, label_events(data, how), strict=True)
        if label in PARTS
    ]
    fitted = tuple(event for event in events if event.split in FITTED[on])
    asked = [event for event in events if event.split == on]
    cases = _cases(data, fitted, asked)
    if not cases:
        others = ", ".join(other for other in HOWS if other != how)
        raise EvalError(f'{data.name}: the split "{how}" leaves no targets in {on}; try {others}, or add {on}.jsonl')
    if how in ("per-user", "last-out"):
        warnings = [*warnings, _SEES_FUTURE.format(how={"per-user": "a split per user"}.get(how, "leave-last-out"))]
    return Cases(data.name, on, cases, fitted, [*data.warnings, *warn_of_hidden_targets(data, cases), *warnings])


def label_events(data: Data, how: str) -> Sequence[str | None]:
    """Return the part of each event by this split."""
    if how == "given":
        return [event.split for event in data.events]
    if how == "per-user":
        return _by_position(data, lambda n: (int(n * _CUTS[0] + 1e-9), int(n * _CUTS[1] + 1e-9)))
    if how == "last-out":
        return _by_position(data, lambda n: (max(n - 2, 0), max(n - 1, 0)))
    times = np.array([event.timestamp for event in data.events], dtype=np.float64)
    if not is_clock(times):
        raise EvalError(
            f'{data.name}: the times are not a clock (Unix seconds), so they cannot be split by time; use "per-user" or '
            '"last-out", add a column "split" to the events, or add valid.jsonl and test.jsonl'
        )
    return [PARTS[part] for part in np.digitize(times, np.quantile(times, _CUTS, method="higher"))]


def _by_position(data: Data, cut: Callable[[int], tuple[int, int]]) -> list[str | None]:
    """Return the label of each event by its position among the user's events. `cut` returns after how many of n positive events
    valid and test begin."""
    liked = {id(event) for event in positive_events(data.events, data.scale)}
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, event in enumerate(data.events):
        rows_of[event.user].append(row)
    labels: list[str | None] = [None] * len(data.events)
    for rows in rows_of.values():
        rows.sort(key=lambda row: data.events[row].timestamp)
        first, second = cut(sum(id(data.events[row]) in liked for row in rows))
        before = 0
        for row in rows:
            before += id(data.events[row]) in liked
            labels[row] = PARTS[(before > first) + (before > second)]
    return labels


def _cases(data: Data, fitted: Sequence[Event], asked: Sequence[Event]) -> tuple[Case, ...]:
    # A user's mean rating uses events up to the end of the measured period, never later ones.
    later = {id(event) for event in asked}
    liked_of: dict[str, list[Event]] = defaultdict(list)
    for event in positive_events(fitted, data.scale):
        liked_of[event.user].append(event)
    known = {user: len(events) for user, events in liked_of.items()}
    for events in liked_of.values():
        events.sort(key=lambda event: event.timestamp)
    for event in sorted(positive_events([*fitted, *asked], data.scale), key=lambda event: event.timestamp):
        if id(event) in later:
            liked_of[event.user].append(event)
    cases = []
    for user, events in liked_of.items():
        liked = [event.item for event in events]
        for start in _starts(max(known.get(user, 0), 1), len(liked)):
            targets = tuple(dict.fromkeys(liked[start : start + _TARGETS_PER_CASE]))
            cases.append(Case(user, tuple(liked[:start]), targets))
    return tuple(cases)


def _starts(first: int, end: int) -> list[int]:
    starts = range(first, end, _TARGETS_PER_CASE)
    if len(starts) <= _CASES_PER_USER:
        return list(starts)
    return [starts[round(place)] for place in np.linspace(0, len(starts) - 1, _CASES_PER_USER)]
