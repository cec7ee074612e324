"""Idempotency keys: answers to posts of events, kept for a day, so that a post that is sent again adds nothing.

An answer quotes nothing of the post, so it is stored as it is.
"""

from __future__ import annotations

import json
import time
from typing import Any

import sqlalchemy as sa

from store.errors import StoreError
from store.tables import answers, hash_text, insert_if_absent

KEPT = 24 * 3600
"""Seconds for which a key is remembered."""


class OtherContent(StoreError):
    """The key was used before, with other content."""


def keep_answer(db: sa.Connection, key: str, digest: str, answer: dict[str, Any]) -> dict[str, Any] | None:
    """Store the answer under the key and return None; if the key is known, return the answer stored before instead.

    Args:
        db: a transaction that writes.
        key: the client's idempotency key.
        digest: a hash of the post's content.
        answer: the answer to the post, as JSON values.

    Raises OtherContent if the key is known with another digest.
    """
    expire_answers(db)
    # Key and content may name a user. Only hashes of them are stored, the content's with the key, which others cannot guess. So
    # they may outlive the user's data; without them, a post that is sent again would bring a forgotten user back.
    known, content = hash_text(key), hash_text(f"{key} {digest}")
    row = {"key": known, "digest": content, "answer": json.dumps(answer), "at": time.time()}
    if insert_if_absent(db, answers, row):
        return None
    before = db.execute(answers.select().where(answers.c.key == known)).one()
    if before.digest != content:
        raise OtherContent("this Idempotency-Key was used with other content; take a new key")
    stored: dict[str, Any] = json.loads(before.answer)
    return stored


def expire_answers(db: sa.Connection) -> None:
    """Delete the answers that are older than a day."""
    db.execute(answers.delete().where(answers.c.at < time.time() - KEPT))
