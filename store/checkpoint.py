"""Save the vector index of a Chroma folder in a way that a crash at any moment loses nothing.

Chroma keeps its records, and a log of their vectors, in SQLite, which survives a crash. From time to time it saves the vector
index to plain files in place, and a crash in the middle of that destroys them. So Chroma's own saving is turned off, and the log
holds what was written. Now and then, and at the end of a write, one save is made, with a copy of the former files next to them.
Chroma writes last how much of the log the files hold, so that note says whether a save was completed.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from store.chroma import NEVER, Connection
from store.errors import StoreError
from store.locks import index_lock

# A shorter log is replayed in less time than a save takes.
WORTH_SAVING = 200
_NOT_SAVING = -1


def save(connection: Connection, folder: Path, worth: int) -> None:
    """Have Chroma save the vector index of `folder` once, if at least `worth` records wait in its log.

    If a crash interrupts it, `recover` restores the former files.
    """
    before, waiting = _log_state(folder)
    touched = connection.ask(lambda collection: collection.get(limit=2, include=[])["ids"])
    if waiting < worth or not touched:
        return
    shutil.rmtree(_copy(folder), ignore_errors=True)
    for index in _index_folders(folder):
        shutil.copytree(index, _copy(folder) / index.name)
    connection.update_facts(saving=before)
    # An index keeps the threshold that it was loaded with. This threshold is a little longer than the log, so that loading the
    # index saves nothing, in this process or in one that reads just now. Updating a few records then saves, in this one alone.
    _set_threshold(connection, waiting + len(touched))
    connection.reopen()
    connection.ask(lambda collection: collection.count())
    _set_threshold(connection, NEVER)
    with index_lock(folder, save=True):
        connection.ask(lambda found: found.update(ids=touched, metadatas=[{"evoke:saved": True} for _ in touched]))
    connection.reopen()
    _end(connection, folder)


def recover(connection: Connection, folder: Path) -> None:
    """Restore the former index files if a crash interrupted a save; the log holds the rest."""
    before = connection.facts.get("saving", _NOT_SAVING)
    if before == _NOT_SAVING:
        return
    connection.reopen()
    if _log_state(folder)[0] == before:
        for index in _index_folders(folder):
            shutil.rmtree(index)
        for index in _index_folders(_copy(folder)):
            index.rename(folder / index.name)
    _set_threshold(connection, NEVER)
    connection.reopen()
    _end(connection, folder)


def _end(connection: Connection, folder: Path) -> None:
    connection.update_facts(saving=_NOT_SAVING)
    shutil.rmtree(_copy(folder), ignore_errors=True)


def _set_threshold(connection: Connection, records: int) -> None:
    connection.ask(lambda collection: collection.modify(configuration={"hnsw": {"sync_threshold": records}}))


def _log_state(folder: Path) -> tuple[int, int]:
    """Return up to which position of the log the files hold the vectors (0 for none), and how many records come after it."""
    try:
        with closing(sqlite3.connect(f"{(folder / 'chroma.sqlite3').as_uri()}?mode=ro", uri=True)) as db:
            held = db.execute(
                "SELECT max(m.seq_id) FROM max_seq_id m JOIN segments s ON s.id = m.segment_id WHERE s.scope = 'VECTOR'"
            ).fetchone()[0]
            after = db.execute("SELECT count(*) FROM embeddings_queue WHERE seq_id > ?", (held or 0,)).fetchone()[0]
    except sqlite3.Error as error:
        raise StoreError(f"{folder}: {error}; install the chromadb version that constraints.txt names") from error
    return int(held or 0), int(after)


def _index_folders(folder: Path) -> list[Path]:
    return list(folder.glob("*-*-*-*-*"))


def _copy(folder: Path) -> Path:
    return folder.with_name("chroma.before")
