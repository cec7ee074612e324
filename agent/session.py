"""A conversation: each message is understood, acted on, and answered with items first and then words."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from agent.errors import EvokeError
from agent.recall import Said
from agent.results import Explained, Result
from agent.state import State
from agent.turns import Constraint, Done, Event, Items, Turn, Understanding, Understood, Words

if TYPE_CHECKING:
    from agent.recommender import AsyncRecommender

Kind = Literal["like", "dislike", "seen", "hide"]
SHOWN = 5
"""Items of an answer."""


class AsyncSession:
    """One conversation. Made by `AsyncRecommender.session`; turns of one session wait for each other."""

    def __init__(self, recommender: AsyncRecommender, user: str | None = None, id: str | None = None) -> None:
        self._recommender = recommender
        self.user = user
        self.id = id or uuid.uuid4().hex
        self.n = SHOWN
        self.state = State()
        self._turn = asyncio.Lock()

    @classmethod
    async def load(cls, recommender: AsyncRecommender, id: str) -> Self:
        """The conversation kept under this id. Raises SessionNotFound where there is none."""
        return cls(recommender, None, id)

    @classmethod
    def of_messages(
        cls, recommender: AsyncRecommender, messages: Sequence[Mapping[str, Any]], user: str | None = None
    ) -> Self:
        """The conversation as these chat messages (all but the last, which is to be sent) tell it; it is not stored."""
        session = cls(recommender, user)
        session.state.messages = [{"role": m["role"], "content": m["content"]} for m in messages[:-1]]
        return session

    async def send(self, message: str) -> Turn:
        """The whole answer to a message."""
        async with aclosing(self.stream(message)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event.turn
        raise EvokeError("the answer broke off; send the message again")

    async def stream(self, message: str) -> AsyncGenerator[Event, None]:
        """The answer as it comes about: see `agent.turns`. Closed early, it stops the model, and what was said is kept."""
        async with self._turn:
            state = self.state
            state.messages.append({"role": "user", "content": message})
            understood = Understood("recommend", list(state.constraints), queries=[message])
            yield Understanding(understood)
            where = {"$and": [c.where for c in state.constraints]} if state.constraints else None
            text, items, trace = "", [], None
            events = self._recommender.stream(
                message, user=self.user, n=self.n, where=where, exclude=state.shown, said=Said(disliked=state.disliked)
            )
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Result):
                        items, trace = list(event.items), event.trace
                        state.shown += [r.item.id for r in items]
                        state.last = [r.item.id for r in items]
                        yield Items(list(items))
                    elif isinstance(event, Explained):
                        one = items[event.rank - 1] = replace(items[event.rank - 1], explanation=event.text)
                        piece = f"{one.rank}. {one.item.title}: {event.text}\n"
                        text += piece
                        yield Words(piece)
            state.messages.append({"role": "assistant", "content": text, "items": state.last})
            yield Done(Turn(text, items, understood.intent, list(state.constraints), None, [], trace, session=self.id))

    async def feedback(self, item: str, kind: Kind) -> None:
        """Say of an item that it is liked, disliked, seen or to be hidden. Raises EvokeError for an unknown item."""
        if item not in self._recommender.catalog:
            raise EvokeError(f"there is no item {item} in the catalog; give the id of one that was shown")
        {"like": self.state.liked, "dislike": self.state.disliked}.get(kind, self.state.seen).append(item)

    async def relax(self, constraint: Constraint | int) -> None:
        """Take a constraint back."""
        at = constraint if isinstance(constraint, int) else self.state.constraints.index(constraint)
        del self.state.constraints[at]

    async def save(self) -> None:
        """Store the conversation; every turn does."""

    def as_json(self) -> dict[str, Any]:
        """The conversation as plain dicts and lists."""
        state = self.state
        return {
            "session": self.id,
            "user": self.user,
            "constraints": [c.as_json() for c in state.constraints],
            "turns": state.messages,
            "liked": state.liked,
            "disliked": state.disliked,
        }
