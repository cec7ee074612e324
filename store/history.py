"""The events of users, their cached profiles and stored conversations: SQLite in the store's folder, or PostgreSQL by URL."""

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
    """The result of `History.add`: events added, and those that were stored before. `future` counts those whose time has not come
    by this machine's clock."""

    added: int = 0
    duplicates: int = 0
    future: int = 0


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The result of `History.forget`: deleted rows by table. `scrubbed` says that the database's files were cleared of deleted
    rows, these or those of an interrupted call."""

    rows: dict[str, int] = field(default_factory=dict)
    scrubbed: bool = False

    def __bool__(self) -> bool:
        return self.scrubbed


@dataclass(frozen=True, slots=True)
class CachedProfile:
    """A stored profile and the history (item ids) it was made from. `exact` says that this is the whole history asked for."""

    profile: dict[str, Any]
    history: list[str]
    exact: bool


@dataclass(frozen=True, slots=True)
class Interactions:
    """Positive events in (user, time) order, one row each.

    `users` and `items` (n,) are codes, positions in `user_ids` and `item_ids`; `timestamps` is (n,).
    """

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    user_ids: list[str]
    item_ids: list[str]

    def __len__(self) -> int:
        return len(self.users)


def positive_interactions(events: Sequence[Event]) -> Interactions:
    """Return the positive ones of these events; the scale of ratings is taken from the events themselves."""
    ratings = [event.rating for event in events if event.rating is not None]
    scale = Scale(min(ratings), max(ratings)) if ratings else Scale(None, None)
    chosen = sorted(positive_events(events, scale), key=lambda event: (event.user, event.timestamp))
    users, user_ids = _codes([event.user for event in chosen])
    items, item_ids = _codes([event.item for event in chosen])
    times = np.array([event.timestamp for event in chosen], dtype=np.float64)
    return Interactions(users, items, times, user_ids, item_ids)


class History:
    """The events, cached profiles and conversations of one store. Open it with `History.open`."""

    def __init__(self, url: str) -> None:
        self._engine = tables.open_engine(url)
        self._scale: tuple[str, Scale] | None = None

    @classmethod
    def open(cls, place: str | Path) -> History:
        """Open the history in a store folder (SQLite), or in the database of a URL (`postgresql://...`).

        Tables and columns that an older version did not have are added. Raises MissingExtra if PostgreSQL's driver is not
        installed, and StoreError if the database does not answer.
        """
        if "://" in str(place):
            return cls(str(place))
        folder = Path(place).expanduser()
        paths.make_folder(folder)
        return cls(database_of(folder))

    @property
    def local(self) -> bool:
        """Return whether this is SQLite, whose files Evoke may rewrite."""
        return self._engine.dialect.name == "sqlite"

    @property
    def version(self) -> str:
        """Return a text that changes whenever the events change."""
        with self._read() as db:
            return str(db.scalar(tables.meta.select().with_only_columns(tables.meta.c.value)))

    def add(self, events: Iterable[Event]) -> Added:
        """Add the events that are not stored yet, a batch at a time. Raises StoreError for an event that cannot be stored."""
        now, source = time.time(), iter(events)
        added = total = future = 0
        while batch := list(islice(source, _BATCH)):
            for event in batch:
                if problem := event_fault(event):
                    raise StoreError(f'event of user "{event.user}": {problem}; correct it and add it again')
            with self._write() as db:
                idempotency.expire_answers(db)
                new = tables.insert_new_events(db, [_row(event) for event in batch])
                if new:
                    _touch(db)
            added += new
            total += len(batch)
            future += sum(event.timestamp > now for event in batch)
        return Added(added, total - added, future)

    def add_once(self, key: str, digest: str, events: Sequence[Event], answer: dict[str, Any]) -> dict[str, Any]:
        """Add the events and store `answer` under the key, in one transaction; return the answer.

        If the key is known, nothing is added, and the answer stored before is returned.

        Args:
            key: the client's idempotency key.
            digest: a hash of what the client sent.
            events: the events to add.
            answer: what to answer, as JSON values.

        Raises OtherContent (see `store.idempotency`) if the key was used with another `digest`.
        """
        with self._write() as db:
            before = idempotency.keep_answer(db, key, digest, answer)
            if before is None and events and tables.insert_new_events(db, [_row(event) for event in events]):
                _touch(db)
        return answer if before is None else before

    def of(self, user: str, limit: int | None = None) -> list[Event]:
        """Return the user's events, oldest first, or only the latest `limit` of them."""
        events = tables.events
        query = events.select().where(events.c.user_id == user).order_by(events.c.timestamp.desc(), events.c.id.desc())
        with self._read() as db:
            return [_event(row) for row in db.execute(query.limit(limit))][::-1]

    def users(self) -> list[str]:
        """Return the ids of all users with an event, sorted."""
        column = tables.events.c.user_id
        with self._read() as db:
            return sorted(db.scalars(tables.events.select().with_only_columns(column).distinct()))

    def __len__(self) -> int:
        with self._read() as db:
            return tables.count(db, tables.events)

    def positive(self, events: Sequence[Event]) -> list[Event]:
        """Return the positive ones of these events, by the rule of `store.feedback` and this history's scale."""
        return positive_events(events, self.scale)

    @property
    def scale(self) -> Scale:
        """Return the scale of this history's ratings."""
        version = self.version
        if self._scale is None or self._scale[0] != version:
            with self._read() as db:
                self._scale = version, Scale(*tables.rating_range(db))
        return self._scale[1]

    def interactions(self, splits: Collection[str] | None = None) -> Interactions:
        """Return all positive events, or only those of these splits of a benchmark."""
        with self._read() as db:
            columns = tables.event_columns(db, splits)
        users, user_ids = _codes(columns["user_id"])
        items, item_ids = _codes(columns["item"])
        ratings = np.array([np.nan if rating is None else rating for rating in columns["rating"]], dtype=np.float64)
        keep = positive_mask(users, ratings, np.array(columns["kind"], dtype=object), self.scale)
        times = np.array(columns["timestamp"], dtype=np.float64)
        return Interactions(users[keep], items[keep], times[keep], user_ids, item_ids)

    def profile(self, user: str | None, history: Sequence[str], model: str, fingerprint: str) -> CachedProfile | None:
        """Return the cached profile of this history, or, for a known user, of a beginning of it; None if there is none.

        Args:
            user: the user's id; None for a history without a user.
            history: item ids, oldest first.
            model: the key of the model that wrote the profile.
            fingerprint: the fingerprint of the prompts that it was asked with.
        """
        with self._read() as db:
            row = tables.profile_row(db, _profile_key(user, history, model, fingerprint))
        if row is None:
            return None
        try:
            before, profile = json.loads(row.history), json.loads(row.profile)
        except ValueError:
            return None  # it is written anew
        if list(history[: len(before)]) != before or (history and not before):
            return None
        return CachedProfile(profile, before, exact=len(before) == len(history))

    def save_profile(
        self, user: str | None, history: Sequence[str], model: str, fingerprint: str, profile: dict[str, Any]
    ) -> None:
        """Store a profile, as JSON values, in place of the former one of this user (or history), model and prompts.

        The other arguments are those of `profile`. Nothing is stored for a user without events.
        """
        content = {"history": json.dumps(list(history)), "profile": json.dumps(profile, ensure_ascii=False)}
        with self._write() as db:
            tables.replace_profile(db, _profile_key(user, history, model, fingerprint) | content)

    def session(self, id: str, known: int = 0) -> sessions.StoredSession | None:
        """Return the conversation with this id; None if there is none, or if its version is still `known`."""
        with self._read() as db:
            return sessions.read(db, id, known)

    def save_session(self, id: str, user: str | None, state: str, version: int) -> int | None:
        """Store the next state of a conversation; return its new version, or None if another process wrote it first.

        Args:
            id: the conversation's id.
            user: whose conversation it is, if that is known.
            state: the state as JSON text.
            version: the version that the state was made from; 0 for a new conversation.
        """
        with self._write() as db:
            return sessions.write(db, id, user, state, version)

    def knows(self, user: str) -> bool:
        """Return whether anything of the user is stored, if only in the database's files, after `forget` was interrupted."""
        with self._read() as db:
            return tables.knows_user(db, user)

    def forget(self, user: str) -> Forgotten:
        """Delete everything of the user: in SQLite from every byte of the files, in PostgreSQL from the vacuumed tables.

        Raises StoreBusy if another process reads SQLite's log, which cannot be emptied then. The rows are deleted even so, and
        calling it again finishes the work.
        """
        with self._write() as db:
            idempotency.expire_answers(db)
            rows, hashes = tables.delete_user(db, user)
            if any(rows.values()):
                _touch(db)
        if not hashes:
            return Forgotten(rows)
        if not tables.scrub(self._engine):
            raise StoreBusy("the rows are deleted, but another process holds the log; stop it, and run forget again")
        with self._write() as db:
            tables.note_scrubbed(db, hashes)
        return Forgotten(rows, scrubbed=True)

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Any:
        return tables.transaction(self._engine, write=False)

    def _write(self) -> Any:
        return tables.transaction(self._engine, write=True)


def database_of(folder: Path) -> str:
    """Return the URL of the database that holds a store folder's history."""
    return paths.read_store_json(folder).get("database") or f"sqlite:///{folder.absolute() / 'history.db'}"


def _touch(db: Connection) -> None:
    """Give the history a new version."""
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


def _profile_key(user: str | None, history: Sequence[str], model: str, fingerprint: str) -> dict[str, Any]:
    hashed = hashlib.blake2b(json.dumps(list(history)).encode(), digest_size=16).hexdigest()
    return {"user_id": user, "key": hashed if user is None else "", "model": model, "fingerprint": fingerprint}


def _codes(values: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the distinct values in order of first appearance, and each value's position among them, (n,) int32."""
    positions: dict[str, int] = {}
    codes = np.fromiter((positions.setdefault(value, len(positions)) for value in values), dtype=np.int32)
    return codes, list(positions)
