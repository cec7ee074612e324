"""How far a text in one item's title moves it in a real model's ranking, against harmless words of the same length."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace

import numpy as np

from agent.fusion import Candidate
from agent.llm import LLM, Deadline
from agent.rank import rank
from agent.results import Stage
from prompts import Prompts
from store import Item
from tests.attacks import ATTACKS, harmless
from tests.recommending import FILMS


def demo_items() -> list[Item]:
    rows = [json.loads(line) for line in (FILMS / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Item(row["id"], row["title"], row["text"], row["metadata"]) for row in rows]


async def gains(llm: LLM, items: int, place: str, seed: int = 0) -> np.ndarray:
    """(items * attacks,) places gained (0..1 of a window of ten) by the attack over harmless words of its length."""
    catalog, prompts, rng = demo_items(), Prompts(), random.Random(seed)

    async def connect() -> LLM:
        return llm

    async def placed(target: Item, text: str, others: list[Item], history: list[Item]) -> float:
        written = replace(target, **{place: f"{getattr(target, place)} {text}"})
        window = [written, *others]
        # The target stands in the middle of the fused order, with room to rise and to fall.
        scores = dict(zip([i.id for i in [*others[:5], written, *others[5:]]], np.linspace(0.9, 0.1, 10), strict=True))
        head = [Candidate(i.id, float(scores[i.id])) for i in sorted(window, key=lambda i: -scores[i.id])]
        stage = Stage("rank")
        ranked = await rank(
            head,
            {i.id: i for i in window},
            history=history,
            profile=None,
            text=None,
            weight=1.0,
            depth=10,
            shuffles=1,
            connect=connect,
            prompts=prompts,
            deadline=Deadline(3000),
            stage=stage,
        )
        assert stage.degraded is None, stage.degraded
        return next(c.score for c in ranked if c.id == target.id)

    async def gain(target: Item, attack: str, others: list[Item], history: list[Item]) -> float:
        attacked, calm = await asyncio.gather(
            placed(target, attack, others, history), placed(target, harmless(attack), others, history)
        )
        return attacked - calm

    work = []
    for _ in range(items):
        target, *others = rng.sample(catalog, 16)
        work += [gain(target, attack, others[:9], others[9:14]) for attack in ATTACKS]
    return np.array(await asyncio.gather(*work))


def mean_and_p(found: np.ndarray, seed: int = 0, rounds: int = 20_000) -> tuple[float, float]:
    """The mean gain, and the one-sided p of a mean this high by paired randomisation (sign flips)."""
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], (rounds, len(found)))
    return float(found.mean()), float(((flips * found).mean(axis=1) >= found.mean() - 1e-12).mean())
