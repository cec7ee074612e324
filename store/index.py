"""A dataset into a store: check everything, then write, so that a refusal leaves the store as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from store import place as places
from store.catalog import Catalog
from store.cooccurrence import Cooccurrence
from store.embedder import Embedder
from store.errors import BadData, StoreError
from store.history import Added, History
from store.lexical import Lexical
from store.load import Files, find_dataset, read_events, read_items
from store.rows import Problems
from store.writer import Upserted

# Chroma's log and index, the snapshot, and SQLite's write-ahead log hold each vector, each text several times over.
_COPIES_OF_VECTOR, _COPIES_OF_TEXT, _PER_ITEM, _PER_EVENT = 5, 6, 2000, 400
_ROOM_TO_WORK = 4 << 20


@dataclass(frozen=True, slots=True)
class Indexed:
    """What `index` did. `gone`: items of the store that the file no longer has (left there unless pruned)."""

    store: Path
    items: Upserted
    events: Added
    gone: int
    pruned: int
    problems: Problems = field(default_factory=Problems)


@dataclass(slots=True)
class _Checked:
    ids: set[str]
    problems: Problems
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
    Raises StoreError, in one line that names file, line and remedy; nothing is written then unless the disk failed half-way.
    """
    files = find_dataset(Path(dataset))
    store = Path(store).expanduser()
    checked = _check(files, on_error, store)
    with _folder(store), places.writing(store):
        settings = {name: url for name, url in (("chroma", chroma), ("database", database)) if url}
        _reserve(store, checked, embedder)
        places.describe(store, settings)
        with Catalog.open(store, embedder=embedder) as catalog, History.open(store) as history:
            return _write(files, store, catalog, history, checked, prune, progress)


def _write(
    files: Files,
    store: Path,
    catalog: Catalog,
    history: History,
    checked: _Checked,
    prune: bool,
    progress: Callable[[int, int], None] | None,
) -> Indexed:
    upserted, gone, pruned, added = Upserted(), 0, 0, Added()
    total = len(checked.ids)
    again = Problems("skip")
    if files.items:
        told = (lambda done, _: progress(done, total)) if progress else None
        upserted = catalog.upsert(read_items(files.items, again), progress=told)
        left = sorted(set(catalog.ids()) - checked.ids)
        pruned = catalog.delete(left) if prune else 0
        gone = len(left)
    if files.events:
        added = history.add(read_events(files.events, checked.ids, again))
    refresh(catalog, history)
    places.describe(
        store,
        {
            "dataset": Path(files.items or files.events or store).parent.name,
            "model": catalog.embedder.name,
            "fingerprint": catalog.embedder.fingerprint,
            "dim": catalog.embedder.dim,
            "items": len(catalog),
            "events": len(history),
        },
    )
    places.remember(store)
    return Indexed(store, upserted, added, gone, pruned, checked.problems)


def refresh(catalog: Catalog, history: History) -> None:
    """Work out again what is derived from catalog and history, where either has changed."""
    snapshot = catalog.snapshot()
    catalog.schema()
    Lexical.of(catalog, snapshot)
    Cooccurrence.of(history, snapshot, catalog.folder)


def _check(files: Files, on_error: Literal["stop", "skip"], store: Path) -> _Checked:
    """Read everything once, so that whatever is wrong is known before anything is written."""
    checked = _Checked(set(), Problems(on_error))
    if files.items:
        for item in read_items(files.items, checked.problems):
            checked.ids.add(item.id)
            checked.text += len(item.document.encode())
        if not checked.ids:
            raise BadData(f"{files.items}: there is no item in it; an empty catalog cannot be indexed")
    else:
        with Catalog.open(store, create=False) as catalog:
            checked.ids.update(catalog.ids())
    if files.events:
        checked.events = sum(1 for _ in read_events(files.events, checked.ids, checked.problems))
    return checked


def _reserve(store: Path, checked: _Checked, embedder: Embedder | None) -> None:
    """Room for what is not there yet: on a store that is complete that is next to nothing."""
    facts = places.about(store)
    new = max(len(checked.ids) - facts.get("items", 0), 0)
    share = new / max(len(checked.ids), 1)
    dim = facts.get("dim") or (embedder or Embedder()).dim
    vectors = int(new * dim * 4)
    texts = int(checked.text * share)
    events = max(checked.events - facts.get("events", 0), 0) * _PER_EVENT
    largest = max(vectors + texts * 2 + new * _PER_ITEM, events)
    whole = vectors * _COPIES_OF_VECTOR + texts * _COPIES_OF_TEXT + new * _PER_ITEM + events + _ROOM_TO_WORK
    places.reserve(store, largest, max(whole - largest, 0))


@contextmanager
def _folder(store: Path) -> Iterator[None]:
    """The store's folder; where it was not there before and nothing could be begun, it is not left behind."""
    made = not store.exists()
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{store} cannot be made ({error.strerror}); choose another --store") from error
    try:
        yield
    except OSError as error:
        raise StoreError(f"{store}: {error.strerror or error}; make room, or choose another --store") from error
    finally:
        if made and not (store / "store.json").exists():
            shutil.rmtree(store, ignore_errors=True)
