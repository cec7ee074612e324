"""Rerank: the model picks among windows of candidates by one-letter labels, read from the log-probabilities of one token.

Single-token listwise reranking after FIRST (Reddy et al., EMNLP 2024, arXiv 2406.15657); windows run in parallel. The model
only points at candidates it was given, and the blend bounds what it can move: no score changes by more than the rank weight.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from agent.errors import BadAnswer, ModelError
from agent.item_text import prompt_line, prompt_lines
from agent.llm.call import ModelCall
from agent.llm.client import LLM
from agent.ranking.feedback import scaled
from agent.ranking.fusion import Candidate
from store import Catalog, Item

WINDOW = 10
"""Candidates that one call compares."""


async def rerank(
    call: ModelCall,
    candidates: Sequence[Candidate],
    items: Mapping[str, Item],
    *,
    history: Sequence[Item],
    text: str | None,
    weight: float,
    depth: int,
) -> list[Candidate]:
    """Return the candidates with blended scores, (1 - weight) fused + weight reranked: the first `depth` by score, then the rest
    as it was, so that near-duplicates stay behind.

    A window with a bad answer keeps its fused order; `call.stage.degraded` then says why. With weight 0 no model is called.

    Args:
        call: how to reach the model; with an adapter it answers as it was trained to.
        candidates: best first.
        items: the items of the first `depth` candidates, by id.
        history: liked items, oldest first.
        text: the user's own words.
        weight: share of the model's ranking in the score, 0 to 1.
        depth: how many candidates the model sees.
    """
    stage = call.stage
    if weight == 0 or len(candidates) < 2:
        stage.notes.append("off")
        return list(candidates)
    head = list(candidates[:depth])
    places = await model_places(call, head, items, history=history, text=text)
    if not places:
        return list(candidates)
    return blend(candidates, places, weight, len(head))


async def model_places(
    call: ModelCall, head: Sequence[Candidate], items: Mapping[str, Item], *, history: Sequence[Item], text: str | None
) -> dict[str, float]:
    """Return the place that the model gives each candidate in its window, 1 for the first and 0 for the last; none where no answer
    can be used, and `call.stage.degraded` says why.

    Args:
        call: how to reach the model.
        head: the candidates that it sees, best first.
        items: their items, by id.
        history: liked items, oldest first.
        text: the user's own words.
    """
    stage = call.stage
    stage.prompt = call.prompts.fingerprint("rank")
    known: dict[str, Any] = {"history": prompt_lines(history), "request": text or ""}
    try:
        if call.adapter:
            call.adapter.check_prompt(call.prompts)
            stage.notes.append("trained adapter")
        llm = await call.connect()
        stage.model = await llm.model_name()
    except ModelError as error:
        stage.degraded = error.reason
        return {}
    windows = [head[i : i + WINDOW] for i in range(0, len(head), WINDOW)]
    ranked = await asyncio.gather(*(_window(call, llm, own, i, items, known) for i, own in enumerate(windows)))
    return {id: place for window in ranked for id, place in window.items()}


def blend(candidates: Sequence[Candidate], places: Mapping[str, float], weight: float, depth: int) -> list[Candidate]:
    """Return the candidates with this share of the model's places in their scores, the first `depth` of them reordered.

    A candidate of the first `depth` without a place, whose window was answered badly, is placed by the fused order.

    Args:
        candidates: best first.
        places: the model's places, by id.
        weight: their share in the score, 0 to 1.
        depth: how many candidates the model saw.
    """
    head = candidates[:depth]
    ranked = {c.id: 1 - i / max(len(head) - 1, 1) for i, c in enumerate(head)} | dict(places)
    blended = []
    for candidate in candidates:
        own = scaled(candidate, 1 - weight)
        share = weight * ranked.get(candidate.id, 0.0)
        parts = {**own.contributions, **({"rerank": share} if candidate.id in places else {})}
        blended.append(replace(own, score=own.score + share, contributions=parts))
    return sorted(blended[:depth], key=lambda c: -c.score) + blended[depth:]


def still_there(
    candidates: Sequence[Candidate], catalog: Catalog, depth: int
) -> tuple[list[Candidate], dict[str, Item]]:
    """Return the candidates whose items are still in the catalog, and the items of at least the first `depth` of them."""
    head = catalog.get([c.id for c in candidates[:depth]])
    if len(head) < len(candidates[:depth]):  # some were removed while the request was under way
        head = catalog.get([c.id for c in candidates])
        candidates = [c for c in candidates if c.id in head]
    return list(candidates), head


async def _window(
    call: ModelCall,
    llm: LLM,
    window: Sequence[Candidate],
    seed: int,
    items: Mapping[str, Item],
    known: Mapping[str, Any],
) -> dict[str, float]:
    """Each candidate's place in its window, 1 the first and 0 the last; none where the answer is bad."""
    shown = list(window)
    # Models tend to copy the order they are shown.
    random.Random(seed).shuffle(shown)
    labels = dict(zip(ascii_uppercase, shown, strict=False))
    shown_as = [prompt_line(label, items[c.id]) for label, c in labels.items()]
    try:
        messages = call.prompts.render("rank", candidates=shown_as, **known)
        reply = await llm.labels(messages, list(labels), deadline=call.deadline, adapter=call.adapter)
        call.stage.tokens_in += reply.usage.tokens_in
        call.stage.tokens_out += reply.usage.tokens_out
        if len(reply.value) * 2 < len(labels):
            raise BadAnswer(f"{len(labels) - len(reply.value)} of {len(labels)} labels absent")
    except ModelError as error:
        call.stage.degraded = error.reason
        return {}
    present = [labels[label] for label in sorted(reply.value, key=lambda label: -reply.value[label])]
    order = present + [c for c in sorted(window, key=lambda c: -c.score) if c not in present]
    last = max(len(order) - 1, 1)
    return {c.id: 1 - i / last for i, c in enumerate(order)}
