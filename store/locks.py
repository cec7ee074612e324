"""File locks: one process at a time writes a catalog or runs a long command, and readers wait for a save of the index.

A lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import StoreBusy, StoreError

_holders: dict[Path, tuple[int, int]] = {}
"""For each store that this process writes: the thread that holds its lock, and how many nested blocks it is in."""
_holders_guard = threading.Lock()


@contextmanager
def write_lock(store: Path) -> Iterator[None]:
    """Hold the lock of the one writer of the catalog in `store`. The same thread may take it again inside.

    Raises StoreBusy, with the writer's pid, while another process or thread holds it.
    """
    key, me = store.resolve(), threading.get_ident()
    with _holders_guard:
        owner, depth = _holders.get(key, (me, 0))
        if owner != me:
            raise StoreBusy(f"another thread of this process (pid {os.getpid()}) is writing {store}; try again later")
        lock = _take(store, "lock", "writing") if depth == 0 else None
        _holders[key] = (me, depth + 1)
    try:
        yield
    finally:
        with _holders_guard:
            if depth:
                _holders[key] = (me, depth)
            else:
                del _holders[key]
            if lock is not None:
                os.close(lock)


@contextmanager
def exclusive_lock(store: Path, what: str, doing: str) -> Iterator[None]:
    """Hold the lock that allows one process at a time to change `what` of the store.

    `doing` goes into the message of any other process that asks for the lock ("another process is `doing` the store").
    Raises StoreBusy, with the pid of the process that holds it.
    """
    lock = _take(store, f"{what}.lock", doing)
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def index_lock(folder: Path, *, save: bool) -> Iterator[None]:
    """Hold the lock of a Chroma folder's index files: with others that read them, or, to `save` them, without any other.

    Waits until it is free.
    """
    handle = os.open(folder.with_name("chroma.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if save else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _take(store: Path, name: str, doing: str) -> int:
    try:
        handle = os.open(store / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{store} cannot be written: {error.strerror}; choose another --store") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, _, other = os.read(handle, 128).decode(errors="replace").partition(" ")
        os.close(handle)
        raise StoreBusy(
            f"another process (pid {pid or 'unknown'}) is {other or doing} {store}; wait until it is done"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()} {doing}".encode(), 0)
    return handle
