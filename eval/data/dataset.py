"""Read a dataset folder for evaluation: item ids, events, the case files, and a hash of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.settings import Settings
from eval.data.cases import Case
from eval.errors import EvalError
from store.feedback import Scale
from store.load import find_dataset, find_file, read_events, read_items
from store.readers import Problems
from store.records import Event

CASE_FORMATS = (".jsonl", ".parquet")
_PARTS = ("valid", "test")


@dataclass(frozen=True)
class Data:
    """The item ids (hidden items included), the hidden ids, and the events in the order of their file, without duplicates."""

    name: str
    items: frozenset[str]
    hidden: frozenset[str]
    events: list[Event]
    warnings: list[str] = field(default_factory=list)

    @property
    def scale(self) -> Scale:
        """The smallest and the largest rating."""
        ratings = [event.rating for event in self.events if event.rating is not None]
        return Scale(min(ratings), max(ratings)) if ratings else Scale(None, None)


def index_dataset(dataset: Path, store: str | Path | None) -> Path:
    """Index a dataset folder into `store` (by default the dataset's own store); return the store's folder. Raises StoreError."""
    from store.index import index
    from store.paths import default_store

    folder = Path(store) if store else default_store(dataset)
    index(dataset, folder, embedder=Settings.load().embedder())
    return folder


def read_data(dataset: Path) -> Data:
    """Read the items and events of a dataset folder. Broken rows are left out; `warnings` counts them and names the first.

    Raises BadData if a whole file cannot be read, EvalError if there is no folder.
    """
    dataset = Path(dataset)
    if not dataset.is_dir():
        raise EvalError(f"{dataset}: this is not a dataset folder; give a folder with items and events or cases")
    files = find_dataset(dataset)
    assert files.items is not None  # noqa: S101 - find_dataset refuses a folder without items
    problems = Problems("skip")
    items, hidden = set(), set()
    for item in read_items(files.items, problems):
        items.add(item.id)
        if item.hidden:
            hidden.add(item.id)
    events: dict[tuple[object, ...], Event] = {}
    if files.events is not None:
        for event in read_events(files.events, items, problems):
            events.setdefault((event.user, event.item, event.timestamp, event.kind), event)
    warnings = [
        f"{count} rows were left out: {reason} ({problems.cases[reason][0]})"
        for reason, count in problems.counts.items()
    ]
    return Data(dataset.resolve().name, frozenset(items), frozenset(hidden), list(events.values()), warnings)


def case_file(dataset: Path, on: str) -> Path | None:
    """Return the file with the cases of this part, None if there is none."""
    found = find_file(Path(dataset), on, CASE_FORMATS)
    if not found and (table := Path(dataset) / f"{on}.csv").exists():
        raise EvalError(f"{table}: cases contain lists, which CSV cannot hold; give {on}.jsonl or .parquet")
    return found


def warn_of_hidden_targets(data: Data, cases: Iterable[Case]) -> list[str]:
    """Return a warning if some targets are hidden items, which no arm can return."""
    hidden = sum(target in data.hidden for case in cases for target in case.targets)
    return [f"{hidden} targets are hidden items, which are never returned"] if hidden else []


def data_hash(dataset: Path, parts: Sequence[str] = _PARTS) -> str:
    """Return a hash of the bytes of all files that a measurement depends on: items, events, and the cases of these parts."""
    files = [*find_dataset(Path(dataset)), *(case_file(dataset, part) for part in parts)]
    whole = hashlib.blake2b(digest_size=12)
    for path in files:
        whole.update(b"-" if path is None else file_hash(path))
    return whole.hexdigest()


def file_hash(path: Path) -> bytes:
    """Return a hash of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
