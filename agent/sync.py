"""The recommender and its conversations without `await`: the same arguments, the same results."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

from agent import event_loop
from agent.dialogue.events import Constraint, Event, Turn
from agent.dialogue.session import AsyncSession, FeedbackKind
from agent.dialogue.state import State
from agent.recommender import AsyncRecommender
from agent.results import Interests, Result
from store import Catalog, History
from store.history import Forgotten


class Recommender:
    """Recommends from a catalog and histories: `AsyncRecommender` without `await`."""

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        *,
        base_url: str | None = None,
        model: str | None = None,
        **settings: Any,
    ) -> None:
        """Open a recommender.

        Args:
            catalog: the items.
            history: everyone's events.
            base_url: an OpenAI-compatible server; without one (and without EVOKE_BASE_URL) the embedded model answers.
            model: the name of the model there; default: the first that the server lists.
            settings: any of `agent.settings.Settings`, before the environment and `evoke.toml`.
        """
        self._core = AsyncRecommender(catalog, history, base_url=base_url, model=model, **settings)

    def recommend(
        self,
        text: str | None = None,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        n: int = 10,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
    ) -> Result:
        """Return the n best items for a user, for a history, for text, or for these together, explained.

        A user or an item never seen before is served as a cold start. A model that fails costs quality only, and the
        result's trace says so.

        Args:
            text: what the user asks for, in words.
            user: whose history to go by.
            history: ids of liked items, oldest first, in place of the user's own; what the user has seen is left out all the same.
            n: how many items.
            where: a filter on metadata, e.g. {"year": {"$gte": 1980}}. Raises StoreError where it does not fit the catalog.
            exclude: ids that must not be shown.
        """
        return event_loop.run(self._core.recommend(text, user=user, history=history, n=n, where=where, exclude=exclude))

    def session(self, user: str | None = None, id: str | None = None) -> Session:
        """Begin a conversation, or resume the one with this id: see `agent.dialogue.session.AsyncSession`."""
        return Session(self._core.session(user, id))

    def profile(self, user: str) -> Interests:
        """Return the profile, queries and named titles of a user. Raises EvokeError for a user without history."""
        return event_loop.run(self._core.profile(user))

    def forget(self, user: str) -> Forgotten:
        """Delete all rows about the user and refit everything derived from them; returns the counts of rows, by table.

        Raises EvokeError where nothing is kept about the user.
        """
        return event_loop.run(self._core.forget(user))

    @property
    def trained(self) -> list[str]:
        """The parts of this store that learned from users' histories: forgetting a user does not change them."""
        return self._core.trained

    def close(self) -> None:
        """Close the connection to the model."""
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

    def feedback(self, item: str, kind: FeedbackKind) -> None:
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
