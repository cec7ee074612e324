"""The model's ranking on cases: what it does to fused lists and costs, and whether it pays (it ranks some validation cases once,
and every share of it in the score is tried)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent import event_loop
from agent.errors import ModelError
from agent.llm import connect
from agent.llm.adapters import Adapter
from agent.llm.client import LLM, Deadline
from agent.ranking.fusion import Candidate
from agent.ranking.rerank import WINDOW, rank
from agent.results import Stage
from agent.settings import Settings
from eval.comparison.llm_cache import DEADLINE, Asking, Kept, Progress, Reply
from eval.data.cases import Case
from eval.tuning.llm_stages import Judge
from eval.tuning.resumable import Steps
from prompts import Prompts
from store import Catalog

CASES = 100
AT_ONCE = 4
SHARES = (0.1, 0.2, 0.3, 0.5)


def ranking(
    judge: Judge, catalog: Catalog, settings: Settings, adapter: Adapter | None, steps: Steps, seconds: float
) -> tuple[float, dict[str, Any]]:
    """The share of the model's ranking in the score (0: off), and the evidence. Raises ModelError where no model answers.

    At most 100 cases, a few at a time, until the time is up; each few are a step of their own.
    """
    fused = judge.first(CASES).fused()
    places: list[dict[str, float]] = []
    spent = 0.0
    by = event_loop.run(_ranks_by(settings, adapter))
    how = [by, settings.rank_depth, Prompts(settings.prompts).fingerprint("rank")]
    for start in range(0, len(fused), AT_ONCE):
        if spent >= seconds:
            break
        cases, few = judge.cases[start : start + AT_ONCE], fused[start : start + AT_ONCE]
        key = json.dumps([how, [[candidate.id for candidate in own] for own in few]])
        done = steps.step(
            f"ranking {hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}",
            partial(placed, cases, few, catalog, settings, adapter),
        )
        places += done["places"]
        spent += done["seconds"]
    judge, fused = judge.first(len(places)), fused[: len(places)]
    if not places:
        return 0.0, {"cases": 0}
    before = judge.quality(fused)["ndcg@10"]
    quality = {share: judge.quality(blended(fused, places, share))["ndcg@10"] for share in SHARES}
    best = max(quality, key=lambda share: quality[share].mean())
    on = judge.pays(quality[best] - before)
    tried = {"0": before, **{f"{share:g}": own for share, own in quality.items()}}
    evidence = {
        "cases": len(places),
        "ndcg@10": {share: round(float(own.mean()), 5) for share, own in tried.items()},
        "seconds a case": spent / len(places),
        "unranked": float(np.mean([not own for own in places])),
    }
    judge.say(
        f"ranking on {len(places)} validation cases: nDCG@10 {before.mean():.4f} without, at best "
        f"{quality[best].mean():.4f} with a share of {best:g}: {'on' if on else 'off'}"
    )
    return best if on else 0.0, evidence


async def _ranks_by(settings: Settings, adapter: Adapter | None) -> str:
    """What answers of this model, with the adapter, are kept by. Raises ModelError where none answers."""
    llm = await connect.connected(settings)
    try:
        await llm.model_name()
        return llm.key_of(adapter)
    finally:
        await llm.close()


def reordered(
    cases: Sequence[Case],
    fused: Sequence[Sequence[Candidate]],
    share: float,
    catalog: Catalog,
    settings: Settings,
    adapter: Adapter | None,
    kept: Path,
    progress: Progress,
) -> tuple[list[list[Candidate]], np.ndarray, str, str]:
    """The lists with this share of the model's ranking in the score, what that cost, (n_cases, 4): milliseconds, calls, tokens in
    and out, which model ranked, and in words what became of its answers. These are kept in the file `kept`, and not asked for
    again. Raises ModelError where no model can be had or answers nothing, EvalError where one stops answering."""
    replies, by = event_loop.run(_reordered(cases, fused, catalog, settings, adapter, kept, progress))
    windows = [-(-len(own[: settings.rank_depth]) // WINDOW) for own in fused]
    cost = [[reply.ms, calls, reply.tokens_in, reply.tokens_out] for reply, calls in zip(replies, windows, strict=True)]
    places = [reply.written or {} for reply in replies]
    unranked = float(np.mean([not own for own in places])) if places else 0.0
    at_once = settings.concurrency if settings.base_url else AT_ONCE
    note = f"{by} ranks, {at_once} cases at once" + (f"; {unranked:.0%} of them it cannot rank" if unranked else "")
    return blended(fused, places, share), np.array(cost), by, note


async def _reordered(
    cases: Sequence[Case],
    fused: Sequence[Sequence[Candidate]],
    catalog: Catalog,
    settings: Settings,
    adapter: Adapter | None,
    kept: Path,
    progress: Progress,
) -> tuple[list[Reply], str]:
    llm = await connect.connected(settings)
    try:
        await llm.model_name()
        prompts, by = Prompts(settings.prompts), llm.key_of(adapter)
        how = ["rank", prompts.fingerprint("rank"), str(settings.rank_depth)]
        hashes = {item.id: item.content_hash for item in catalog.items()}
        keys = [
            Kept.key(by, how, [[(id, hashes.get(id)) for id in (*case.known, "", *(c.id for c in own))]])
            for case, own in zip(cases, fused, strict=True)
        ]

        async def ask(row: int) -> Reply:
            reply, degraded = await _one(cases[row], fused[row], catalog, settings, adapter, llm, prompts)
            if degraded:
                reply, degraded = await _one(cases[row], fused[row], catalog, settings, adapter, llm, prompts)
            if degraded and not reply.written and not reply.tokens_in:
                raise ModelError(degraded)
            return reply

        with closing(Kept(kept)) as store, progress("cases ranked by the model") as advance:
            at_once = settings.concurrency if settings.base_url else AT_ONCE
            return await Asking(ask, keys, store, advance).all(at_once), by
    finally:
        await llm.close()


def placed(
    cases: Sequence[Case],
    fused: Sequence[Sequence[Candidate]],
    catalog: Catalog,
    settings: Settings,
    adapter: Adapter | None,
) -> dict[str, Any]:
    """ "places": for each case the place (1 the first, 0 the last) that the model gives each candidate, none where its answers are
    bad; "seconds" that took. Raises ModelError where no model answers."""
    started = time.monotonic()
    places = event_loop.run(_all(cases, fused, catalog, settings, adapter))
    return {"places": places, "seconds": time.monotonic() - started}


async def _all(
    cases: Sequence[Case],
    fused: Sequence[Sequence[Candidate]],
    catalog: Catalog,
    settings: Settings,
    adapter: Adapter | None,
) -> list[dict[str, float]]:
    llm = await connect.connected(settings)
    try:
        await llm.model_name()
        prompts = Prompts(settings.prompts)
        ranked = await asyncio.gather(
            *(_one(case, own, catalog, settings, adapter, llm, prompts) for case, own in zip(cases, fused, strict=True))
        )
    finally:
        await llm.close()
    for reply, degraded in ranked:
        if degraded and not reply.tokens_in:
            raise ModelError(degraded)
    return [reply.written or {} for reply, _ in ranked]


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
    items = catalog.get([candidate.id for candidate in head])
    known = catalog.get(list(case.known))
    stage, started = Stage("rank"), time.perf_counter()

    async def connect() -> LLM:
        return llm

    ranked = await rank(
        head,
        items,
        history=[known[id] for id in case.known if id in known],
        text=None,
        weight=1.0,
        depth=settings.rank_depth,
        connect=connect,
        adapter=adapter,
        prompts=prompts,
        deadline=Deadline(DEADLINE),
        stage=stage,
    )
    places = {candidate.id: candidate.score for candidate in ranked}
    written = places if any(places.values()) else None
    ms = round((time.perf_counter() - started) * 1000, 1)
    return Reply(written, stage.tokens_in, stage.tokens_out, ms), stage.degraded


def blended(
    fused: Sequence[Sequence[Candidate]], places: Sequence[dict[str, float]], share: float
) -> list[list[Candidate]]:
    """As `agent.ranking.rerank` blends: what the model has not placed keeps its fused order."""
    found = []
    for own, given in zip(fused, places, strict=True):
        moved = [replace(c, score=(1 - share) * c.score + share * given.get(c.id, 0.0)) for c in own] if given else own
        found.append(sorted(moved, key=lambda candidate: -candidate.score))
    return found
