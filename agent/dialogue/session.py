"""A conversation: each message is parsed, then answered with items first and words second.

The rule-based parser reads every message and its constraints are final, so the first items do not depend on the model. An LLM
parser may run too (see `agent.dialogue.nlu.llm_parser`): its additions are awaited after the first items.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, Self

from agent.dialogue.backend import Backend
from agent.dialogue.events import Constraint, Done, Event, Turn, Understanding
from agent.dialogue.from_messages import rebuild_state
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.llm_parser import needs_llm, parse_with_llm
from agent.dialogue.nlu.message import replace_surrogates
from agent.dialogue.nlu.rule_parser import ParsedMessage, parse
from agent.dialogue.policy import TurnDraft, answer_question, recommend
from agent.dialogue.state import State, merge
from agent.dialogue.state_tracking import set_stance, update_state
from agent.errors import EvokeError, SessionNotFound
from agent.llm.client import Deadline
from agent.results import Stage, Trace
from store.records import Event as HistoryEvent

FeedbackKind = Literal["like", "dislike", "seen", "hide"]
ITEMS = 5
"""Default number of items in an answer."""
WITHOUT_RETRIEVAL = ("ask", "compare", "why", "chat")
"""Intents that are answered from the catalog's fields and the state alone."""


class AsyncSession:
    """One conversation, made by `AsyncRecommender.session`. Turns of one session run one after the other.

    It is stored after every turn, before `Done` is sent. Several processes may use one session: their changes are merged.
    """

    def __init__(
        self, backend: Backend, user: str | None = None, id: str | None = None, *, stored: bool = True
    ) -> None:
        """Begin a conversation, or resume the one stored under `id`. Raises EvokeError if that one is another user's.

        Args:
            backend: the recommender.
            user: the user's id, or None for a user without a history.
            id: the session's id; None makes a new one.
            stored: False for a conversation that the caller stores, which writes nothing.
        """
        self._backend = backend
        self.user = user
        self.id = id or uuid.uuid4().hex
        self.n = ITEMS
        self.state = State()
        self._version = 0
        self._owner: str | None = None
        self._stored = stored
        self._turn = asyncio.Lock()
        if id:
            self._refresh()

    @classmethod
    async def load(cls, backend: Backend, id: str) -> Self:
        """Return the conversation stored under this id. Raises SessionNotFound if there is none."""
        session = await asyncio.to_thread(cls, backend, None, id)
        if not session._version:
            raise SessionNotFound(f"there is no session {id}; begin a new one")
        return session

    @classmethod
    def of_messages(cls, backend: Backend, messages: Sequence[Mapping[str, Any]], user: str | None = None) -> Self:
        """Return the conversation that these chat messages amount to, without storing it.

        The last message is left out: it is the one to send next.
        """
        session = cls(backend, user, stored=False)
        session.state = rebuild_state(messages[:-1], backend.catalog)
        return session

    async def send(self, message: str) -> Turn:
        """Return the whole answer to a message."""
        async with aclosing(self.stream(message)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event.turn
        raise EvokeError("the answer ended early; send the message again")

    async def stream(self, message: str) -> AsyncGenerator[Event, None]:
        """Yield the events of the answer (`agent.dialogue.events`).

        Closing the stream early stops the model; the answer is stored as far as it was written.
        """
        message = replace_surrogates(message)
        async with self._turn:
            await self._begin()
            before, trace = self.state.copy(), Trace()
            with trace.stage("understanding") as stage:
                lexicon = await asyncio.to_thread(Lexicon.of, self._backend.catalog)
                parsed = await asyncio.to_thread(parse, message, self.state, lexicon, self._metadata)
                understood = update_state(self.state, parsed, lexicon)
            self.state.messages.append({"role": "user", "content": message})
            n = parsed.n or self.n
            draft = TurnDraft(
                message, parsed, understood, self.state, lexicon, self._backend, self.user, n, trace, self._stored
            )
            llm_parsed = self._start_llm_parser(draft, stage)
            try:
                yield Understanding(understood)
                await asyncio.to_thread(self._record_mentions, parsed)
                question = parsed.intent in WITHOUT_RETRIEVAL
                async with aclosing(answer_question(draft) if question else recommend(draft, llm_parsed)) as events:
                    async for event in events:
                        yield event
            finally:
                if llm_parsed:
                    llm_parsed.cancel()
                shown = {"items": [r.item.id for r in draft.items]} if draft.items else {}
                self.state.messages.append({"role": "assistant", "content": draft.text, **shown})
                # A server may cancel again at every await; unshielded, the turn would be lost.
                await asyncio.shield(self._save(before))
            yield Done(self._finish(draft))

    async def feedback(self, item: str, kind: FeedbackKind) -> None:
        """Record that the user likes, dislikes, has seen or hides an item: in the conversation and in the user's history.

        It takes effect with the next answer. Raises EvokeError for an unknown item.
        """
        if item not in self._backend.catalog:
            raise EvokeError(f"there is no item {item} in the catalog; give the id of a shown item")
        async with self._turn:
            await self._begin()
            before = self.state.copy()
            set_stance(self.state, item, "seen" if kind == "hide" else kind)
            await asyncio.to_thread(self._record_events, [(item, kind)])
            await self._save(before)

    async def relax(self, constraint: Constraint | int) -> None:
        """Remove a constraint, given itself or by its position. Raises EvokeError if it is not active."""
        async with self._turn:
            await asyncio.to_thread(self._refresh)
            before, active = self.state.copy(), self.state.constraints
            at = constraint if isinstance(constraint, int) else active.index(constraint) if constraint in active else -1
            if not 0 <= at < len(active):
                raise EvokeError("no such constraint is active; see the session's constraints")
            del active[at]
            await self._save(before)

    async def save(self) -> None:
        """Store the conversation. Every turn does so by itself."""
        async with self._turn:
            await self._save(self.state.copy())

    def as_json(self) -> dict[str, Any]:
        """Return the conversation as plain dicts and lists: its messages, active constraints, likes and dislikes."""
        state = self.state
        return {
            "session": self.id,
            "user": self.user,
            "constraints": [c.as_json() for c in state.constraints],
            "turns": state.messages,
            "liked": state.liked,
            "disliked": state.disliked,
        }

    def _start_llm_parser(self, draft: TurnDraft, stage: Stage) -> asyncio.Task[ParsedMessage | None] | None:
        """Start the LLM parser in the background, if it is enabled and the rules left words over."""
        seconds = self._backend.settings.reading_seconds
        if not seconds or not needs_llm(draft.parsed):
            return None
        return asyncio.create_task(
            parse_with_llm(
                draft.message,
                draft.parsed,
                draft.state,
                self._backend.catalog,
                draft.lexicon,
                connect=self._backend.connect,
                prompts=self._backend.prompts,
                deadline=Deadline(seconds),
                stage=stage,
            )
        )

    def _finish(self, draft: TurnDraft) -> Turn:
        stages = draft.trace.stages
        return Turn(
            draft.text,
            draft.items,
            draft.understood.intent,
            list(self.state.constraints),
            draft.question,
            draft.trace.degraded,
            draft.trace,
            sum(stage.tokens_in for stage in stages),
            sum(stage.tokens_out for stage in stages),
            self.id if self._stored else None,
            draft.profile,
        )

    def _metadata(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return [dict(item.metadata) for item in self._backend.catalog.get(list(ids)).values()]

    def _record_mentions(self, parsed: ParsedMessage) -> None:
        """Add the message's likes, dislikes and seen items to the user's history."""
        kinds: dict[str, FeedbackKind] = {"like": "like", "dislike": "dislike", "seen": "seen"}
        self._record_events([(m.id, kinds[m.stance]) for m in parsed.mentions if m.stance in kinds])

    def _record_events(self, events: Sequence[tuple[str, FeedbackKind]]) -> None:
        if self.user is not None and self._stored and events:
            if self._backend.history.session(self.id) is None:
                raise self._forgotten_error()
            now = time.time()
            self._backend.history.add([HistoryEvent(self.user, item, now, kind=kind) for item, kind in events])

    async def _begin(self) -> None:
        """Load the latest state, and store a new conversation before its first answer.

        So feedback given while that answer is written finds the conversation, and a user who is forgotten in that time stays
        forgotten.
        """
        await asyncio.to_thread(self._refresh)
        if not self._version or (self.user is not None and self._owner != self.user):
            await self._save(self.state.copy())

    def _refresh(self) -> None:
        """Load the state if another process has changed it."""
        if not self._stored:
            return
        row = self._backend.history.session(self.id, self._version)
        if row is None:
            return
        if self.user is not None and row.user is not None and row.user != self.user:
            raise EvokeError(f"session {self.id} is another user's; begin a new one")
        self._owner = row.user
        self.user = self.user if self.user is not None else row.user
        self.state, self._version = State.from_json(json.loads(row.state)), row.version

    async def _save(self, before: State) -> None:
        """Store the state. If another process wrote since `before`, merge both first."""
        if self._stored:
            await asyncio.to_thread(self._write, before)

    def _write(self, before: State) -> None:
        history = self._backend.history
        while True:
            row = json.dumps(self.state.as_json(), ensure_ascii=False)
            if version := history.save_session(self.id, self.user, row, self._version):
                self._version, self._owner = version, self.user
                return
            latest = history.session(self.id)
            if latest is None:
                raise self._forgotten_error()
            theirs = State.from_json(json.loads(latest.state))
            self.state, before, self._version = merge(before, self.state, theirs), theirs, latest.version

    def _forgotten_error(self) -> SessionNotFound:
        return SessionNotFound(f"session {self.id} was forgotten meanwhile; begin a new one")
