"""The recommender: interests, recall, fuse, spread, rank, explain. Read `AsyncRecommender.stream` from top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.errors import EvokeError
from agent.explanation.generate import Shown, Vocabulary, explain
from agent.llm import connect
from agent.llm.adapters import Trained, parts_trained
from agent.llm.client import LLM, Deadline
from agent.profile.interests import interests, remembered
from agent.profile.user_history import Known
from agent.ranking.feedback import Said, completed, pushed
from agent.ranking.fusion import FILLING, channel_weights, fuse, spread
from agent.ranking.rerank import rank, still_there
from agent.ranking.tuned import Tuned
from agent.results import NOTHING, Explained, Interests, Recommendation, Result, Stage, Trace
from agent.retrieval.channels import CHANNELS, Request, Sources, evidence, recall
from agent.retrieval.sources import Fresh
from agent.settings import Settings
from prompts import Prompts
from store import Catalog, History, Item
from store.errors import MissingExtra
from store.history import Forgotten

if TYPE_CHECKING:
    from agent.dialogue.session import AsyncSession

MODEL_STAGES = ("interests", "rank", "explain")
INTERESTS_SHARE = 0.6
"""Of the deadline, at most this much goes to interests, so that a slow model still has time to explain."""


class AsyncRecommender:
    """Recommends from a catalog and histories. One instance serves any number of requests at once.

    `base_url` names an OpenAI-compatible server; without one (and without EVOKE_BASE_URL) the embedded model answers.
    Further keywords override settings (see `agent.settings.Settings`).
    """

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        *,
        base_url: str | None = None,
        model: str | None = None,
        **settings: Any,
    ) -> None:
        self.catalog = catalog
        self.history = history
        self.tuned = Tuned.load(catalog.folder)
        self.settings = self.tuned.applied(Settings.load(base_url=base_url, model=model, **settings), catalog.folder)
        try:
            self._learned, self._joined = self.tuned.fusion(catalog.folder), self.tuned.joining(catalog.folder)
            self._lacking = None
        except MissingExtra as error:
            self._learned, self._joined, self._lacking = None, None, str(error)
        self.adapters = Trained.load(catalog.folder)
        self.prompts = Prompts(self.settings.prompts)
        self._llm: LLM | None = None
        self._connecting = asyncio.Lock()
        self._sources = Fresh(catalog, history, self._learned)
        self._vocabulary: tuple[str, Vocabulary] | None = None

    async def recommend(self, text: str | None = None, **request: Any) -> Result:
        """The n best items, explained: see `stream`, which takes the same arguments."""
        async with aclosing(self.stream(text, **request)) as events:
            result = await anext(events)
            assert isinstance(result, Result)  # noqa: S101  a stream begins with it
            async for event in events:
                if isinstance(event, Explained):
                    result.items[event.rank - 1] = replace(result.items[event.rank - 1], explanation=event.text)
        return result

    async def stream(
        self,
        text: str | None = None,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        n: int = 10,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
        said: Said | None = None,
    ) -> AsyncGenerator[Result | Explained, None]:
        """The n best items for a user, for an explicit history (ids, oldest first), for text, or for these together.

        First the result, its explanations empty, then each item's explanation as it is written.
        An explicit history stands in for the user's own; what the user has seen stays out all the same. A user or an item
        never seen before is served as a cold start. With `said`, what a conversation adds, no model is waited for before the
        items: a profile is read from the cache or from the catalog's fields. Raises StoreError for a `where` that does not fit
        the catalog; a model that fails costs quality only, and the result's trace says so.
        """
        if n < 1:
            raise EvokeError(f"n is {n}; ask for at least 1 item")
        settings, trace = self.settings, Trace()
        text = text.strip() if text and text.strip() else None

        def left() -> float:
            spent = sum(stage.ms for stage in trace.stages if stage.name in MODEL_STAGES) / 1000
            return max(self.settings.seconds - spent, 0.0)

        sources = await self._sources.now()
        schema = self.catalog.schema()
        known = await asyncio.to_thread(Known.of, self.history, sources.snapshot, user, history)
        items = self.catalog.get(known.liked)
        liked = [items[id] for id in known.liked if id in items]
        tuned = settings.weights == self.tuned.settings.get("weights")
        weights = channel_weights(settings.weights, bool(text), tuned)
        profiled = settings.weights.get("queries", 0.0) > 0
        # The encoder loads while the model writes.
        warm = asyncio.create_task(asyncio.to_thread(self.catalog.embedder.encode_queries, ["warm"]))

        with trace.stage("interests") as stage:
            stage.notes += known.notes
            if said:
                adapter = self.adapters.adapter("queries")
                others = self._others(known, sources)
                found = remembered(liked, others, user, schema, self._llm, self.prompts, self.history, adapter, stage)
            elif {"queries", "named"} & weights.keys() or settings.explain:
                found = await self._interests(known, liked, sources, user, Deadline(left() * INTERESTS_SHARE), stage)
            else:
                found = NOTHING
        with trace.stage("recall") as stage:
            await warm
            latest, guesses = found.searched() if profiled else ([], [])
            request = Request(
                history=known.liked,
                text=text,
                queries=[*(said.queries if said else ()), *latest],
                guesses=guesses,
                named=found.named,
                exclude=known.seen | set(exclude),
                where=where,
                decay=settings.decay,
            )
            lists, named = await recall(sources, request, weights, stage)
            if not any(lists[c] for c in lists if c != "popular"):
                stage.notes.append("cold start: nothing is known yet, so popular items are shown")
        with trace.stage("fuse") as stage:
            # Learned joining knows what a model reads out of a history, not what stands in for that, nor a request's words.
            by_history = not (text or said or trace["interests"].degraded)
            joined = self._joined if by_history and self._joined and self._joined.reads(weights) else None
            if base := await asyncio.to_thread(sources.base, request, joined, lists):
                # Learned fusion has weighed what the history says; what it has not seen joins by its own weight.
                lists["base"] = base
                joining = () if joined else ("queries", "named", "lexical") if text else ("queries", "named")
                weights = {c: weights[c] for c in joining if c in weights} | {"base": 1.0, "popular": FILLING}
                stage.notes.append(
                    "learned fusion" + (f", joined by {' and '.join(joined.channels)}" if joined else "")
                )
            elif self._lacking:
                stage.degraded = f"weighted ranks are used: {self._lacking}"
            candidates = fuse(lists, weights)
            if said:
                candidates = completed(candidates, sources, request, n)
                candidates = await asyncio.to_thread(pushed, candidates, sources, said.disliked, said.avoid)
            candidates = spread(candidates, sources.snapshot, settings.diversity, depth=max(3 * n, settings.rank_depth))
            stage.notes.append(
                f"{len(candidates)} candidates from {', '.join(c for c in lists if lists[c]) or 'no channel'}"
            )
        with trace.stage("rank") as stage:
            candidates, head = still_there(candidates, self.catalog, max(settings.rank_depth, n))
            candidates = await rank(
                candidates,
                head,
                history=liked,
                text=text,
                weight=settings.rank_weight,
                depth=settings.rank_depth,
                connect=self._connect,
                adapter=self.adapters.adapter("rank"),
                prompts=self.prompts,
                deadline=Deadline(left()),
                stage=stage,
            )
        with trace.stage("explain") as stage:
            top = candidates[:n]
            for_them = evidence(sources, [c.id for c in top], [item.id for item in liked])
            shown = [Shown(head[c.id], c, [items[e] for e in for_them[c.id] if e in items]) for c in top]
            result = Result(
                user,
                text,
                found.profile,
                found.queries,
                named,
                [
                    Recommendation(i, s.item, s.candidate.score, s.candidate.channels, "", [e.id for e in s.evidence])
                    for i, s in enumerate(shown, 1)
                ],
                trace,
            )
            if result.items and result.personalised < 0.5:
                trace["recall"].notes.append("under half of the shown items are personal; the rest are simply popular")
            yield result
            if settings.explain and shown:
                async with aclosing(
                    explain(
                        shown,
                        history=liked,
                        profile=found.profile,
                        text=text or (", ".join(said.queries) if said else None),
                        vocabulary=self._names(sources),
                        schema=schema,
                        connect=self._connect,
                        prompts=self.prompts,
                        deadline=Deadline(left()),
                        stage=stage,
                    )
                ) as explanations:
                    async for position, sentence in explanations:
                        yield Explained(position + 1, sentence)

    def session(self, user: str | None = None, id: str | None = None) -> AsyncSession:
        """A conversation, begun or (by its id) resumed: see `agent.dialogue.session.AsyncSession`."""
        from agent.dialogue.session import AsyncSession

        return AsyncSession(self, user, id)

    async def profile(self, user: str) -> Interests:
        """What the user's history says: profile, queries, named items. Raises EvokeError for a user without history."""
        sources = await self._sources.now()
        known = Known.of(self.history, sources.snapshot, user)
        items = self.catalog.get(known.liked)
        liked = [items[id] for id in known.liked if id in items]
        if not liked:
            raise EvokeError(f"user {user} has no history to read a profile from; add events with `evoke index`")
        return await self._interests(known, liked, sources, user, Deadline(self.settings.seconds), Stage("interests"))

    async def forget(self, user: str) -> Forgotten:
        """Delete all rows about the user and refit what was derived from them; returns what was deleted, by table.
        Raises EvokeError where nothing is kept about the user."""
        async with self._sources.forgetting() if await asyncio.to_thread(self.history.knows, user) else nullcontext():
            forgotten = await asyncio.to_thread(self.history.forget, user)
        if not forgotten:
            raise EvokeError(f"nothing is kept about user {user}; check the id")
        return forgotten

    @property
    def trained(self) -> list[str]:
        """The parts of this store that were trained on people's histories: forgetting someone does not unlearn them there."""
        return (["learned fusion"] if self.tuned.learned else []) + parts_trained(self.catalog.folder)

    async def warm(self) -> None:
        """Load what the first request would else wait for: the encoder, the indexes, and what recall reads."""
        await recall(await self._sources.now(), Request(text="warm"), CHANNELS, Stage("warm"))

    async def close(self) -> None:
        """Close the connection to the model."""
        if self._llm:
            await self._llm.close()
            self._llm = None

    async def _interests(
        self,
        known: Known,
        liked: Sequence[Item],
        sources: Sources,
        user: str | None,
        deadline: Deadline,
        stage: Stage,
    ) -> Interests:
        return await interests(
            liked,
            others=self._others(known, sources),
            user=user,
            schema=self.catalog.schema(),
            connect=self._connect,
            prompts=self.prompts,
            cache=self.history,
            adapter=self.adapters.adapter("queries"),
            deadline=deadline,
            stage=stage,
        )

    def _others(self, known: Known, sources: Sources) -> list[Item]:
        """What others chose next, which a trained model is shown and what it leaves out of which is searched for."""
        shown = sources.others(known.liked, known.seen) if self.adapters.adapter("queries") else []
        return list(self.catalog.get(shown).values())

    def _names(self, sources: Sources) -> Vocabulary:
        if self._vocabulary is None or self._vocabulary[0] != self.catalog.version:
            self._vocabulary = (self.catalog.version, Vocabulary(sources.snapshot, self.catalog.schema()))
        return self._vocabulary[1]

    async def _connect(self) -> LLM:
        """The model, connected to on first use. Raises ModelError where none can be had."""
        async with self._connecting:
            if self._llm is None:
                self._llm = await connect.connected(self.settings)
            return self._llm
