"""Rank: the model picks among windows of candidates by one-letter labels, read from the log-probabilities of one token.

Single-token listwise ranking after FIRST (Reddy et al., EMNLP 2024, arXiv 2406.15657); windows run in parallel. The model only
points at candidates it was given, and the blend bounds what it can move: no score changes by more than the rank weight.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from agent.errors import BadAnswer, ModelError
from agent.item_text import line, lines
from agent.llm.adapters import Adapter
from agent.llm.client import LLM, Connect, Deadline
from agent.ranking.fusion import Candidate
from agent.results import Stage
from prompts import Prompts
from store import Catalog, Item

WINDOW = 10


async def rank(
    candidates: Sequence[Candidate],
    items: Mapping[str, Item],
    *,
    history: Sequence[Item],
    text: str | None,
    weight: float,
    depth: int,
    connect: Connect,
    prompts: Prompts,
    deadline: Deadline,
    stage: Stage,
    adapter: Adapter | None = None,
) -> list[Candidate]:
    """The candidates with their scores blended, (1 - weight) fused + weight ranked; of the first `depth` the best first, and after
    them the others as they were: what was put behind for being alike stays there.

    A window whose answer is bad keeps its fused order; `stage.degraded` then says why. With weight 0 nothing is called.
    With an adapter the model answers as it was trained to; where that cannot be had, the fused order stays.
    """
    if weight == 0 or len(candidates) < 2:
        stage.notes.append("off")
        return list(candidates)
    head = list(candidates[:depth])
    stage.prompt = prompts.fingerprint("rank")
    known: dict[str, Any] = {"history": lines(history), "request": text or ""}
    try:
        if adapter:
            adapter.check_prompt(prompts)
            stage.notes.append("trained adapter")
        llm = await connect()
        stage.model = await llm.model_name()
    except ModelError as error:
        stage.degraded = error.reason
        return list(candidates)
    windows = [head[i : i + WINDOW] for i in range(0, len(head), WINDOW)]
    places = await asyncio.gather(
        *(_places(window, i, items, known, llm, adapter, prompts, deadline, stage) for i, window in enumerate(windows))
    )
    if not any(places):
        return list(candidates)
    # The candidates of a window whose answer was bad are placed by the fused order.
    ranked = {c.id: 1 - i / (len(head) - 1) for i, c in enumerate(head)}
    for window in places:
        ranked |= window
    blended = [replace(c, score=(1 - weight) * c.score + weight * ranked.get(c.id, 0.0)) for c in candidates]
    return sorted(blended[: len(head)], key=lambda c: -c.score) + blended[len(head) :]


def still_there(candidates: list[Candidate], catalog: Catalog, depth: int) -> tuple[list[Candidate], dict[str, Item]]:
    """The candidates whose items are still in the catalog, and the items of at least the first `depth` of them."""
    head = catalog.get([c.id for c in candidates[:depth]])
    if len(head) < len(candidates[:depth]):  # some were removed while the request was under way
        head = catalog.get([c.id for c in candidates])
        candidates = [c for c in candidates if c.id in head]
    return candidates, head


async def _places(
    window: list[Candidate],
    seed: int,
    items: Mapping[str, Item],
    known: dict[str, Any],
    llm: LLM,
    adapter: Adapter | None,
    prompts: Prompts,
    deadline: Deadline,
    stage: Stage,
) -> dict[str, float]:
    """Each candidate's place in its window, 1 the first and 0 the last; none where the answer is bad."""
    shown = list(window)
    # Models tend to copy the order they are shown.
    random.Random(seed).shuffle(shown)
    labels = dict(zip(ascii_uppercase, shown, strict=False))
    shown_as = [line(label, items[c.id]) for label, c in labels.items()]
    try:
        asked = prompts.render("rank", candidates=shown_as, **known)
        reply = await llm.labels(asked, list(labels), deadline=deadline, adapter=adapter)
        stage.tokens_in += reply.usage.tokens_in
        stage.tokens_out += reply.usage.tokens_out
        if len(reply.value) * 2 < len(labels):
            raise BadAnswer(f"{len(labels) - len(reply.value)} of {len(labels)} labels absent")
    except ModelError as error:
        stage.degraded = error.reason
        return {}
    present = [labels[label] for label in sorted(reply.value, key=lambda label: -reply.value[label])]
    order = present + [c for c in sorted(window, key=lambda c: -c.score) if c not in present]
    last = max(len(order) - 1, 1)
    return {c.id: 1 - i / last for i, c in enumerate(order)}
