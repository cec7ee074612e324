"""A dataset into a store: check everything, then write, so that a refusal leaves the store as it was."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from store import paths
from store.catalog import Catalog
from store.cooccurrence import Cooccurrence
from store.embedder import Embedder
from store.errors import BadData, StoreError
from store.history import Added, History
from store.lexical import Lexical
from store.load import Files, find_dataset, read_events, read_items
from store.readers import Problems
from store.reembed import sweep
from store.writer import Upserted

# Chroma's log and index, the snapshot, and SQLite's write-ahead log hold each vector, each text several times over.
_COPIES_OF_VECTOR, _COPIES_OF_TEXT, _PER_ITEM, _PER_EVENT = 5, 6, 2000, 400
_ROOM_TO_WORK = 4 << 20

log = logging.getLogger("evoke")


@dataclass(frozen=True, slots=True)
class Indexed:
    """What `index` did. `gone`: items that the store still has and the file no longer; `pruned`: those that were removed, none
    where rows of items were skipped."""

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
    """Bring the store up to date with the dataset, and refresh what is derived from it.

    Items that have not changed cost nothing, and a run that was killed goes on where it stopped. `chroma` and `database`
    are the URLs of a Chroma server and of PostgreSQL, remembered by the store. `progress(done, total)` counts items.
    Nothing is pruned where rows of the items file were skipped: what is gone, and what is broken, cannot be told apart then.
    Raises StoreError, in one line that names file, line and remedy; nothing is written then unless the disk failed half-way.
    """
    files = find_dataset(Path(dataset))
    store = Path(store).expanduser()
    checked = _check(files, on_error, store, embedder, chroma)
    urls = {name: url for name, url in (("chroma", chroma), ("database", database)) if url}
    with _folder(store):
        _reserve(store, checked, embedder)
        with (
            Catalog.open(store, embedder=embedder, chroma=chroma) as catalog,
            History.open(database or store) as history,
        ):
            paths.describe(store, urls | {"dataset": (files.items or files.events or store).absolute().parent.name})
            done = _write(files, catalog, history, checked, prune, progress)
            refresh(catalog, history)
            paths.describe(store, _facts(catalog, history))
        sweep(store)
    paths.remember(store)
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
    # What is wrong with the rows was told by the check.
    told = Problems("skip")
    if files.items:
        total = len(checked.ids)
        advance = (lambda done, _: progress(done, total)) if progress else None
        upserted = catalog.upsert(read_items(files.items, told), progress=advance)
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
        added = history.add(read_events(files.events, checked.ids, told))
    return upserted, added, gone, pruned


def _facts(catalog: Catalog, history: History) -> dict[str, Any]:
    model = catalog.embedder
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dim": model.dim,
        "items": len(catalog),
        "events": len(history),
    }


def refresh(catalog: Catalog, history: History) -> None:
    """Work out again what is derived from catalog and history, where either has changed."""
    snapshot = catalog.snapshot()
    catalog.schema()
    Lexical.of(catalog, snapshot)
    Cooccurrence.of(history, snapshot, catalog.folder)


def _check(
    files: Files, on_error: Literal["stop", "skip"], store: Path, embedder: Embedder | None, chroma: str | None
) -> _Checked:
    """Read everything once, so that whatever is wrong is known before anything is written."""
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


def _reserve(store: Path, checked: _Checked, embedder: Embedder | None) -> None:
    """Room for what is not there yet: on a store that is complete that is next to nothing."""
    facts = paths.about(store)
    new = max(len(checked.ids) - facts.get("items", 0), 0)
    share = new / max(len(checked.ids), 1)
    dim = facts.get("dim") or (embedder or Embedder()).dim
    vectors = int(new * dim * 4)
    texts = int(checked.text * share)
    events = max(checked.events - facts.get("events", 0), 0) * _PER_EVENT
    largest = max(vectors + texts * 2 + new * _PER_ITEM, events)
    whole = vectors * _COPIES_OF_VECTOR + texts * _COPIES_OF_TEXT + new * _PER_ITEM + events + _ROOM_TO_WORK
    paths.reserve(store, largest, max(whole - largest, 0))


@contextmanager
def _folder(store: Path) -> Iterator[None]:
    """The store's folder, with nobody else writing it. One that was not there before is not left behind by a refusal; an
    interruption leaves it. Raises StoreBusy while another process writes."""
    try:
        made = _make(store)
        with paths.writing(store):
            try:
                yield
            except (StoreError, OSError):
                # While it is still ours: the next one may be building it as soon as we let go.
                if made:
                    shutil.rmtree(store, ignore_errors=True)
                raise
    except OSError as error:
        raise StoreError(f"{store}: {error.strerror or error}; make room, or choose another --store") from error


def _make(store: Path) -> bool:
    """Make the folder where there is none; returns whether it was this process that made it."""
    try:
        store.mkdir(parents=True)
    except FileExistsError:
        if not store.is_dir():
            raise
        return False
    return True
