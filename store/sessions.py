"""Stored conversations, one row each. A version number keeps two writers from overwriting each other."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from store.tables import insert_if_absent, sessions


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A stored conversation: its user, its state as JSON text, and the version that the next write must give."""

    user: str | None
    state: str
    version: int


def read(db: sa.Connection, id: str, known: int) -> StoredSession | None:
    """Return the conversation of this id; None if there is none, or if its version is still `known`."""
    row = db.execute(sessions.select().where(sessions.c.id == id, sessions.c.version != known)).first()
    return None if row is None else StoredSession(row.user_id, row.state, row.version)


def write(db: sa.Connection, id: str, user: str | None, state: str, version: int) -> int | None:
    """Store the next state of a conversation; return its new version.

    Args:
        db: a transaction that writes.
        id: the conversation's id.
        user: whose conversation it is, if that is known.
        state: the state as JSON text.
        version: the version that the state was made from; 0 for a new conversation.

    Returns None, and changes nothing, if another process has written or deleted the conversation since that version.
    """
    if version == 0:
        row = {"id": id, "user_id": user, "state": state, "version": 1, "updated": time.time()}
        return 1 if insert_if_absent(db, sessions, row) else None
    same = (sessions.c.id == id, sessions.c.version == version)
    done = db.execute(
        sessions.update().where(*same).values(user_id=user, state=state, version=version + 1, updated=time.time())
    )
    return version + 1 if done.rowcount else None
