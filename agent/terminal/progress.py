"""Progress on stderr: a bar with rate and remaining time on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0
"""Seconds between lines if stderr is not a terminal."""

Advance = Callable[[int, int], None]


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Show progress during a `with` block. Yields the function advance(done, total), where total 0 means unknown.

    `what` names the counted things in the plural, such as "items indexed".
    """
    if not sys.stderr.isatty():
        yield _lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None, rate=0)
        rate = _Rate()

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None, rate=rate(done))

        yield advance


def _lines(what: str) -> Advance:
    last = time.monotonic()
    rate_of = _Rate()

    def advance(done: int, total: int) -> None:
        nonlocal last
        rate = rate_of(done)
        if time.monotonic() - last < EVERY:
            return
        last = time.monotonic()
        left = f", about {(total - done) / rate:.0f} s left" if total and rate else ""
        print(f"evoke: {done}{f' of {total}' if total else ''} {what}, {rate}/s{left}", file=sys.stderr)  # noqa: T201

    return advance


class _Rate:
    """The rate per second, rounded to a whole number from 10 on, else to two digits (a slow model takes minutes for one item).

    It is measured from the first call on, because an interrupted run may have done a part before.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        before, since = self._first or (0, self._started)
        self._first = self._first or (done, now)
        rate = (done - before) / max(now - since, 1e-9)
        return round(rate) if rate >= 10 else float(f"{rate:.2g}")
