"""The SQL tables of a history and the statements on them, for SQLite and PostgreSQL.

A column that is added to a table in a later version must be nullable or have a server default: `open_engine` adds it to the
databases of older versions.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateColumn, CreateIndex

from store.errors import MissingExtra, StoreBusy, StoreError

BUSY_SECONDS = 30
_MOST_ANONYMOUS_PROFILES = 10_000
_TABLES_LOCK = 0x65766F6B65
_BAD_URL = "the database URL is not understood: write postgresql://user@host/name, or sqlite:///file"

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
unscrubbed = sa.Table("evoke_due", _schema, sa.Column("user_hash", sa.Text, primary_key=True))
"""The users whose rows are deleted, but may still be read in the database's files."""

USER_TABLES = (events, profiles, sessions)
"""The tables whose rows belong to a user."""


def open_engine(url: str) -> sa.Engine:
    """Connect to the database of this URL, and create what its tables lack.

    Raises MissingExtra without the driver, and StoreError for a bad URL or a database that does not answer.
    """
    parsed = _parse_url(url)
    try:
        local = parsed.get_backend_name() == "sqlite"
        engine = _sqlite_engine(parsed) if local else sa.create_engine(parsed, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise MissingExtra("PostgreSQL", "postgres") from error
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ValueError) as error:
        raise StoreError(_BAD_URL) from error
    with transaction(engine, write=True) as db:
        if engine.dialect.name == "postgresql":
            # Without this lock, two processes that both find a table missing would both create it, and one would fail.
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(_TABLES_LOCK)))
        _create_missing(db)
        db.execute(_insert(db, meta).values(id=1, value=uuid.uuid4().hex[:16]).on_conflict_do_nothing())
    return engine


def _create_missing(db: sa.Connection) -> None:
    """Create the tables, columns and indexes that a new database, or one of an older version, does not have."""
    _schema.create_all(db)
    names = [table.name for table in _schema.sorted_tables]
    found = {name: columns for (_, name), columns in sa.inspect(db).get_multi_columns(filter_names=names).items()}
    for table in _schema.sorted_tables:
        present = {column["name"] for column in found[table.name]}
        for column in table.columns:
            if column.name not in present:
                specification = CreateColumn(column).compile(dialect=db.dialect)
                db.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {specification}")
        for index in table.indexes:
            db.execute(CreateIndex(index, if_not_exists=True))


def database_identity(url: str) -> tuple[str, ...]:
    """Return a key of the database: equal for all its URLs, however they are written and whoever logs in by them."""
    parsed = _parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return "sqlite", str(Path(parsed.database or "").resolve())
    more = parsed.normalized_query
    host = (parsed.host or ",".join(more.get("host", ()))).lower()
    port = str(parsed.port or ",".join(more.get("port", ())) or 5432)
    name = parsed.database or ",".join(more.get("dbname", ())) or parsed.username or ""
    # The options may name a schema, and tables of the same name in two schemas are different tables.
    return parsed.get_backend_name(), host, port, name, *more.get("options", ())


def _parse_url(url: str) -> sa.URL:
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.partition("://")[2]
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StoreError(_BAD_URL) from error


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    # Transactions are begun in `begin` below: Python's driver begins them late, and never as IMMEDIATE.
    engine = sa.create_engine(
        url, connect_args={"timeout": BUSY_SECONDS, "isolation_level": None}, pool_size=16, max_overflow=48
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA secure_delete=ON")
        # A commit waits for the disk, so that it survives a power cut too.
        connection.execute("PRAGMA synchronous=FULL")
        _switch_to_wal(connection)

    @sa.event.listens_for(engine, "begin")
    def begin(db: sa.Connection) -> None:
        how = db.get_execution_options().get("evoke_begin", "BEGIN")
        if how:
            db.exec_driver_sql(how)

    return engine


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch to SQLite's write-ahead log; retry, since the busy timeout does not cover this statement."""
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
def transaction(engine: sa.Engine, *, write: bool) -> Iterator[sa.Connection]:
    """Begin a transaction; commit it when the block ends. Raises StoreError, in one line, if the database refuses something."""
    # SQLite refuses a reader that begins to write after another process has written: a writer takes the lock first, and waits.
    how = "BEGIN IMMEDIATE" if write else "BEGIN"
    try:
        with engine.connect().execution_options(evoke_begin=how) as db, db.begin():
            yield db
    except UnicodeEncodeError as error:
        raise StoreError("an id or a text is not valid UTF-8, so nothing can be stored under it; correct it") from error
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        raise _explain(engine, error) from error


def scrub(engine: sa.Engine) -> bool:
    """Remove deleted rows from the database's files too. Returns False if another process keeps SQLite's log from being emptied."""
    try:
        if engine.dialect.name == "postgresql":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
                for table in USER_TABLES:
                    db.exec_driver_sql(f"VACUUM {table.name}")
            return True
        with engine.connect().execution_options(evoke_begin="") as db:
            db.exec_driver_sql("VACUUM")
            return bool(db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0] == 0)
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        raise _explain(engine, error) from error


def _explain(engine: sa.Engine, error: Exception) -> StoreError:
    reason = " ".join(str(getattr(error, "orig", error)).split())[:160]
    place = engine.url.render_as_string(hide_password=True)
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
    """Insert the events that are not stored yet; return their number."""
    return len(db.execute(_insert(db, events).on_conflict_do_nothing().returning(events.c.id), rows).all())


def insert_if_absent(db: sa.Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert the row; return False if the table has a row of the same key."""
    # The returned key says whether it was inserted: PostgreSQL's driver does not count inserted rows.
    new = _insert(db, table).values(**row).on_conflict_do_nothing().returning(*table.primary_key)
    return db.execute(new).first() is not None


def count(db: sa.Connection, table: sa.Table) -> int:
    """Return the number of rows."""
    return int(db.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def rating_range(db: sa.Connection) -> tuple[float | None, float | None]:
    """Return the lowest and the highest rating; None where no event has one."""
    low, high = db.execute(sa.select(sa.func.min(events.c.rating), sa.func.max(events.c.rating))).one()
    return low, high


def event_columns(db: sa.Connection, splits: Collection[str] | None) -> dict[str, list[Any]]:
    """Return the events of these splits (all events if None) column by column, in (user, time) order."""
    names = ("user_id", "item", "timestamp", "rating", "kind")
    query = sa.select(*(events.c[name] for name in names)).order_by(events.c.user_id, events.c.timestamp, events.c.id)
    if splits is not None:
        query = query.where(events.c.split.in_(list(splits)))
    rows = db.execute(query).all()
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def profile_row(db: sa.Connection, row: Mapping[str, Any]) -> Any:
    """Return the profile with the user, key, model and fingerprint of this row; None if there is none."""
    return db.execute(profiles.select().where(*_same_profile(row))).first()


def replace_profile(db: sa.Connection, row: dict[str, Any]) -> None:
    """Store a profile; delete the former one of the same user or key, model and prompts.

    Nothing is stored for a user without events: a request may end after its user was forgotten.
    """
    if row["user_id"] is not None and not _has(db, events, row["user_id"]):
        return
    db.execute(profiles.delete().where(*_same_profile(row)))
    newest = db.scalar(profiles.insert().values(**row).returning(profiles.c.id))
    # There is no end of histories without a user, and most of them are never asked for again.
    oldest = newest - _MOST_ANONYMOUS_PROFILES
    db.execute(profiles.delete().where(profiles.c.user_id.is_(None), profiles.c.id <= oldest))


def _same_profile(row: Mapping[str, Any]) -> list[Any]:
    return [profiles.c[name] == row[name] for name in ("user_id", "key", "model", "fingerprint")]


def knows_user(db: sa.Connection, user: str) -> bool:
    """Return whether any table has a row of the user, or the database's files may still hold deleted ones."""
    return any(_has(db, table, user) for table in USER_TABLES) or hash_text(user) in _unscrubbed(db)


def _has(db: sa.Connection, table: sa.Table, user: str) -> bool:
    return db.scalar(sa.select(1).select_from(table).where(table.c.user_id == user).limit(1)) is not None


def delete_user(db: sa.Connection, user: str) -> tuple[dict[str, int], list[str]]:
    """Delete the user's rows; return how many, by table, and the hashes of the users that the files must be scrubbed of.

    The hashes are stored until `note_scrubbed` removes them, so that if the scrubbing is interrupted, deleting the user again
    finishes it. The list is empty if the user never had rows that were not scrubbed: then no scrubbing is needed.
    """
    rows = {
        table.name.removeprefix("evoke_"): db.execute(table.delete().where(table.c.user_id == user)).rowcount
        for table in USER_TABLES
    }
    if any(rows.values()):
        insert_if_absent(db, unscrubbed, {"user_hash": hash_text(user)})
    hashes = _unscrubbed(db)
    return rows, hashes if hash_text(user) in hashes else []


def note_scrubbed(db: sa.Connection, hashes: Sequence[str]) -> None:
    """Record that the database's files hold nothing of these users any more."""
    db.execute(unscrubbed.delete().where(unscrubbed.c.user_hash.in_(hashes)))


def _unscrubbed(db: sa.Connection) -> list[str]:
    return list(db.scalars(sa.select(unscrubbed.c.user_hash)))


def hash_text(text: str) -> str:
    """Return a hash of a text that is not to be stored itself."""
    return hashlib.sha256(text.encode()).hexdigest()
