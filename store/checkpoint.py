"""Saving the vector index of a Chroma folder so that a crash at any moment loses nothing.

Chroma keeps its records and a log of their vectors in SQLite, which a crash cannot break. From time to time it saves the vector
index to plain files, in place, which a crash in the middle breaks for good. So its own saving is turned off, and the log holds
what has been written. Now and then, and when a write ends, one save is made, with a copy of the former files at hand. Whether
it was completed shows in Chroma's own note of how much of the log the files hold, which it writes last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import StoreError

if TYPE_CHECKING:
    from store.chroma import Connection

NEVER = 10_000_000
# A log shorter than this is replayed in less time than a save takes.
WORTH_SAVING = 200
_NOT_SAVING = -1


def save(connection: Connection, folder: Path, worth: int) -> None:
    """Have Chroma save the vector index of `folder` once, if `worth` records wait in its log.

    `recover` undoes what a crash interrupts.
    """
    before, waiting = _log(folder)
    touched = connection.ask(lambda collection: collection.get(limit=2, include=[])["ids"])
    if waiting < worth or not touched:
        return
    shutil.rmtree(_copy(folder), ignore_errors=True)
    for index in _indexes(folder):
        shutil.copytree(index, _copy(folder) / index.name)
    connection.note(saving=before)
    # An index keeps the threshold that it was loaded with. This one is a little beyond the log, so that loading does not
    # save, here or in a process that reads just now; the next touch of that many records does, here alone.
    _set_threshold(connection, waiting + len(touched))
    connection.reopen()
    connection.ask(lambda collection: collection.count())
    _set_threshold(connection, NEVER)
    with _locked(folder, fcntl.LOCK_EX):
        connection.ask(lambda found: found.update(ids=touched, metadatas=[{"evoke:saved": True} for _ in touched]))
    connection.reopen()
    _end(connection, folder)


def recover(connection: Connection, folder: Path) -> None:
    """After a crash: where a save was under way and not completed, put the former files back; the log holds the rest."""
    before = connection.facts.get("saving", _NOT_SAVING)
    if before == _NOT_SAVING:
        return
    connection.reopen()
    if _log(folder)[0] == before:
        for index in _indexes(folder):
            shutil.rmtree(index)
        for index in _indexes(_copy(folder)):
            index.rename(folder / index.name)
    _set_threshold(connection, NEVER)
    connection.reopen()
    _end(connection, folder)


def opening(folder: Path) -> AbstractContextManager[None]:
    """While the files of the index are read: waits until a save by another process is done."""
    return _locked(folder, fcntl.LOCK_SH)


def _end(connection: Connection, folder: Path) -> None:
    connection.note(saving=_NOT_SAVING)
    shutil.rmtree(_copy(folder), ignore_errors=True)


def _set_threshold(connection: Connection, records: int) -> None:
    connection.ask(lambda collection: collection.modify(configuration={"hnsw": {"sync_threshold": records}}))


def _log(folder: Path) -> tuple[int, int]:
    """Up to which place of the log the files hold the vectors (0 for no place), and how many records come after it."""
    try:
        with closing(sqlite3.connect(f"{(folder / 'chroma.sqlite3').as_uri()}?mode=ro", uri=True)) as db:
            held = db.execute(
                "SELECT max(m.seq_id) FROM max_seq_id m JOIN segments s ON s.id = m.segment_id WHERE s.scope = 'VECTOR'"
            ).fetchone()[0]
            after = db.execute("SELECT count(*) FROM embeddings_queue WHERE seq_id > ?", (held or 0,)).fetchone()[0]
    except sqlite3.Error as error:
        raise StoreError(f"{folder}: {error}; install the chromadb version that constraints.txt names") from error
    return int(held or 0), int(after)


def _indexes(folder: Path) -> list[Path]:
    return list(folder.glob("*-*-*-*-*"))


def _copy(folder: Path) -> Path:
    return folder.with_name("chroma.before")


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    handle = os.open(folder.with_name("chroma.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)
