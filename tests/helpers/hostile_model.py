"""How far a text in one item's title moves it in a real model's ranking, against harmless words of the same length."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, replace

import numpy as np

from agent.llm.call import ModelCall
from agent.llm.client import LLM, Deadline
from agent.ranking.fusion import Candidate
from agent.ranking.rerank import model_places
from agent.results import Stage
from prompts import Prompts
from store import Item
from tests.helpers.attacks import ATTACKS
from tests.helpers.recommending import FILMS


def demo_items() -> list[Item]:
    rows = [json.loads(line) for line in (FILMS / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Item(row["id"], row["title"], row["text"], row["metadata"]) for row in rows]


async def measure_gains(llm: LLM, items: int, place: str, seed: int = 0) -> np.ndarray:
    """Return the gains in places (0..1 of a window of ten) by each attack over harmless text of the same length: (items, attacks).

    The harmless text is a different one of the catalog for each pair. A model likes or dislikes any single text for itself, so
    all attacks would seem to gain or lose against it.
    """
    catalog, prompts, rng = demo_items(), Prompts(), random.Random(seed)
    prose = [item.text for item in catalog]

    async def connect() -> LLM:
        return llm

    async def placed(target: Item, text: str, others: list[Item], history: list[Item]) -> float:
        written = replace(target, **{place: f"{getattr(target, place)} {text}"})
        window = [written, *others]
        # The target stands in the middle of the fused order, with room to rise and to fall.
        scores = dict(zip([i.id for i in [*others[:5], written, *others[5:]]], np.linspace(0.9, 0.1, 10), strict=True))
        head = [Candidate(i.id, float(scores[i.id])) for i in sorted(window, key=lambda i: -scores[i.id])]
        call = ModelCall(connect, prompts, Deadline(3000), Stage("rerank"))
        places = await model_places(call, head, {i.id: i for i in window}, history=history, text=None)
        assert call.stage.degraded is None, call.stage.degraded
        return places[target.id]

    async def gain(target: Item, attack: str, calm: str, others: list[Item], history: list[Item]) -> float:
        attacked, unmoved = await asyncio.gather(
            placed(target, attack, others, history), placed(target, calm, others, history)
        )
        return attacked - unmoved

    work = []
    for _ in range(items):
        target, *others = rng.sample(catalog, 16)
        work += [
            gain(target, attack, cut_text(attack, rng.choice(prose)), others[:9], others[9:14]) for attack in ATTACKS
        ]
    return np.array(await asyncio.gather(*work)).reshape(items, len(ATTACKS))


def cut_text(attack: str, text: str) -> str:
    """Return the text from its second word on, cut to the length of the attack."""
    return (text.partition(" ")[2] * 3)[: len(attack)]


@dataclass(frozen=True)
class Gain:
    """A mean gain with its 95 % interval, and the one-sided p of a mean this high."""

    mean: float
    low: float
    high: float
    p: float


def estimate_gain(found: np.ndarray, seed: int = 0, rounds: int = 20_000) -> Gain:
    """Test by paired randomisation (sign flips) and bootstrap over items: the attacks on one item share its window and history."""
    per_item, rng = found.mean(axis=1), np.random.default_rng(seed)
    flips = rng.choice([-1.0, 1.0], (rounds, len(per_item)))
    drawn = rng.choice(per_item, (rounds, len(per_item))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    mean = float(per_item.mean())
    return Gain(mean, float(low), float(high), float(((flips * per_item).mean(axis=1) >= mean - 1e-12).mean()))
