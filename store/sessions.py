"""Conversations kept beside the histories: one row each, with a version, so that of two writers neither undoes the other."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from store.tables import inserted, sessions


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored conversation: whose it is, its state as JSON text, and the version that the next writer must name."""

    user: str | None
    state: str
    version: int


def read(db: sa.Connection, id: str) -> Kept | None:
    """The conversation of this id, or None."""
    row = db.execute(sessions.select().where(sessions.c.id == id)).first()
    return None if row is None else Kept(row.user_id, row.state, row.version)


def write(db: sa.Connection, id: str, user: str | None, state: str, version: int) -> int | None:
    """Keep the state that follows `version` (0: a new conversation); returns its version.

    None where another has written, or the conversation was forgotten, in between: nothing is changed then.
    """
    if version == 0:
        row = {"id": id, "user_id": user, "state": state, "version": 1, "updated": time.time()}
        return 1 if inserted(db, sessions, row) else None
    same = (sessions.c.id == id, sessions.c.version == version)
    done = db.execute(
        sessions.update().where(*same).values(user_id=user, state=state, version=version + 1, updated=time.time())
    )
    return version + 1 if done.rowcount else None


def version_of(db: sa.Connection, id: str) -> int:
    """The version of the conversation; 0 where there is none."""
    return int(db.scalar(sa.select(sessions.c.version).where(sessions.c.id == id)) or 0)
