"""A conversation: each message is understood, acted on, and answered with items first and then words.

The plain parser reads every message, and its conditions stand, so that items come at once whatever the model does. A model
that is set to read along (see `agent.dialogue.nlu.llm_parser`) is waited for only after the first items, and only for what it adds.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Self

from agent.dialogue.events import Constraint, Done, Event, Turn, Understanding
from agent.dialogue.from_messages import replayed
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.llm_parser import read, worth_reading
from agent.dialogue.nlu.message import readable
from agent.dialogue.nlu.rule_parser import Reading, parse
from agent.dialogue.policy import Reply, recommend, talk
from agent.dialogue.state import State, merged
from agent.dialogue.state_tracking import follow, mark
from agent.errors import EvokeError, SessionNotFound
from agent.llm.client import Deadline
from agent.results import Stage, Trace
from store.records import Event as HistoryEvent

if TYPE_CHECKING:
    from agent.recommender import AsyncRecommender

Kind = Literal["like", "dislike", "seen", "hide"]
SHOWN = 5
"""Items of an answer."""
TALK = ("ask", "compare", "why", "chat")


class AsyncSession:
    """One conversation. Made by `AsyncRecommender.session`; turns of one session wait for each other.

    It is stored after every turn, before the turn's end is told. Several processes may go on with one session: what each adds
    is joined. Raises EvokeError where `id` is another user's session.
    """

    def __init__(
        self, recommender: AsyncRecommender, user: str | None = None, id: str | None = None, *, stored: bool = True
    ) -> None:
        self._recommender = recommender
        self.user = user
        self.id = id or uuid.uuid4().hex
        self.n = SHOWN
        self.state = State()
        self._version = 0
        self._owner: str | None = None
        self._stored = stored
        self._turn = asyncio.Lock()
        if id:
            self._refresh()

    @classmethod
    async def load(cls, recommender: AsyncRecommender, id: str) -> Self:
        """The conversation kept under this id. Raises SessionNotFound where there is none."""
        session = await asyncio.to_thread(cls, recommender, None, id)
        if not session._version:
            raise SessionNotFound(f"there is no session {id}; begin a new one")
        return session

    @classmethod
    def of_messages(
        cls, recommender: AsyncRecommender, messages: Sequence[Mapping[str, Any]], user: str | None = None
    ) -> Self:
        """The conversation as these chat messages (all but the last, which is to be sent) tell it; it is not stored."""
        session = cls(recommender, user, stored=False)
        session.state = replayed(messages[:-1], recommender.catalog)
        return session

    async def send(self, message: str) -> Turn:
        """The whole answer to a message."""
        async with aclosing(self.stream(message)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event.turn
        raise EvokeError("the answer broke off; send the message again")

    async def stream(self, message: str) -> AsyncGenerator[Event, None]:
        """The answer as it comes about (`agent.dialogue.events`). Closed early, it stops the model, and what was said is kept."""
        message = readable(message)
        async with self._turn:
            await self._begin()
            before, trace = self.state.copy(), Trace()
            with trace.stage("understanding") as stage:
                lexicon = await asyncio.to_thread(Lexicon.of, self._recommender.catalog)
                said = await asyncio.to_thread(parse, message, self.state, lexicon, self._metadata)
                understood = follow(self.state, said, lexicon)
            self.state.messages.append({"role": "user", "content": message})
            n = said.n or self.n
            reply = Reply(
                message, said, understood, self.state, lexicon, self._recommender, self.user, n, trace, self._stored
            )
            reading = self._reading(reply, stage)
            try:
                yield Understanding(understood)
                await asyncio.to_thread(self._tell_history, said)
                async with aclosing(talk(reply) if said.intent in TALK else recommend(reply, reading)) as events:
                    async for event in events:
                        yield event
            finally:
                if reading:
                    reading.cancel()
                shown = {"items": [r.item.id for r in reply.items]} if reply.items else {}
                self.state.messages.append({"role": "assistant", "content": reply.text, **shown})
                # A server that cancels again at every await would else lose the turn.
                await asyncio.shield(self._keep(before))
            yield Done(self._done(reply))

    async def feedback(self, item: str, kind: Kind) -> None:
        """Say of an item that it is liked, disliked, seen or to be hidden: the next answer heeds it, and the user's history.

        Raises EvokeError for an unknown item.
        """
        if item not in self._recommender.catalog:
            raise EvokeError(f"there is no item {item} in the catalog; give the id of one that was shown")
        async with self._turn:
            await self._begin()
            before = self.state.copy()
            mark(self.state, item, "seen" if kind == "hide" else kind)
            await asyncio.to_thread(self._record, [(item, kind)])
            await self._keep(before)

    async def relax(self, constraint: Constraint | int) -> None:
        """Take a constraint (or the one at this place) back. Raises EvokeError where it is not in force."""
        async with self._turn:
            await asyncio.to_thread(self._refresh)
            before, known = self.state.copy(), self.state.constraints
            at = constraint if isinstance(constraint, int) else known.index(constraint) if constraint in known else -1
            if not 0 <= at < len(known):
                raise EvokeError("no such constraint is in force; see the session's constraints")
            del known[at]
            await self._keep(before)

    async def save(self) -> None:
        """Store the conversation as it is. Every turn does so by itself."""
        async with self._turn:
            await self._keep(self.state.copy())

    def as_json(self) -> dict[str, Any]:
        """The conversation as plain dicts and lists: what was said last, and what it came to."""
        state = self.state
        return {
            "session": self.id,
            "user": self.user,
            "constraints": [c.as_json() for c in state.constraints],
            "turns": state.messages,
            "liked": state.liked,
            "disliked": state.disliked,
        }

    def _reading(self, reply: Reply, stage: Stage) -> asyncio.Task[Reading | None] | None:
        """The model reading along, where it is to and the parser left it something."""
        seconds = self._recommender.settings.reading_seconds
        if not seconds or not worth_reading(reply.said):
            return None
        return asyncio.create_task(
            read(
                reply.message,
                reply.said,
                reply.state,
                self._recommender.catalog,
                reply.lexicon,
                connect=self._recommender.connect,
                prompts=self._recommender.prompts,
                deadline=Deadline(seconds),
                stage=stage,
            )
        )

    def _done(self, reply: Reply) -> Turn:
        stages = reply.trace.stages
        return Turn(
            reply.text,
            reply.items,
            reply.understood.intent,
            list(self.state.constraints),
            reply.question,
            reply.trace.degraded,
            reply.trace,
            sum(stage.tokens_in for stage in stages),
            sum(stage.tokens_out for stage in stages),
            self.id if self._stored else None,
            reply.profile,
        )

    def _metadata(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return [dict(item.metadata) for item in self._recommender.catalog.get(list(ids)).values()]

    def _tell_history(self, said: Reading) -> None:
        """What the message says of items, for the user's long-term profile."""
        kinds: dict[str, Kind] = {"like": "like", "dislike": "dislike", "seen": "seen"}
        self._record([(m.id, kinds[m.stance]) for m in said.mentions if m.stance in kinds])

    def _record(self, signals: Sequence[tuple[str, Kind]]) -> None:
        if self.user is not None and self._stored and signals:
            if self._recommender.history.session(self.id) is None:
                raise self._forgotten()
            now = time.time()
            self._recommender.history.add([HistoryEvent(self.user, item, now, kind=kind) for item, kind in signals])

    async def _begin(self) -> None:
        """Take up what is kept. A conversation is kept before anything is said in it: what is liked while its first answer is
        written finds it, and so does whoever forgets the user meanwhile, so that it does not come back."""
        await asyncio.to_thread(self._refresh)
        if not self._version or (self.user is not None and self._owner != self.user):
            await self._keep(self.state.copy())

    def _refresh(self) -> None:
        """Take up what another process has added to the conversation."""
        if not self._stored:
            return
        kept = self._recommender.history.session(self.id, self._version)
        if kept is None:
            return
        if self.user is not None and kept.user is not None and kept.user != self.user:
            raise EvokeError(f"session {self.id} is another user's; begin a new one")
        self._owner = kept.user
        self.user = self.user if self.user is not None else kept.user
        self.state, self._version = State.from_json(json.loads(kept.state)), kept.version

    async def _keep(self, before: State) -> None:
        """Store the state; where another process wrote since `before`, join the two first."""
        if self._stored:
            await asyncio.to_thread(self._write, before)

    def _write(self, before: State) -> None:
        history = self._recommender.history
        while True:
            row = json.dumps(self.state.as_json(), ensure_ascii=False)
            if version := history.save_session(self.id, self.user, row, self._version):
                self._version, self._owner = version, self.user
                return
            theirs = history.session(self.id)
            if theirs is None:
                raise self._forgotten()
            joined = State.from_json(json.loads(theirs.state))
            self.state, before, self._version = merged(before, self.state, joined), joined, theirs.version

    def _forgotten(self) -> SessionNotFound:
        return SessionNotFound(f"session {self.id} was forgotten meanwhile; begin a new one")
