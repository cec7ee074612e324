"""What was answered to events sent under a key, kept for a day beside them: sent again, they are not added again."""

from __future__ import annotations

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
    now, column = time.time(), answers.c
    db.execute(answers.delete().where(column.at < now - KEPT))
    row = {"key": key, "digest": digest, "answer": json.dumps(answer), "at": now}
    if inserted(db, answers, row):
        return None
    before = db.execute(answers.select().where(column.key == key)).one()
    if before.digest != digest:
        raise OtherContent("this Idempotency-Key was used with other content; take a new key")
    kept: dict[str, Any] = json.loads(before.answer)
    return kept
