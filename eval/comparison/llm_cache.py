"""Many calls of a model at once, their answers kept in a file.

An answer is kept by the model and the exact messages, so that a run that was killed continues where it stopped, and nothing is
asked twice. The store's own profiles are never read: they may know more than a case does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from agent import event_loop
from agent.errors import BadAnswer, ModelDown, ModelError, RequestRefused
from agent.llm import connect, embedded
from agent.llm.adapters import Adapter
from agent.llm.client import LLM, Deadline
from agent.profile.fallback import NO_MIX, fill_up
from agent.profile.interests import MAX_TOKENS, PENALTY, Question, ask, checked, questions
from agent.profile.schemas import Written
from agent.results import Interests, Stage
from agent.settings import Settings
from eval.errors import EvalError
from eval.progress import Progress, quiet
from prompts import Prompts
from store import Item
from store.catalog import Field

DEADLINE = 120.0
"""Seconds for one answer: long, because quality is measured here, not speed."""
FAILURES = 8
"""Calls in a row without any answer after which the model counts as gone."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: what was written (None where nothing can be used), and its cost."""

    written: dict[str, Any] | None
    tokens_in: int = 0
    tokens_out: int = 0
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One case's answer as the recommender uses it.

    Args:
        interests: the answer after the checks, filled up.
        reply: the replies to all calls together.
        calls: how many calls were made; 0 for a case without history.
        queries, queries_kept, named, named_kept: how many the model wrote, and how many passed the checks.
    """

    interests: Interests
    reply: Reply
    calls: int = 0
    queries: int = 0
    queries_kept: int = 0
    named: int = 0
    named_kept: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers for the first cases (all, unless time ran out), the model's cache key, and the requests in flight."""

    answers: list[Answer]
    model: str
    at_once: int


def answers(
    histories: Sequence[Sequence[Item]],
    parts: Sequence[str],
    *,
    settings: Settings,
    schema: Mapping[str, Field],
    kept: Path,
    adapter: Adapter | None = None,
    others: Sequence[Sequence[Item]] = (),
    progress: Progress = quiet,
    seconds: float | None = None,
) -> Answers:
    """Ask the model, or a trained adapter on it, about each history.

    Args:
        histories: for each case the liked items, oldest first.
        parts: what is asked for (`agent.profile.schemas.FORMS`).
        settings: which model, which prompts.
        schema: the catalog's fields.
        kept: the file that answers are kept in.
        adapter: a trained adapter.
        others: for each case the items that other people chose next, which a trained adapter is shown.
        progress: shows progress.
        seconds: once so much time was spent no further case is begun. The time of kept answers counts too, so that a second run
            uses the same cases.

    Raises ModelError where no model can be had or answers nothing, EvalError where one stops answering.
    """
    return event_loop.run(_answers(histories, tuple(parts), settings, schema, kept, adapter, others, progress, seconds))


async def _answers(
    histories: Sequence[Sequence[Item]],
    parts: tuple[str, ...],
    settings: Settings,
    schema: Mapping[str, Field],
    kept: Path,
    adapter: Adapter | None,
    others: Sequence[Sequence[Item]],
    progress: Progress,
    seconds: float | None,
) -> Answers:
    llm = await connect.connect_async(settings)
    at_once = settings.concurrency if settings.base_url else embedded.SLOTS
    try:
        await llm.model_name()
        prompts = Prompts(settings.prompts)
        asking = [
            questions(history, prompts, schema, parts, adapter, own) if history else []
            for history, own in zip_longest(histories, others, fillvalue=())
        ]
        each = [call for own in asking for call in own]
        keys = [AnswerCache.key(llm.cache_key(call.adapter), [call.form.__name__], call.messages) for call in each]

        async def answer(row: int) -> Reply:
            return await _answer(llm, each[row])

        with (
            closing(AnswerCache(kept)) as store,
            progress(f"answers of the model for {' and '.join(parts)}") as advance,
        ):
            most_ms = float("inf") if seconds is None else 1000 * seconds * at_once
            replies = iter(await BatchCalls(answer, keys, store, advance, most_ms).all(at_once))
    finally:
        await llm.close()
    used = []
    for history, own, case in zip_longest(histories, others, asking, fillvalue=()):
        said = list(islice(replies, len(case)))
        if len(said) < len(case):
            break
        used.append(_answer_of(said, history, schema, adapter, own))
    return Answers(used, llm.cache_key(adapter), at_once)


async def _answer(llm: LLM, question: Question) -> Reply:
    """The answer to one question, with nothing written where it is of no use. Raises ModelError where no answer comes, or the
    request is refused: the next time it may not be."""
    started = time.perf_counter()
    try:
        try:
            reply = await ask(llm, [question], Deadline(DEADLINE))
        except ModelDown:
            reply = await ask(llm, [question], Deadline(DEADLINE))
    except RequestRefused:
        raise
    except BadAnswer:
        return Reply(None, ms=round((time.perf_counter() - started) * 1000, 1))
    usage = reply.usage
    written = reply.value.model_dump(exclude_unset=True)  # what was not asked for must not hide another answer's
    return Reply(written, usage.tokens_in, usage.tokens_out, round(reply.ms, 1))


class BatchCalls:
    """Answers rows in their order, a few at once. `ask` answers one row or raises ModelError."""

    def __init__(
        self,
        ask: Callable[[int], Awaitable[Reply]],
        keys: Sequence[str],
        kept: AnswerCache,
        advance: Callable[[int, int], None],
        most_ms: float = float("inf"),
    ) -> None:
        self._asked, self._keys, self._kept = ask, keys, kept
        self._advance, self._most_ms = advance, most_ms
        self._replies = [kept.get(key) for key in keys]
        self._left = [row for row, reply in enumerate(self._replies) if reply is None]
        self._done = self._failures = 0
        self._answered = sum(reply is not None for reply in self._replies)

    async def all(self, at_once: int) -> list[Reply]:
        """Return the replies to as many of the first rows as the time allows."""
        todo = iter(self._left)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(self._work(todo))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        used: list[Reply] = []
        spent = 0.0
        for reply in self._replies:
            if reply is None or spent >= self._most_ms:
                break
            spent += reply.ms
            used.append(reply)
        return used

    async def _work(self, todo: Any) -> None:
        for row in todo:
            if sum(reply.ms for reply in self._replies[:row] if reply) >= self._most_ms:
                return
            self._replies[row] = await self._ask(row)
            self._done += 1
            self._advance(self._done, len(self._left))

    async def _ask(self, row: int) -> Reply:
        try:
            reply = await self._asked(row)
        except ModelError as error:
            if isinstance(error, RequestRefused) and self._answered:
                return Reply(None)  # the server is there; not kept: it may take the request the next time
            self._failures += 1
            if self._failures >= FAILURES:
                if not self._answered:
                    raise
                raise EvalError(
                    f"the model stopped answering ({error.reason}) after {self._done} of "
                    f"{len(self._left)} questions; run the same command again to go on from there"
                ) from error
            return Reply(None)  # not kept: it may answer the next time
        self._failures = 0
        self._answered += 1
        self._kept.put(self._keys[row], reply)
        return reply


class AnswerCache:
    """Answers in an SQLite file, each written as soon as it is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, timeout=60)
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    @staticmethod
    def key(model: str, how: Sequence[str], messages: Any) -> str:
        """Return a hash of the model and the messages, which hold the history."""
        return hashlib.blake2b(
            json.dumps([model, how, messages, MAX_TOKENS, PENALTY]).encode(), digest_size=16
        ).hexdigest()

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
            gone = (
                "a user was deleted during this run, and the kept answers with them"
                if not self._file.is_file()
                else error
            )
            raise EvalError(f"an answer cannot be kept ({gone}); run the same command again") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _answer_of(
    replies: Sequence[Reply],
    history: Sequence[Item],
    schema: Mapping[str, Field],
    adapter: Adapter | None,
    others: Sequence[Item],
) -> Answer:
    if not history:
        return Answer(Interests(), Reply(None))
    stage = Stage("profile")
    said = {name: value for reply in replies for name, value in (reply.written or {}).items()}
    written = Written.model_validate(said)
    passed = checked(written, history, None, stage)
    return Answer(
        fill_up(passed, history, schema, stage, adapter.mix if adapter else NO_MIX, others),
        Reply(
            said or None,
            sum(reply.tokens_in for reply in replies),
            sum(reply.tokens_out for reply in replies),
            max(reply.ms for reply in replies),
        ),
        calls=len(replies),
        queries=len(written.queries),
        queries_kept=len(passed.queries),
        named=len(written.named),
        named_kept=len(passed.named),
    )
