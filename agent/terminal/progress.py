"""Progress on stderr: a bar with rate and remaining time on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0
"""Seconds between lines where stderr is no terminal."""

Advance = Callable[[int, int], None]


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Yields advance(done, total): call it as often as you like; `total` 0 means not known."""
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
    """How many a second, to two digits or whole: what a slow model does in minutes is a rate too.

    Counted from the first call on: what was done before, by a run that was ended, took no time of this one.
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
