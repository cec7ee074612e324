"""The tables of a history and the SQL on them, in the part of the language that SQLite and PostgreSQL share."""

from __future__ import annotations

import hashlib
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from store.errors import MissingExtra, StoreBusy, StoreError

BUSY_SECONDS = 30
_NOBODYS = 10_000
_TABLES_LOCK = 0x65766F6B65
_NOT_UNDERSTOOD = "the database URL is not understood: write postgresql://user@host/name, or sqlite:///file"

_schema = sa.MetaData()

events = sa.Table(
    "evoke_events",
    _schema,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("timestamp", sa.Double, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("rating", sa.Double),
    sa.Column("split", sa.Text),
    sa.UniqueConstraint("user_id", "timestamp", "item", "kind", name="evoke_event_identity"),
)
profiles = sa.Table(
    "evoke_profiles",
    _schema,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.Text),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("history", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Index("evoke_profile_of", "user_id", "key"),
)
sessions = sa.Table(
    "evoke_sessions",
    _schema,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("updated", sa.Double, nullable=False),
    sa.Index("evoke_session_of", "user_id"),
)
answers = sa.Table(
    "evoke_answers",
    _schema,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Index("evoke_answer_at", "at"),
)
meta = sa.Table("evoke_meta", _schema, sa.Column("id", sa.Integer, primary_key=True), sa.Column("value", sa.Text))
due = sa.Table("evoke_due", _schema, sa.Column("user_hash", sa.Text, primary_key=True))
"""Whose rows are deleted, but not yet scrubbed out of the files."""

OF_A_USER = (events, profiles, sessions)


def engine(url: str) -> sa.Engine:
    """The database of this URL, with its tables. Raises MissingExtra without the driver, StoreError without an answer."""
    parsed = _parsed(url)
    try:
        local = parsed.get_backend_name() == "sqlite"
        made = _sqlite(parsed) if local else sa.create_engine(parsed, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise MissingExtra("PostgreSQL", "postgres") from error
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ValueError) as error:
        raise StoreError(_NOT_UNDERSTOOD) from error
    with session(made, write=True) as db:
        if made.dialect.name == "postgresql":
            # Two processes that both find no table would both make it, and one would fail.
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(_TABLES_LOCK)))
        for table in _schema.sorted_tables:
            db.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                db.execute(CreateIndex(index, if_not_exists=True))
        db.execute(_insert(db, meta).values(id=1, value=uuid.uuid4().hex[:16]).on_conflict_do_nothing())
    return made


def identity(url: str) -> tuple[str, ...]:
    """The same for all URLs of one database, however they are written and whoever logs in by them."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return "sqlite", str(Path(parsed.database or "").resolve())
    more = parsed.normalized_query
    host = (parsed.host or ",".join(more.get("host", ()))).lower()
    port = str(parsed.port or ",".join(more.get("port", ())) or 5432)
    name = parsed.database or ",".join(more.get("dbname", ())) or parsed.username or ""
    # The options may name a schema, and tables of one name in two schemas are apart.
    return parsed.get_backend_name(), host, port, name, *more.get("options", ())


def _parsed(url: str) -> sa.URL:
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.partition("://")[2]
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StoreError(_NOT_UNDERSTOOD) from error


def _sqlite(url: sa.URL) -> sa.Engine:
    # Transactions are begun below: Python's driver begins them late, and never as IMMEDIATE.
    made = sa.create_engine(
        url, connect_args={"timeout": BUSY_SECONDS, "isolation_level": None}, pool_size=16, max_overflow=48
    )

    @sa.event.listens_for(made, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA secure_delete=ON")
        # What was acknowledged outlives a power cut too: a commit waits for the disk.
        connection.execute("PRAGMA synchronous=FULL")
        _write_ahead(connection)

    @sa.event.listens_for(made, "begin")
    def begin(db: sa.Connection) -> None:
        how = db.get_execution_options().get("evoke_begin", "BEGIN")
        if how:
            db.exec_driver_sql(how)

    return made


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. The busy timeout does not cover this one statement."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.05)


@contextmanager
def session(made: sa.Engine, *, write: bool) -> Iterator[sa.Connection]:
    """A transaction. Raises StoreError, in one line, for what the database refuses."""
    # A reader that turns writer half-way is refused at once when another has written: take the lock first, and wait.
    how = "BEGIN IMMEDIATE" if write else "BEGIN"
    try:
        with made.connect().execution_options(evoke_begin=how) as db, db.begin():
            yield db
    except UnicodeEncodeError as error:
        raise StoreError("an id or a text is not valid UTF-8, so that nothing is kept under it; correct it") from error
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        raise _explained(made, error) from error


def scrub(made: sa.Engine) -> bool:
    """Take what was deleted out of the files too. False where another process keeps SQLite's log from being emptied."""
    try:
        if made.dialect.name == "postgresql":
            with made.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
                for table in OF_A_USER:
                    db.exec_driver_sql(f"VACUUM {table.name}")
            return True
        with made.connect().execution_options(evoke_begin="") as db:
            db.exec_driver_sql("VACUUM")
            return bool(db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0] == 0)
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        raise _explained(made, error) from error


def _explained(made: sa.Engine, error: Exception) -> StoreError:
    reason = " ".join(str(getattr(error, "orig", error)).split())[:160]
    place = made.url.render_as_string(hide_password=True)
    if "locked" in reason:
        return StoreBusy(f"{place} is locked by another process; try again when it is done")
    if "full" in reason or "disk I/O" in reason:
        return StoreError(f"{place}: the disk is full, or a file-size limit is met; make room and try again")
    if "readonly" in reason or "unable to open" in reason:
        return StoreError(f"{place} cannot be written; choose another --store, or correct its permissions")
    return StoreError(f"the database {place} failed: {reason}")


def _insert(db: sa.Connection, table: sa.Table) -> Any:
    return (postgresql if db.dialect.name == "postgresql" else sqlite).insert(table)


def insert_new_events(db: sa.Connection, rows: Sequence[dict[str, Any]]) -> int:
    """Insert the events that are not there yet; returns how many those were."""
    return len(db.execute(_insert(db, events).on_conflict_do_nothing().returning(events.c.id), rows).all())


def inserted(db: sa.Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert the row; False where there is one of its key already."""
    # What is returned tells: of an insert, PostgreSQL's driver does not count the rows.
    new = _insert(db, table).values(**row).on_conflict_do_nothing().returning(*table.primary_key)
    return db.execute(new).first() is not None


def count(db: sa.Connection, table: sa.Table) -> int:
    """The number of rows."""
    return int(db.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def rating_range(db: sa.Connection) -> tuple[float | None, float | None]:
    """The lowest and the highest rating."""
    low, high = db.execute(sa.select(sa.func.min(events.c.rating), sa.func.max(events.c.rating))).one()
    return low, high


def event_columns(db: sa.Connection, splits: Collection[str] | None) -> dict[str, list[Any]]:
    """The events of these splits (of all, where None) column by column, in (user, time) order."""
    names = ("user_id", "item", "timestamp", "rating", "kind")
    query = sa.select(*(events.c[name] for name in names)).order_by(events.c.user_id, events.c.timestamp, events.c.id)
    if splits is not None:
        query = query.where(events.c.split.in_(list(splits)))
    rows = db.execute(query).all()
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def profile_row(db: sa.Connection, user: str | None, key: str, model: str, fingerprint: str) -> Any:
    """The profile of this user, or of nobody's history by its key, or None."""
    return db.execute(profiles.select().where(*_same_profile(user, key, model, fingerprint))).first()


def replace_profile(db: sa.Connection, row: dict[str, Any]) -> None:
    """Put a profile in the place of the one of the same user or key, model and prompts.

    Of a user without events nothing is kept: a request may end after its user was forgotten.
    """
    if row["user_id"] is not None and not _has(db, events, row["user_id"]):
        return
    db.execute(profiles.delete().where(*_same_profile(row["user_id"], row["key"], row["model"], row["fingerprint"])))
    newest = db.scalar(profiles.insert().values(**row).returning(profiles.c.id))
    # Nobody's histories are without end, and nobody will ask for most of them again.
    db.execute(profiles.delete().where(profiles.c.user_id.is_(None), profiles.c.id <= newest - _NOBODYS))


def _same_profile(user: str | None, key: str, model: str, fingerprint: str) -> tuple[Any, ...]:
    column = profiles.c
    return (
        column.user_id.is_(None) if user is None else column.user_id == user,
        column.key == key,
        column.model == model,
        column.fingerprint == fingerprint,
    )


def knows_user(db: sa.Connection, user: str) -> bool:
    """Whether any table has a row of the user, or the files may still hold what was deleted of them."""
    return any(_has(db, table, user) for table in OF_A_USER) or _hashed(user) in _due(db)


def _has(db: sa.Connection, table: sa.Table, user: str) -> bool:
    return db.scalar(sa.select(1).select_from(table).where(table.c.user_id == user).limit(1)) is not None


def delete_user(db: sa.Connection, user: str) -> tuple[dict[str, int], list[str]]:
    """Delete the user's rows; returns how many, by table, and what to tell `scrubbed` once the files are scrubbed.

    That is noted in the database, so that where the scrubbing is cut off, deleting again does the rest. It is empty where
    there was nothing to delete, now or before: nothing has to be scrubbed then.
    """
    rows = {
        table.name.removeprefix("evoke_"): db.execute(table.delete().where(table.c.user_id == user)).rowcount
        for table in OF_A_USER
    }
    if any(rows.values()):
        inserted(db, due, {"user_hash": _hashed(user)})
    all_due = _due(db)
    return rows, all_due if _hashed(user) in all_due else []


def scrubbed(db: sa.Connection, due_before: Sequence[str]) -> None:
    """Take note that the files hold nothing any more of those who were due before they were scrubbed."""
    db.execute(due.delete().where(due.c.user_hash.in_(due_before)))


def _due(db: sa.Connection) -> list[str]:
    return list(db.scalars(sa.select(due.c.user_hash)))


def _hashed(user: str) -> str:
    return hashlib.sha256(user.encode()).hexdigest()
