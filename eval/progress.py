"""Progress of long work: a function that opens a progress display, and one that shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Called with a title, gives a context in which `advance(done, total)` is called."""


def quiet(_: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show no progress."""
    return nullcontext(lambda *_: None)
