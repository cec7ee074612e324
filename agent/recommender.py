"""The recommender: profile, retrieve, fuse, rerank, explain. Read `AsyncRecommender.stream` from top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import EvokeError
from agent.explanation.evidence import Shown, evidence
from agent.explanation.generate import Recipient, explain
from agent.explanation.verify import Vocabulary
from agent.llm.adapters import Adapters, trained_parts
from agent.llm.call import ModelCall
from agent.llm.client import LLM, Deadline
from agent.llm.connect import connect_async
from agent.profile.fallback import NO_MIX, fill_up
from agent.profile.interests import UserContext, kept_interests, read_interests
from agent.profile.user_history import UserHistory
from agent.ranking.candidates import Fused, Fusion, fuse_lists
from agent.ranking.feedback import Wishes
from agent.ranking.rerank import rerank, still_there
from agent.ranking.tuned import Tuned
from agent.results import Explained, Interests, Recommendation, Result, Stage, Trace
from agent.retrieval.channels import CHANNELS, Batch, Request, chosen_by_others, retrieve
from agent.retrieval.sources import CurrentSources, Sources
from agent.settings import Settings
from prompts import Prompts
from store import Catalog, History, Hit, Item
from store.errors import MissingExtra
from store.history import Forgotten

if TYPE_CHECKING:
    from agent.dialogue.session import AsyncSession

MODEL_STAGES = ("profile", "rerank", "explain")
PROFILE_SHARE = 0.6
"""Share of the deadline that the profile may take, so that a slow model still has time to explain."""


@dataclass(slots=True)
class Asked:
    """One request while it is answered: what was asked for, and what is known of the user."""

    text: str | None
    user: str | None
    n: int
    where: Mapping[str, Any] | None
    exclude: set[str]
    wishes: Wishes | None
    sources: Sources
    history: UserHistory
    items: Mapping[str, Item]
    seconds: float
    trace: Trace = field(default_factory=Trace)

    @property
    def liked(self) -> list[Item]:
        """The liked items that are in the catalog, oldest first."""
        return [self.items[id] for id in self.history.liked if id in self.items]

    def deadline(self, share: float = 1.0) -> Deadline:
        """A share of the time that the model stages have left."""
        spent = sum(stage.ms for stage in self.trace.stages if stage.name in MODEL_STAGES) / 1000
        return Deadline(max(self.seconds - spent, 0.0) * share)


class AsyncRecommender:
    """Recommends from a catalog and histories. One instance serves any number of requests at once."""

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        *,
        base_url: str | None = None,
        model: str | None = None,
        sources: Sources | None = None,
        **settings: Any,
    ) -> None:
        """Open a recommender.

        Args:
            catalog: the items.
            history: everyone's events.
            base_url: an OpenAI-compatible server; without one (and without EVOKE_BASE_URL) the embedded model answers.
            model: the name of the model there; default: the first that the server lists.
            sources: what retrieval reads, fitted by a comparison; by default it is fitted to the history and follows new events.
            settings: any of `agent.settings.Settings`, before the environment and `evoke.toml`.
        """
        self.catalog = catalog
        self.history = history
        self.tuned = Tuned.load(catalog.folder)
        given = Settings.load(base_url=base_url, model=model, **settings)
        self.settings = self.tuned.applied(given, catalog.folder)
        try:
            learned, self._missing = self.tuned.fusion(catalog.folder), None
        except MissingExtra as error:
            learned, self._missing = None, str(error)
        tuned_weights = self.tuned.decides("weights", given)
        self.fusion = Fusion(self.settings.weights, tuned_weights, learned, self.settings.diversity)
        self.adapters = Adapters.load(catalog.folder)
        self.prompts = Prompts(self.settings.prompts)
        self._llm: LLM | None = None
        self._connecting = asyncio.Lock()
        self._sources = CurrentSources(catalog, history, signals=learned is not None, fixed=sources)
        self._vocabulary: tuple[str, Vocabulary] | None = None

    async def recommend(
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
        stream = self.stream(text, user=user, history=history, n=n, where=where, exclude=exclude)
        async with aclosing(stream) as events:
            result = await anext(events)
            assert isinstance(result, Result)  # noqa: S101  a stream begins with it
            items = list(result.items)
            async for event in events:
                if isinstance(event, Explained):
                    items[event.rank - 1] = replace(items[event.rank - 1], explanation=event.text)
        return replace(result, items=tuple(items))

    async def stream(
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
        """Yield the result with empty explanations, then each item's explanation as it is written.

        Args:
            text: see `recommend`, as for the next five.
            user: whose history to go by.
            history: a history in place of the user's own.
            n: how many items.
            where: a filter on metadata.
            exclude: ids that must not be shown.
            wishes: what a conversation adds. No model is then waited for before the items: the profile is read from the
                cache, or from the catalog's fields.
        """
        asked = await self._asked(text, user, history, n, where, exclude, wishes)
        # The encoder loads while the model writes.
        loading = asyncio.create_task(asyncio.to_thread(self._load_encoder, asked))
        with asked.trace.stage("profile") as stage:
            interests = await self._profile(asked, stage) if self._reads_profile(asked) else Interests()
        with asked.trace.stage("retrieve") as stage:
            await loading
            batch, lists = await self._retrieve(asked, interests, stage)
        with asked.trace.stage("fuse") as stage:
            fused = await self._fuse(asked, batch, lists, stage)
        with asked.trace.stage("rerank") as stage:
            shown = await self._rerank(asked, fused, stage)
        with asked.trace.stage("explain") as stage:
            result = _result(asked, interests, batch, shown)
            yield result
            if self.settings.explain and shown:
                async with aclosing(self._explain(asked, interests, shown, stage)) as explanations:
                    async for position, sentence in explanations:
                        yield Explained(position + 1, sentence)

    async def _asked(
        self,
        text: str | None,
        user: str | None,
        history: Sequence[str] | None,
        n: int,
        where: Mapping[str, Any] | None,
        exclude: Collection[str],
        wishes: Wishes | None,
    ) -> Asked:
        """Read what is known of the user. Raises EvokeError where n is below 1."""
        if n < 1:
            raise EvokeError(f"n is {n}; ask for at least 1 item")
        text = text.strip() if text and text.strip() else None
        sources = await self._sources.now()
        known = await asyncio.to_thread(UserHistory.of, self.history, sources.snapshot, user, history)
        items = self.catalog.get(known.liked)
        excluded = known.seen | set(exclude)
        return Asked(text, user, n, where, excluded, wishes, sources, known, items, self.settings.deadline_seconds)

    async def _profile(self, asked: Asked, stage: Stage) -> Interests:
        """Stage 1: the history becomes a profile, queries and named titles, by one cached model call or from fields."""
        stage.notes += asked.history.notes
        liked, adapter = asked.liked, self.adapters.adapter("queries")
        if not liked:
            stage.notes.append("no history")
            return Interests()
        others = self._chosen_by_others(asked) if adapter else []
        context = UserContext(self.catalog.schema(), self.history, asked.user, others)
        if asked.wishes:
            found = kept_interests(self._llm, liked, context, self.prompts, adapter, stage)
        else:
            call = ModelCall(self.connect, self.prompts, asked.deadline(PROFILE_SHARE), stage, adapter)
            found = await read_interests(call, liked, context)
        return fill_up(found, liked, context.schema, stage, adapter.mix if adapter else NO_MIX, others)

    async def _retrieve(
        self, asked: Asked, interests: Interests, stage: Stage
    ) -> tuple[Batch, dict[str, list[list[Hit]]]]:
        """Stage 2: every channel with a weight retrieves its candidates."""
        profiled = self.settings.weights.get("queries", 0.0) > 0
        queries = interests.queries if profiled else ()
        request = Request(
            history=asked.history.liked,
            text=asked.text,
            queries=[*(asked.wishes.queries if asked.wishes else ()), *queries[: interests.latest]],
            guesses=queries[interests.latest :],
            named=interests.named,
            exclude=asked.exclude,
        )
        batch = Batch(asked.sources, [request], self._weights(asked), asked.where)
        lists = await asyncio.to_thread(retrieve, batch)
        if unfound := sum(title.id is None for title in batch.named[0]):
            stage.notes.append(
                f"{unfound} of {len(batch.named[0])} named titles are not in the catalog and serve as queries"
            )
        if not len(batch.histories[0]) and not any(hits for c, (hits,) in lists.items() if c != "popular"):
            stage.notes.append("cold start: nothing is known yet, so popular items are shown")
        return batch, lists

    async def _fuse(
        self, asked: Asked, batch: Batch, lists: Mapping[str, Sequence[Sequence[Hit]]], stage: Stage
    ) -> Fused:
        """Stage 3: the lists become one; wishes and diversity reorder it."""
        fused = await asyncio.to_thread(fuse_lists, batch, lists, self.fusion, asked.n, asked.wishes)
        if fused.ranked is not None:
            stage.notes.append("learned fusion")
        elif self._missing:
            stage.degraded = f"weighted ranks are used: {self._missing}"
        found = ["learned fusion"] if fused.ranked is not None else []
        found += [channel for channel, (hits,) in lists.items() if hits]
        stage.notes.append(f"{len(fused.candidates[0])} candidates from {', '.join(found) or 'no channel'}")
        return fused

    async def _rerank(self, asked: Asked, fused: Fused, stage: Stage) -> list[Shown]:
        """Stage 4: the model reorders the first candidates, where that is on; the first n are shown, with their evidence."""
        depth, liked = self.settings.rank_depth, asked.liked
        candidates, head = still_there(fused.candidates[0], self.catalog, max(depth, asked.n))
        call = ModelCall(self.connect, self.prompts, asked.deadline(), stage, self.adapters.adapter("rank"))
        ranked = await rerank(
            call, candidates, head, history=liked, text=asked.text, weight=self.settings.rank_weight, depth=depth
        )
        shown = await asyncio.to_thread(fused.explain, ranked[: asked.n])
        for_them = evidence(asked.sources, [c.id for c in shown], [item.id for item in liked])
        return [Shown(head[c.id], c, [asked.items[e] for e in for_them[c.id] if e in asked.items]) for c in shown]

    def _explain(
        self, asked: Asked, interests: Interests, shown: Sequence[Shown], stage: Stage
    ) -> AsyncGenerator[tuple[int, str], None]:
        """Stage 5: the model writes a sentence for each shown item; each is checked."""
        call = ModelCall(self.connect, self.prompts, asked.deadline(), stage)
        summary = interests.profile.summary if interests.profile else ""
        wanted = asked.text or (", ".join(asked.wishes.queries) if asked.wishes else None)
        recipient = Recipient(asked.liked, summary, wanted)
        return explain(call, shown, recipient, self._names(asked.sources), self.catalog.schema())

    def session(self, user: str | None = None, id: str | None = None) -> AsyncSession:
        """Begin a conversation, or resume the one with this id: see `agent.dialogue.session.AsyncSession`."""
        from agent.dialogue.session import AsyncSession

        return AsyncSession(self, user, id)

    async def profile(self, user: str) -> Interests:
        """Return the profile, queries and named titles of a user. Raises EvokeError for a user without history."""
        asked = await self._asked(None, user, None, 1, None, (), None)
        if not asked.liked:
            raise EvokeError(f"user {user} has no history to read a profile from; add events with `evoke index`")
        return await self._profile(asked, Stage("profile"))

    async def forget(self, user: str) -> Forgotten:
        """Delete all rows about the user and refit everything derived from them; returns the counts of rows, by table.

        Raises EvokeError where nothing is kept about the user.
        """
        async with self._sources.forgetting() if await asyncio.to_thread(self.history.knows, user) else nullcontext():
            forgotten = await asyncio.to_thread(self.history.forget, user)
        if not forgotten:
            raise EvokeError(f"nothing is kept about user {user}; check the id")
        return forgotten

    @property
    def trained(self) -> list[str]:
        """The parts of this store that learned from users' histories: forgetting a user does not change them."""
        return (["learned fusion"] if self.tuned.learned else []) + trained_parts(self.catalog.folder)

    async def warm(self) -> None:
        """Load what the first request would otherwise wait for: the encoder and the indexes."""
        batch = Batch(await self._sources.now(), [Request(text="warm")], CHANNELS)
        await asyncio.to_thread(retrieve, batch)

    async def close(self) -> None:
        """Close the connection to the model."""
        if self._llm:
            await self._llm.close()
            self._llm = None

    async def connect(self) -> LLM:
        """Return the model's client, connected on first use. Raises ModelError where there is no model."""
        async with self._connecting:
            if self._llm is None:
                self._llm = await connect_async(self.settings)
            return self._llm

    def _load_encoder(self, asked: Asked) -> None:
        """Load the encoder where the request has texts to encode."""
        if "queries" in self._weights(asked):
            self.catalog.embedder.encode_queries(["warm"])

    def _reads_profile(self, asked: Asked) -> bool:
        """Whether any later stage reads the profile, its queries or its titles."""
        return bool(asked.wishes or self.settings.explain or {"queries", "named"} & self._weights(asked).keys())

    def _weights(self, asked: Asked) -> dict[str, float]:
        """The weight of each list that is fused for this request."""
        in_catalog = any(id in asked.sources.snapshot.rows for id in asked.history.liked)
        return self.fusion.weights_of(with_text=bool(asked.text), with_history=in_catalog)

    def _chosen_by_others(self, asked: Asked) -> list[Item]:
        """The items that other people chose after such a history, none that the user has seen."""
        snapshot = asked.sources.snapshot
        may = ~snapshot.hidden
        may[snapshot.rows_of(asked.history.seen)] = False
        rows = np.array([snapshot.rows[id] for id in asked.history.liked if id in snapshot.rows], dtype=np.int64)
        return list(
            self.catalog.get([snapshot.ids[row] for row in chosen_by_others(asked.sources.counts, rows, may)]).values()
        )

    def _names(self, sources: Sources) -> Vocabulary:
        if self._vocabulary is None or self._vocabulary[0] != self.catalog.version:
            self._vocabulary = (self.catalog.version, Vocabulary(sources.snapshot, self.catalog.schema()))
        return self._vocabulary[1]


def _result(asked: Asked, interests: Interests, batch: Batch, shown: Sequence[Shown]) -> Result:
    """The result with empty explanations."""
    items = tuple(
        Recommendation(
            rank,
            s.item,
            s.candidate.score,
            s.candidate.channels,
            "",
            tuple(e.id for e in s.evidence),
            s.candidate.contributions,
        )
        for rank, s in enumerate(shown, 1)
    )
    result = Result(
        asked.user, asked.text, interests.profile, interests.queries, tuple(batch.named[0]), items, asked.trace
    )
    if items and result.personalised < 0.5:
        asked.trace["retrieve"].notes.append("under half of the shown items are personal; the rest are simply popular")
    return result
