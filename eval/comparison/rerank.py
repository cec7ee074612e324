"""The model's reranking on cases: the order that it gives to fused lists, as the recommender asks for it, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agent import event_loop
from agent.errors import ModelError
from agent.llm.adapters import Adapter
from agent.llm.call import ModelCall
from agent.llm.client import LLM, Deadline
from agent.llm.connect import connect_async
from agent.ranking.fusion import Candidate
from agent.ranking.rerank import WINDOW, blend, model_places
from agent.results import Stage
from agent.settings import Settings
from eval.comparison.llm_cache import DEADLINE, AnswerCache, BatchCalls, Reply
from eval.data.cases import Case
from eval.progress import Progress, quiet
from prompts import Prompts
from store import Catalog

AT_ONCE = 4
"""Cases that the embedded model reranks at once."""


@dataclass(frozen=True, slots=True)
class Reranking:
    """What the model made of the first cases (all, unless time ran out).

    Args:
        places: for each case the place of each candidate, 1 the first and 0 the last; none where its answers are bad.
        cost: (n_cases, 4): milliseconds, calls, tokens in and out.
        model: the model's cache key.
        note: in words.
    """

    places: list[dict[str, float]]
    cost: np.ndarray
    model: str
    note: str


def rerank_cases(
    cases: Sequence[Case],
    fused: Sequence[Sequence[Candidate]],
    catalog: Catalog,
    settings: Settings,
    *,
    kept: Path,
    adapter: Adapter | None = None,
    progress: Progress = quiet,
    seconds: float | None = None,
) -> Reranking:
    """Ask the model to rerank each case's fused list.

    Args:
        cases: the cases.
        fused: their candidates, best first.
        catalog: the items.
        settings: which model, which prompts, how many candidates it sees.
        kept: the file that answers are kept in.
        adapter: a trained adapter.
        progress: shows progress.
        seconds: after so many no further case is begun.

    Raises ModelError where no model can be had or answers nothing, EvalError where one stops answering.
    """
    return event_loop.run(_rerank(cases, fused, catalog, settings, kept, adapter, progress, seconds))


def blend_all(
    fused: Sequence[Sequence[Candidate]], places: Sequence[dict[str, float]], share: float, depth: int
) -> list[list[Candidate]]:
    """Return the lists with the model's places in their scores (`agent.ranking.rerank.blend`).

    Args:
        fused: each case's candidates, best first.
        places: each case's places, by id.
        share: their share in the score.
        depth: how many candidates the model saw.
    """
    return [blend(own, given, share, depth) if given else list(own) for own, given in zip(fused, places, strict=True)]


async def _rerank(
    cases: Sequence[Case],
    fused: Sequence[Sequence[Candidate]],
    catalog: Catalog,
    settings: Settings,
    kept: Path,
    adapter: Adapter | None,
    progress: Progress,
    seconds: float | None,
) -> Reranking:
    at_once = settings.concurrency if settings.base_url else AT_ONCE
    llm = await connect_async(settings)
    try:
        await llm.model_name()
        prompts, model = Prompts(settings.prompts), llm.cache_key(adapter)
        how = ["rank", prompts.fingerprint("rank"), str(settings.rank_depth)]
        hashes = {item.id: item.content_hash for item in catalog.items()}
        keys = [
            AnswerCache.key(model, how, [[(id, hashes.get(id)) for id in (*case.known, "", *(c.id for c in own))]])
            for case, own in zip(cases, fused, strict=True)
        ]

        async def answer(row: int) -> Reply:
            for last in (False, True):
                reply, degraded = await _one(cases[row], fused[row], catalog, settings, adapter, llm, prompts)
                if not degraded or last:
                    break
            if degraded and not reply.written and not reply.tokens_in:
                raise ModelError(degraded)
            return reply

        most_ms = float("inf") if seconds is None else 1000 * seconds * at_once
        with closing(AnswerCache(kept)) as cache, progress("cases reranked by the model") as advance:
            replies = await BatchCalls(answer, keys, cache, advance, most_ms).all(at_once)
    finally:
        await llm.close()
    calls = [-(-len(own[: settings.rank_depth]) // WINDOW) for own in fused]
    cost = [[r.ms, n, r.tokens_in, r.tokens_out] for r, n in zip(replies, calls, strict=False)]
    places = [reply.written or {} for reply in replies]
    unranked = float(np.mean([not own for own in places])) if places else 0.0
    note = f"{model} reranks, {at_once} cases at once" + (
        f"; {unranked:.0%} of them it cannot rerank" if unranked else ""
    )
    return Reranking(places, np.array(cost, dtype=np.float64).reshape(-1, 4), model, note)


async def _one(
    case: Case,
    fused: Sequence[Candidate],
    catalog: Catalog,
    settings: Settings,
    adapter: Adapter | None,
    llm: LLM,
    prompts: Prompts,
) -> tuple[Reply, str | None]:
    """The places that the model gives the first candidates, none where no window of them was answered; and what degraded."""
    head = [replace(candidate, score=0.0) for candidate in fused[: settings.rank_depth]]
    items, known = catalog.get([candidate.id for candidate in head]), catalog.get(list(case.known))
    started = time.perf_counter()

    async def connect() -> LLM:
        return llm

    call = ModelCall(connect, prompts, Deadline(DEADLINE), Stage("rerank"), adapter)
    places = await model_places(call, head, items, history=[known[i] for i in case.known if i in known], text=None)
    ms = round((time.perf_counter() - started) * 1000, 1)
    return Reply(places or None, call.stage.tokens_in, call.stage.tokens_out, ms), call.stage.degraded
