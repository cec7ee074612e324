"""Read the items and events of a dataset from JSONL, CSV and Parquet files, row by row, and check each row."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from store.errors import BadData
from store.readers import FORMATS, Problems, RowFault, read_rows
from store.records import Event, Item, event_fault, item_fault

_ITEM_COLUMNS = ("id", "title", "text", "metadata", "hidden")
_EVENT_COLUMNS = ("user", "item", "rating", "timestamp", "split", "kind")


class Files(NamedTuple):
    """The items file and the events file of a dataset; None for one that is not given."""

    items: Path | None
    events: Path | None


def find_dataset(place: Path) -> Files:
    """Return the files of a dataset folder, or a single file: events if its name begins with "events", else items.

    Raises BadData if there is no such file, no items file in the folder, or the same file in two formats.
    """
    place = Path(place)
    if place.is_file():
        if place.suffix not in FORMATS:
            raise BadData(
                f"{place}: the format {place.suffix or 'without ending'} is not read; give {', '.join(FORMATS)}"
            )
        return Files(None, place) if place.stem.startswith("events") else Files(place, None)
    if not place.is_dir():
        raise BadData(f"{place}: there is no such file or folder; give a dataset folder or an items file")
    items = find_file(place, "items")
    if items is None:
        raise BadData(f"{place}: there is no items file; add items.jsonl, items.csv or items.parquet")
    return Files(items, find_file(place, "events"))


def find_file(place: Path, stem: str, formats: Sequence[str] = FORMATS) -> Path | None:
    """Return the file of this name in one of the formats; None if there is none. Raises BadData if there are two."""
    found = [path for path in (place / f"{stem}{ending}" for ending in formats) if path.exists()]
    if len(found) > 1:
        raise BadData(f"{place}: both {found[0].name} and {found[1].name} are there; keep one")
    return found[0] if found else None


def read_items(path: Path, problems: Problems) -> Iterator[Item]:
    """Yield the items of a file, each id once; identical rows are counted as duplicates.

    Raises BadData if the file cannot be read, and for a bad row unless `problems` skips these.
    """
    hashes: dict[str, str] = {}
    for place, row in read_rows(path, ("id", "title"), _ITEM_COLUMNS, problems):
        try:
            item = _item(row)
            if hashes.get(item.id, item.content_hash) != item.content_hash:
                raise RowFault("the same id with different content", item.id, "give each item an id of its own")
        except RowFault as wrong:
            problems.report(place, wrong)
            continue
        if item.id in hashes:
            problems.duplicates += 1
            continue
        hashes[item.id] = item.content_hash
        yield item


def read_events(path: Path, known: Container[str], problems: Problems) -> Iterator[Event]:
    """Yield the events of a file; `known` holds the ids of all items. Raises BadData as `read_items` does."""
    for place, row in read_rows(path, ("user", "item", "rating", "timestamp"), _EVENT_COLUMNS, problems):
        try:
            event = _event(row)
            if event.item not in known:
                raise RowFault("an event of an unknown item", event.item, "add the item, or remove the event")
        except RowFault as wrong:
            problems.report(place, wrong)
            continue
        yield event


def _item(row: Mapping[str, Any]) -> Item:
    if row.get("id") is None:
        raise RowFault("no id", remedy='give each item an "id"')
    if row.get("title") is None:
        raise RowFault("no title", remedy='give each item a "title"')
    metadata = row.get("metadata")
    if isinstance(metadata, Mapping):
        metadata = {name: value for name, value in metadata.items() if value is not None}
    item = Item(
        id=row["id"],
        title=row["title"],
        text="" if row.get("text") is None else row["text"],
        metadata={} if metadata is None else metadata,
        hidden=False if row.get("hidden") is None else row["hidden"],
    )
    if problem := item_fault(item):
        raise RowFault(problem)
    return item


def _event(row: Mapping[str, Any]) -> Event:
    for name in ("user", "item", "timestamp"):
        if row.get(name) is None:
            raise RowFault(f"no {name}", remedy=f'give each event a "{name}"')
    event = Event(row["user"], row["item"], row["timestamp"], row.get("rating"), row.get("kind"), row.get("split"))
    if problem := event_fault(event):
        raise RowFault(problem)
    return event
