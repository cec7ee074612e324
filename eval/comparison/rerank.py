"""Rerank the fused lists of cases by the model, as the recommender does, and measure the cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent import event_loop
from agent.errors import ModelError
from agent.llm.call import ModelCall
from agent.llm.client import LLM, Deadline
from agent.ranking.fusion import Candidate
from agent.ranking.rerank import WINDOW, blend, model_places
from agent.results import Stage
from eval.comparison.llm_cache import DEADLINE, Ask, Asking, Reply, ask_all, key_of
from eval.data.cases import Case
from prompts import Prompts
from store import Catalog


@dataclass(frozen=True, slots=True)
class Reranking:
    """The reranking of the first cases (all, unless time ran out).

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
    cases: Sequence[Case], fused: Sequence[Sequence[Candidate]], catalog: Catalog, asking: Asking
) -> Reranking:
    """Ask the model to rerank each case's fused list.

    Args:
        cases: the cases; with `asking.seconds` only the first ones may be asked about.
        fused: their candidates, best first.
        catalog: the items.
        asking: how the model is asked, and how many candidates it sees (`settings.rank_depth`).

    Raises ModelError where no model can be had or answers nothing, EvalError where one stops answering.
    """
    prompts, depth = Prompts(asking.settings.prompts), asking.settings.rank_depth
    how = ["rank", prompts.fingerprint("rank"), str(depth)]
    hashes = {item.id: item.content_hash for item in catalog.items()}

    def prepare(llm: LLM) -> tuple[Sequence[str], Ask]:
        model = llm.cache_key(asking.adapter)
        keys = [
            key_of(model, how, [[(id, hashes.get(id)) for id in (*case.known, "", *(c.id for c in own))]])
            for case, own in zip(cases, fused, strict=True)
        ]

        async def connect() -> LLM:
            return llm

        async def rerank(row: int) -> tuple[Reply, str | None]:
            """Return the places of the first candidates, none if no window was answered; and the reason if it degraded."""
            head = [replace(candidate, score=0.0) for candidate in fused[row][:depth]]
            items, known = catalog.get([candidate.id for candidate in head]), catalog.get(cases[row].known)
            started = time.perf_counter()
            stage = Stage("rerank")
            call = ModelCall(connect, prompts, Deadline(DEADLINE), stage, asking.adapter)
            places = await model_places(
                call, head, items, history=[known[id] for id in cases[row].known if id in known], text=None
            )
            ms = round((time.perf_counter() - started) * 1000, 1)
            return Reply(places or None, stage.tokens_in, stage.tokens_out, ms), stage.degraded

        async def answer(row: int) -> Reply:
            reply, degraded = await rerank(row)
            if degraded:
                reply, degraded = await rerank(row)
            if degraded and not reply.written and not reply.tokens_in:
                raise ModelError(degraded)
            return reply

        return keys, answer

    replies, model = event_loop.run(ask_all(asking, "cases reranked by the model", prepare))
    calls = [-(-len(own[:depth]) // WINDOW) for own in fused]
    cost = [[r.ms, n, r.tokens_in, r.tokens_out] for r, n in zip(replies, calls, strict=False)]
    places = [reply.written or {} for reply in replies]
    unranked = float(np.mean([not own for own in places])) if places else 0.0
    note = f"{model} reranks, {asking.at_once} cases at once" + (
        f"; {unranked:.0%} of them it cannot rerank" if unranked else ""
    )
    return Reranking(places, np.array(cost, dtype=np.float64).reshape(-1, 4), model, note)


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
