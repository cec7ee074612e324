"""Ask a model many questions at once, and keep the answers in a file.

An answer is kept by the model and the exact messages, so that a run that was killed continues where it stopped, and nothing is
asked twice. The store's own profiles are never read: they may know more than a case does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import ModelError, RequestRefused
from agent.llm import connect, embedded
from agent.llm.adapters import Adapter
from agent.llm.client import LLM
from agent.profile.interests import MAX_TOKENS, PENALTY
from agent.settings import Settings
from eval.errors import EvalError
from eval.progress import Progress, quiet

DEADLINE = 120.0
"""Seconds for one answer: long, because quality is measured here, not speed."""
FAILURES = 8
"""Calls in a row without any answer after which the model counts as gone."""


@dataclass(frozen=True, slots=True)
class Asking:
    """The way in which a model is asked about many cases.

    Args:
        settings: which model, which prompts.
        kept: the file that answers are kept in.
        adapter: a trained adapter on the model.
        progress: shows progress.
        seconds: once so much time was spent, no further case is begun. The time of kept answers counts too, so that a second run
            uses the same cases.
    """

    settings: Settings
    kept: Path
    adapter: Adapter | None = None
    progress: Progress = quiet
    seconds: float | None = None

    @property
    def at_once(self) -> int:
        """The requests in flight."""
        return self.settings.concurrency if self.settings.base_url else embedded.SLOTS


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: what was written (None where nothing can be used), and its cost."""

    written: dict[str, Any] | None
    tokens_in: int = 0
    tokens_out: int = 0
    ms: float = 0.0


Ask = Callable[[int], Awaitable[Reply]]
"""Answers the question of a row, or raises ModelError."""


async def ask_all(
    asking: Asking, title: str, prepare: Callable[[LLM], tuple[Sequence[str], Ask]]
) -> tuple[list[Reply], str]:
    """Ask the questions in their order, a few at once; return the replies to the first of them (all, unless time ran out), and the
    model's cache key.

    Args:
        asking: how the model is asked.
        title: the title of the progress display.
        prepare: returns the key of each question (see `key_of`), and the function that asks it.

    Raises ModelError where no model can be had or answers nothing, EvalError where one stops answering.
    """
    llm = await connect.connect_async(asking.settings)
    try:
        await llm.model_name()
        keys, ask = prepare(llm)
        most_ms = float("inf") if asking.seconds is None else 1000 * asking.seconds * asking.at_once
        with closing(_AnswerCache(asking.kept)) as cache, asking.progress(title) as advance:
            return await _Calls(ask, keys, cache, advance, most_ms).all(asking.at_once), llm.cache_key(asking.adapter)
    finally:
        await llm.close()


def key_of(model: str, how: Sequence[str], messages: Any) -> str:
    """Return a hash of the model and the messages, which hold the history."""
    return hashlib.blake2b(json.dumps([model, how, messages, MAX_TOKENS, PENALTY]).encode(), digest_size=16).hexdigest()


@dataclass
class _Calls:
    """Answers rows in their order, a few at once."""

    ask: Ask
    keys: Sequence[str]
    cache: _AnswerCache
    advance: Callable[[int, int], None]
    most_ms: float
    done: int = 0
    failures: int = 0
    replies: list[Reply | None] = field(init=False)

    def __post_init__(self) -> None:
        self.replies = [self.cache.get(key) for key in self.keys]
        self.left = [row for row, reply in enumerate(self.replies) if reply is None]
        self.answered = len(self.left) < len(self.keys)

    async def all(self, at_once: int) -> list[Reply]:
        """Return the replies to as many of the first rows as the time allows."""
        todo = iter(self.left)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(self._work(todo))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        used: list[Reply] = []
        spent = 0.0
        for reply in self.replies:
            if reply is None or spent >= self.most_ms:
                break
            spent += reply.ms
            used.append(reply)
        return used

    async def _work(self, todo: Iterator[int]) -> None:
        for row in todo:
            if sum(reply.ms for reply in self.replies[:row] if reply) >= self.most_ms:
                return
            self.replies[row] = await self._reply(row)
            self.done += 1
            self.advance(self.done, len(self.left))

    async def _reply(self, row: int) -> Reply:
        try:
            reply = await self.ask(row)
        except ModelError as error:
            # A failure is not kept: the next time the model may answer, and a server that is there may take the request.
            if isinstance(error, RequestRefused) and self.answered:
                return Reply(None)
            self.failures += 1
            if self.failures < FAILURES:
                return Reply(None)
            if not self.answered:
                raise
            raise EvalError(
                f"the model stopped answering ({error.reason}) after {self.done} of "
                f"{len(self.left)} questions; run the same command again to go on from there"
            ) from error
        self.failures, self.answered = 0, True
        self.cache.put(self.keys[row], reply)
        return reply


class _AnswerCache:
    """Answers in an SQLite file, each written as soon as it is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, timeout=60)
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def get(self, key: str) -> Reply | None:
        """Return the kept reply, if there is one."""
        row = self._db.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
        return Reply(**json.loads(row[0])) if row else None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply. Raises EvalError where that is not possible."""
        try:
            with self._db:
                self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(asdict(reply))))
        except sqlite3.OperationalError as error:
            deleted = "a user was deleted during this run, and the kept answers with them"
            why = error if self._file.is_file() else deleted
            raise EvalError(f"an answer cannot be kept ({why}); run the same command again") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()
