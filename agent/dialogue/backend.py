"""The part of a recommender that a conversation needs: `agent.recommender.AsyncRecommender` has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any, Protocol

from agent.llm.client import LLM
from agent.ranking.feedback import Wishes
from agent.results import Explained, Result
from agent.settings import Settings
from prompts import Prompts
from store import Catalog, History


class Backend(Protocol):
    """What retrieves, ranks and explains the items of a conversation, and where it is stored."""

    @property
    def catalog(self) -> Catalog:
        """The items."""

    @property
    def history(self) -> History:
        """The users' events, and the stored conversations."""

    @property
    def settings(self) -> Settings:
        """The settings; a conversation reads `parser_seconds`."""

    @property
    def prompts(self) -> Prompts:
        """The prompt templates, for the LLM parser."""

    async def connect(self) -> LLM:
        """Return the client of the model. Raises ModelError if no model can be reached."""

    def stream(
        self,
        text: str | None = None,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        n: int = 10,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
        wishes: Wishes | None = None,
    ) -> AsyncGenerator[Result | Explained, None]:
        """Yield the result with empty explanations, then each explanation as it is written.

        Args:
            text: what the user asks for, in words.
            user: the user's id; items in the user's history are not recommended.
            history: item ids, oldest first, used in place of the user's own likes.
            n: how many items.
            where: a filter on metadata that every item must pass (`store.filters`).
            exclude: ids of items that are not recommended.
            wishes: further queries, disliked items and phrases to avoid. No model is then waited for before the items.
        """
