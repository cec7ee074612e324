"""Index a dataset into a store: check everything first, then write, so that bad data leaves the store as it was."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from store import locks, paths
from store.catalog import Catalog
from store.cooccurrence import Cooccurrence
from store.embedder import Embedder
from store.errors import BadData, StoreError
from store.history import Added, History
from store.lexical import Lexical
from store.load import Files, find_dataset, read_events, read_items
from store.readers import Problems
from store.reembed import remove_unused_encoders
from store.writer import Upserted

# Chroma's log and index, the snapshot and SQLite's write-ahead log hold each vector and each text several times.
_COPIES_OF_VECTOR, _COPIES_OF_TEXT, _PER_ITEM, _PER_EVENT = 5, 6, 2000, 400
_ROOM_TO_WORK = 4 << 20

log = logging.getLogger("evoke")


@dataclass(frozen=True, slots=True)
class Indexed:
    """The result of `index`. `gone` counts items that are in the store and no longer in the file, `pruned` those of them that were
    removed (none if rows of items were skipped)."""

    store: Path
    items: Upserted
    events: Added
    gone: int
    pruned: int
    problems: Problems = field(default_factory=Problems)
    skipped_items: int = 0


@dataclass(slots=True)
class _Checked:
    ids: set[str]
    problems: Problems
    skipped_items: int = 0
    text: int = 0
    events: int = 0


def index(
    dataset: Path,
    store: Path,
    *,
    prune: bool = False,
    on_error: Literal["stop", "skip"] = "stop",
    embedder: Embedder | None = None,
    chroma: str | None = None,
    database: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Indexed:
    """Bring the store up to date with the dataset, and refresh the data derived from it.

    Unchanged items cost nothing, and a call after an interruption continues where it stopped.

    Args:
        dataset: the dataset's folder, or one of its files.
        store: the store's folder.
        prune: remove items that are no longer in the items file. Nothing is removed if rows of it were skipped, since a skipped
            row may be that of an item.
        on_error: "stop" refuses the dataset at its first broken row; "skip" reports broken rows and goes on.
        embedder: the embedding model; by default that of the store.
        chroma: the URL of a Chroma server for the vectors; written into `store.json`.
        database: the URL of a PostgreSQL database for the events; written into `store.json`.
        progress: `progress(done, total)` is called with numbers of items.

    Raises StoreError, in one line that names file, line and remedy. Nothing is written then, unless the disk failed during the
    write.
    """
    files = find_dataset(Path(dataset))
    store = Path(store).expanduser()
    checked = _check(files, on_error, store, embedder, chroma)
    urls = {name: url for name, url in (("chroma", chroma), ("database", database)) if url}
    with _locked_folder(store):
        reserve(store, *_needed_room(store, checked, embedder))
        with (
            Catalog.open(store, embedder=embedder, chroma=chroma) as catalog,
            History.open(database or store) as history,
        ):
            paths.update_store_json(
                store, urls | {"dataset": (files.items or files.events or store).absolute().parent.name}
            )
            done = _write(files, catalog, history, checked, prune, progress)
            refresh(catalog, history)
            paths.update_store_json(store, _facts(catalog, history))
        remove_unused_encoders(store)
    paths.remember_last_store(store)
    return Indexed(store, *done, checked.problems, checked.skipped_items)


def _write(
    files: Files,
    catalog: Catalog,
    history: History,
    checked: _Checked,
    prune: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[Upserted, Added, int, int]:
    upserted, added, gone, pruned = Upserted(), Added(), 0, 0
    # The check has reported the broken rows.
    reported = Problems("skip")
    if files.items:
        total = len(checked.ids)
        advance = (lambda done, _: progress(done, total)) if progress else None
        upserted = catalog.upsert(read_items(files.items, reported), progress=advance)
        left = sorted(set(catalog.ids()) - checked.ids)
        if prune and checked.skipped_items:
            log.warning(
                "nothing was pruned: %d rows of %s were skipped, and their items may be among those gone; correct the rows",
                checked.skipped_items,
                files.items,
            )
        pruned = catalog.delete(left) if prune and not checked.skipped_items else 0
        gone = len(left) - pruned
    if files.events:
        added = history.add(read_events(files.events, checked.ids, reported))
    return upserted, added, gone, pruned


def _facts(catalog: Catalog, history: History) -> dict[str, Any]:
    return catalog.embedder.facts | {"items": len(catalog), "events": len(history)}


def refresh(catalog: Catalog, history: History) -> None:
    """Compute the data derived from catalog and history again, where either has changed."""
    snapshot = catalog.snapshot()
    Lexical.of(catalog, snapshot)
    Cooccurrence.of(history, snapshot, catalog.folder)


def _check(
    files: Files, on_error: Literal["stop", "skip"], store: Path, embedder: Embedder | None, chroma: str | None
) -> _Checked:
    """Read the whole dataset once, so that every fault is found before anything is written."""
    checked = _Checked(set(), Problems(on_error))
    if files.items:
        for item in read_items(files.items, checked.problems):
            checked.ids.add(item.id)
            checked.text += len(item.document.encode())
        checked.skipped_items = checked.problems.skipped
        if not checked.ids:
            raise BadData(f"{files.items}: there is no item in it; an empty catalog cannot be indexed")
    else:
        with Catalog.open(store, embedder=embedder, create=False, chroma=chroma) as catalog:
            checked.ids.update(catalog.ids())
    if files.events:
        checked.events = sum(1 for _ in read_events(files.events, checked.ids, checked.problems))
    return checked


def _needed_room(store: Path, checked: _Checked, embedder: Embedder | None) -> tuple[int, int]:
    """Return the bytes of the largest file that the write needs, and of all its other files; little for a complete store."""
    facts = paths.read_store_json(store)
    new = max(len(checked.ids) - facts.get("items", 0), 0)
    share = new / max(len(checked.ids), 1)
    dim = facts.get("dim") or (embedder or Embedder()).dim
    vectors = int(new * dim * 4)
    texts = int(checked.text * share)
    events = max(checked.events - facts.get("events", 0), 0) * _PER_EVENT
    largest = max(vectors + texts * 2 + new * _PER_ITEM, events)
    whole = vectors * _COPIES_OF_VECTOR + texts * _COPIES_OF_TEXT + new * _PER_ITEM + events + _ROOM_TO_WORK
    return largest, max(whole - largest, 0)


def reserve(store: Path, *sizes: int) -> None:
    """Write files of these numbers of bytes and remove them, to find a full disk or a file-size limit before the real write.

    Raises StoreError if they do not fit.
    """
    taken: list[Path] = []
    try:
        for size in sizes:
            handle, name = tempfile.mkstemp(dir=store, prefix=".reserve.")
            taken.append(Path(name))
            try:
                os.posix_fallocate(handle, 0, max(size, 1))
            finally:
                os.close(handle)
    except OSError as error:
        need = sum(sizes) / 1e6
        raise StoreError(
            f"{store}: about {need:.0f} MB cannot be written ({error.strerror}); make room or choose another --store"
        ) from error
    finally:
        for path in taken:
            path.unlink(missing_ok=True)


@contextmanager
def _locked_folder(store: Path) -> Iterator[None]:
    """Create the store's folder if needed, and hold its write lock. After a StoreError a folder that this call created is removed.

    Raises StoreBusy while another process writes.
    """
    try:
        created = _create_folder(store)
        with locks.write_lock(store):
            try:
                yield
            except (StoreError, OSError):
                # While the lock is held: another process may use the folder as soon as it is free.
                if created:
                    shutil.rmtree(store, ignore_errors=True)
                raise
    except OSError as error:
        raise StoreError(f"{store}: {error.strerror or error}; make room, or choose another --store") from error


def _create_folder(store: Path) -> bool:
    """Create the folder if there is none; return whether this call created it."""
    try:
        store.mkdir(parents=True)
    except FileExistsError:
        if not store.is_dir():
            raise
        return False
    return True
