"""What people did and said, and the profiles worked out from it: SQLite in the store's folder, or PostgreSQL by URL."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from store import idempotency, paths, sessions, tables
from store.errors import StoreBusy, StoreError
from store.feedback import Scale, positive_events, positive_mask
from store.records import Event, Kind, event_fault

if TYPE_CHECKING:
    from sqlalchemy import Connection

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Added:
    """What `History.add` did. `future`: how many of the events lie in the future by this machine's clock."""

    added: int = 0
    duplicates: int = 0
    future: int = 0


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The rows that were deleted, by table. `scrubbed`: the files were cleared of them, or of what was deleted before."""

    rows: dict[str, int] = field(default_factory=dict)
    scrubbed: bool = False

    def __bool__(self) -> bool:
        return self.scrubbed


@dataclass(frozen=True, slots=True)
class Cached:
    """A stored profile and the history it was made from; `exact` where that is the very history asked for."""

    profile: dict[str, Any]
    history: list[str]
    exact: bool


@dataclass(frozen=True, slots=True)
class Interactions:
    """Positive events in (user, time) order: codes into `user_ids` and `item_ids`, one row per event."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    user_ids: list[str]
    item_ids: list[str]

    def __len__(self) -> int:
        return len(self.users)


def interactions_of(events: Sequence[Event]) -> Interactions:
    """The positive ones of these events, in (user, time) order; their own ratings tell the scale."""
    ratings = [event.rating for event in events if event.rating is not None]
    scale = Scale(min(ratings), max(ratings)) if ratings else Scale(None, None)
    chosen = sorted(positive_events(events, scale), key=lambda event: (event.user, event.timestamp))
    users, user_ids = _codes([event.user for event in chosen])
    items, item_ids = _codes([event.item for event in chosen])
    times = np.array([event.timestamp for event in chosen], dtype=np.float64)
    return Interactions(users, items, times, user_ids, item_ids)


class History:
    """The events and cached profiles of one store. Open it with `History.open`."""

    def __init__(self, url: str) -> None:
        self._engine = tables.engine(url)
        self._scale: tuple[str, Scale] | None = None

    @classmethod
    def open(cls, place: str | Path) -> History:
        """The history in a store folder (SQLite), or in the database of a URL (`postgresql://...`).

        Raises MissingExtra where PostgreSQL's driver is not installed, and StoreError where the database does not answer.
        """
        if "://" in str(place):
            return cls(str(place))
        folder = Path(place).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made ({error.strerror}); choose another --store") from error
        return cls(database_of(folder))

    @property
    def local(self) -> bool:
        """Whether this is SQLite, all of whose files are ours to rewrite."""
        return self._engine.dialect.name == "sqlite"

    @property
    def version(self) -> str:
        """Changes whenever events do."""
        with self._read() as db:
            return str(db.scalar(tables.meta.select().with_only_columns(tables.meta.c.value)))

    def add(self, events: Iterable[Event]) -> Added:
        """Add the events that are not there yet, a batch at a time. Raises StoreError for an event that cannot be kept."""
        now, source = time.time(), iter(events)
        added = total = future = 0
        while batch := list(islice(source, _BATCH)):
            for event in batch:
                if problem := event_fault(event):
                    raise StoreError(f'event of user "{event.user}": {problem}; correct it and add it again')
            with self._write() as db:
                idempotency.expire(db)
                new = tables.insert_new_events(db, [_row(event) for event in batch])
                if new:
                    _touch(db)
            added += new
            total += len(batch)
            future += sum(event.timestamp > now for event in batch)
        return Added(added, total - added, future)

    def add_once(self, key: str, digest: str, events: Sequence[Event], answer: dict[str, Any]) -> dict[str, Any]:
        """Add the events and keep `answer` under the key, together; or return what was kept there, adding nothing.

        Raises OtherContent (see `store.idempotency`) where the key was used with another `digest`.
        """
        with self._write() as db:
            before = idempotency.keep(db, key, digest, answer)
            if before is None and events and tables.insert_new_events(db, [_row(event) for event in events]):
                _touch(db)
        return answer if before is None else before

    def of(self, user: str, limit: int | None = None) -> list[Event]:
        """The user's events, the oldest first, or the last `limit` of them."""
        events = tables.events
        query = events.select().where(events.c.user_id == user).order_by(events.c.timestamp.desc(), events.c.id.desc())
        with self._read() as db:
            return [_event(row) for row in db.execute(query.limit(limit))][::-1]

    def users(self) -> list[str]:
        """Everyone who has an event, in order of their ids."""
        column = tables.events.c.user_id
        with self._read() as db:
            return sorted(db.scalars(tables.events.select().with_only_columns(column).distinct()))

    def __len__(self) -> int:
        with self._read() as db:
            return tables.count(db, tables.events)

    def positive(self, events: Sequence[Event]) -> list[Event]:
        """The events that speak for their item: see `store.feedback` for the rule."""
        return positive_events(events, self.scale)

    @property
    def scale(self) -> Scale:
        """The scale of this history's ratings."""
        version = self.version
        if self._scale is None or self._scale[0] != version:
            with self._read() as db:
                self._scale = version, Scale(*tables.rating_range(db))
        return self._scale[1]

    def interactions(self, splits: Collection[str] | None = None) -> Interactions:
        """All positive events, or those of some splits of a benchmark."""
        with self._read() as db:
            columns = tables.event_columns(db, splits)
        users, user_ids = _codes(columns["user_id"])
        items, item_ids = _codes(columns["item"])
        ratings = np.array([np.nan if rating is None else rating for rating in columns["rating"]], dtype=np.float64)
        keep = positive_mask(users, ratings, np.array(columns["kind"], dtype=object), self.scale)
        times = np.array(columns["timestamp"], dtype=np.float64)
        return Interactions(users[keep], items[keep], times[keep], user_ids, item_ids)

    def profile(self, user: str | None, history: Sequence[str], model: str, fingerprint: str) -> Cached | None:
        """The profile stored for this history, model and prompts; for a known user else that of the history's beginning."""
        with self._read() as db:
            row = tables.profile_row(db, user, _key(user, history), model, fingerprint)
        if row is None:
            return None
        before = json.loads(row.history)
        if list(history[: len(before)]) != before or (history and not before):
            return None
        return Cached(json.loads(row.profile), before, exact=len(before) == len(history))

    def save_profile(
        self, user: str | None, history: Sequence[str], model: str, fingerprint: str, profile: dict[str, Any]
    ) -> None:
        """Keep the profile in place of the former one of this user (or this history), model and prompts."""
        row = {
            "user_id": user,
            "key": _key(user, history),
            "history": json.dumps(list(history)),
            "model": model,
            "fingerprint": fingerprint,
            "profile": json.dumps(profile, ensure_ascii=False),
        }
        with self._write() as db:
            tables.replace_profile(db, row)

    def session(self, id: str, known: int = 0) -> sessions.Kept | None:
        """The conversation kept under this id; None where there is none, or where `known` is its version already."""
        with self._read() as db:
            return None if known and sessions.version_of(db, id) == known else sessions.read(db, id)

    def save_session(self, id: str, user: str | None, state: str, version: int) -> int | None:
        """Keep a conversation that was read as `version` (0: new). Returns its new version, None where another wrote first."""
        with self._write() as db:
            return sessions.write(db, id, user, state, version)

    def knows(self, user: str) -> bool:
        """Whether anything is kept about the user, be it only in the files, where forgetting them was cut off."""
        with self._read() as db:
            return tables.knows_user(db, user)

    def forget(self, user: str) -> Forgotten:
        """Delete everything of the user, for good: in SQLite from every byte, in PostgreSQL from the tables, vacuumed.

        Raises StoreBusy where another process reads SQLite's log, which then cannot be emptied: the rows are gone nevertheless,
        and running it again finishes the work.
        """
        with self._write() as db:
            idempotency.expire(db)
            rows, due = tables.delete_user(db, user)
            if any(rows.values()):
                _touch(db)
        if not due:
            return Forgotten(rows)
        if not tables.scrub(self._engine):
            raise StoreBusy("the rows are deleted, but another process holds the log; stop it, and run forget again")
        with self._write() as db:
            tables.scrubbed(db, due)
        return Forgotten(rows, scrubbed=True)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Any:
        return tables.session(self._engine, write=False)

    def _write(self) -> Any:
        return tables.session(self._engine, write=True)


def database_of(folder: Path) -> str:
    """The URL of the database of a store folder's history."""
    return paths.about(folder).get("database") or f"sqlite:///{folder.absolute() / 'history.db'}"


def _touch(db: Connection) -> None:
    db.execute(tables.meta.update().values(value=uuid.uuid4().hex[:16]))


def _row(event: Event) -> dict[str, Any]:
    return {
        "user_id": event.user,
        "item": event.item,
        "timestamp": float(event.timestamp),
        "kind": event.kind or "",
        "rating": None if event.rating is None else float(event.rating),
        "split": event.split,
    }


def _event(row: Any) -> Event:
    return Event(row.user_id, row.item, row.timestamp, row.rating, cast(Kind, row.kind) or None, row.split)


def _key(user: str | None, history: Sequence[str]) -> str:
    if user is not None:
        return ""
    return hashlib.blake2b(json.dumps(list(history)).encode(), digest_size=16).hexdigest()


def _codes(values: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Each value as its place among the distinct values, in order of first appearance."""
    places_of: dict[str, int] = {}
    codes = np.fromiter((places_of.setdefault(value, len(places_of)) for value in values), dtype=np.int32)
    return codes, list(places_of)
