"""The plain faces of the async core: same arguments, same results, no `await`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from agent import event_loop
from agent.dialogue.events import Constraint, Event, Turn
from agent.dialogue.session import AsyncSession, Kind
from agent.dialogue.state import State
from agent.recommender import AsyncRecommender
from agent.results import Interests, Result
from store import Catalog, History
from store.history import Forgotten


class Recommender:
    """The plain face of `AsyncRecommender`."""

    def __init__(self, catalog: Catalog, history: History, **settings: Any) -> None:
        self._core = AsyncRecommender(catalog, history, **settings)

    def recommend(self, text: str | None = None, **request: Any) -> Result:
        """See `AsyncRecommender.recommend`."""
        return event_loop.run(self._core.recommend(text, **request))

    def session(self, user: str | None = None, id: str | None = None) -> Session:
        """See `AsyncRecommender.session`."""
        return Session(self._core.session(user, id))

    def profile(self, user: str) -> Interests:
        """See `AsyncRecommender.profile`."""
        return event_loop.run(self._core.profile(user))

    def forget(self, user: str) -> Forgotten:
        """See `AsyncRecommender.forget`."""
        return event_loop.run(self._core.forget(user))

    @property
    def trained(self) -> list[str]:
        """See `AsyncRecommender.trained`."""
        return self._core.trained

    def close(self) -> None:
        """See `AsyncRecommender.close`."""
        event_loop.run(self._core.close())


class Session:
    """The plain face of `AsyncSession`."""

    def __init__(self, core: AsyncSession) -> None:
        self._core = core

    @classmethod
    def load(cls, recommender: Recommender, id: str) -> Session:
        """See `AsyncSession.load`."""
        return cls(event_loop.run(AsyncSession.load(recommender._core, id)))

    @property
    def id(self) -> str:
        """What the conversation is kept under."""
        return self._core.id

    @property
    def user(self) -> str | None:
        """Whose conversation it is, where that is known."""
        return self._core.user

    @property
    def state(self) -> State:
        """What the conversation has come to."""
        return self._core.state

    def send(self, message: str) -> Turn:
        """See `AsyncSession.send`."""
        return event_loop.run(self._core.send(message))

    def stream(self, message: str) -> Generator[Event, None, None]:
        """See `AsyncSession.stream`."""
        return event_loop.iterate(self._core.stream(message))

    def feedback(self, item: str, kind: Kind) -> None:
        """See `AsyncSession.feedback`."""
        event_loop.run(self._core.feedback(item, kind))

    def relax(self, constraint: Constraint | int) -> None:
        """See `AsyncSession.relax`."""
        event_loop.run(self._core.relax(constraint))

    def save(self) -> None:
        """See `AsyncSession.save`."""
        event_loop.run(self._core.save())

    def as_json(self) -> dict[str, Any]:
        """See `AsyncSession.as_json`."""
        return self._core.as_json()
