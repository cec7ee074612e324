"""What was answered to events sent under a key, kept for a day beside them: sent again, they are not added again.

An answer quotes nothing that was sent: it is kept as it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import sqlalchemy as sa

from store.errors import StoreError
from store.tables import answers, inserted

KEPT = 24 * 3600
"""Seconds for which a key is remembered."""


class OtherContent(StoreError):
    """The key was used before, with other content."""


def keep(db: sa.Connection, key: str, digest: str, answer: dict[str, Any]) -> dict[str, Any] | None:
    """Keep the answer under the key; returns None, or the answer that was kept there before.

    Raises OtherContent where that was to content of another digest.
    """
    expire(db)
    # A key may name a user, and a body does: of both only hashes are kept, the body's under the key that nobody else has. So
    # forgetting a user leaves them where they are: without them a post sent again would bring back whom it is about.
    known, content = _hash(key), _hash(f"{key} {digest}")
    row = {"key": known, "digest": content, "answer": json.dumps(answer), "at": time.time()}
    if inserted(db, answers, row):
        return None
    before = db.execute(answers.select().where(answers.c.key == known)).one()
    if before.digest != content:
        raise OtherContent("this Idempotency-Key was used with other content; take a new key")
    kept: dict[str, Any] = json.loads(before.answer)
    return kept


def expire(db: sa.Connection) -> None:
    """Remove the answers whose time is over."""
    db.execute(answers.delete().where(answers.c.at < time.time() - KEPT))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
