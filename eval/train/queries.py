"""`evoke train queries`: the model learns to write, from a history, the searches and titles that find what people choose next.

First by example: histories before the cut, with what was chosen next in the catalog's own words. Then by reward: it writes several
lists for histories it has not learned from, each search is scored by where it ranks what was chosen, and it goes on learning
from the best of its own (rejection sampling; the reward is the retriever's own recall, as in Rec-R1, arXiv 2503.24289). What
the history's own vectors miss counts double: that is what queries are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.answers import parse
from agent.errors import BadAnswer
from agent.topup import good_queries
from agent.written import FORMS
from eval.answers import Progress
from eval.train.examples import Examples
from eval.train.lora import Lora, Sample
from eval.train.pairs import AHEAD, Pair

NAMED_SHARE = 4
"""One in so many samples asks for titles; the rest ask for searches."""
TRIED = 0.15
"""Share of the users that nothing is learned from by example: what is written for them is scored."""
SCORED = 240
"""How many histories are written for at most: drawing takes longer than learning."""
DRAWS = 2
TEMPERATURE = 1.0
BEGUN = '{"queries": ["'
"""How every answer begins: served, the form is held by a grammar."""
FOUND = 100
"""A search is rewarded where it ranks what was chosen among so many."""
TOKENS = 110


def teach(examples: Examples, pairs: Sequence[Pair], lora: Lora, kept: Path, progress: Progress) -> dict[str, Any]:
    """Teach the adapter both ways; returns what can be told of it. Resumable: `kept` is a folder for what is unfinished."""
    users = sorted({pair.user for pair in pairs})
    tried = set(np.random.default_rng(lora.seed).permutation(users)[: round(TRIED * len(users))].tolist())
    known = [pair for pair in pairs if pair.user not in tried and set(pair.chosen) - set(pair.history)]
    samples = [
        examples.example(pair, fused, "named" if at % NAMED_SHARE == NAMED_SHARE - 1 else "queries")
        for at, (pair, fused) in enumerate(zip(known, examples.fused(known, 3 * AHEAD), strict=True))
    ]
    told: dict[str, Any] = {"examples": len(samples)}
    told["loss by example"] = lora.learn(samples, 1, kept / "examples.pt", "batches learned by example", progress)
    fresh = [pair for pair in pairs if pair.user in tried][:SCORED]
    won, reward = winners(examples, fresh, lora, kept, progress)
    told |= {"scored": len(fresh), "winners": len(won), "reward": reward}
    if won:
        # With as many examples as before: what it writes must stay of the catalog.
        mixed = [*won, *samples[: len(won)]]
        told["loss by reward"] = lora.learn(mixed, 1, kept / "winners.pt", "batches learned by reward", progress)
    return told


def winners(
    examples: Examples, pairs: Sequence[Pair], lora: Lora, kept: Path, progress: Progress
) -> tuple[list[Sample], dict[str, float]]:
    """For each history for which a search found what was chosen: the best searches of all lists drawn, as one list."""
    lists = _drawn(examples, pairs, lora, kept, progress)
    snapshot, embedder = examples.snapshot, examples.catalog.embedder
    vectors = np.asarray(snapshot.vectors)
    flat = sorted({query for own in lists for query in own})
    at = {query: row for row, query in enumerate(flat)}
    encoded = embedder.encode_queries(flat)
    samples, rewards = [], []
    for pair, own in zip(pairs, lists, strict=True):
        history, chosen = list(pair.history), [row for row in pair.chosen if row not in pair.history]
        if not own or not chosen:
            continue
        missed = _ranks(vectors[history[-10:]] @ vectors.T, history, chosen).min(axis=0) >= FOUND
        ranks = _ranks(encoded[[at[query] for query in own]] @ vectors.T, history, chosen)
        gains = np.where(ranks < FOUND, (1 + missed) / np.log2(2 + ranks), 0.0)
        reward = gains.sum(axis=1)
        rewards.append(gains.max(axis=0).mean())
        if reward.max() > 0:
            best = [own[row] for row in np.argsort(-reward, kind="stable")[:AHEAD]]
            weight = 1.0 + float(missed[gains.max(axis=0) > 0].any())
            samples.append(
                Sample(examples.asked(pair, "queries"), json.dumps({"queries": best}, ensure_ascii=False), weight)
            )
    return samples, {"mean": float(np.mean(rewards)) if rewards else 0.0, "histories": len(rewards)}


def _drawn(examples: Examples, pairs: Sequence[Pair], lora: Lora, kept: Path, progress: Progress) -> list[list[str]]:
    """The distinct searches that the model writes for each history, over all its lists; kept, since drawing takes long."""
    from eval.steps import Steps

    asked = [examples.asked(pair, "queries") for pair in pairs]
    whole = hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()
    steps = Steps(kept / "drawn.json", f"{lora.weights} {lora.seed} {whole}")
    texts = steps.step(
        "drawn",
        lambda: lora.write(
            [m for m in asked for _ in range(DRAWS)], BEGUN, TOKENS, TEMPERATURE, "lists drawn", progress
        ),
    )
    lists = []
    for row, pair in enumerate(pairs):
        written: list[str] = []
        for text in texts[row * DRAWS : (row + 1) * DRAWS]:
            try:
                written += parse(text, FORMS["queries",])[0].queries  # type: ignore[attr-defined]
            except BadAnswer:
                continue
        lists.append(good_queries(written, [examples.item(item) for item in pair.history]))
    return lists


def _ranks(scores: np.ndarray, history: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
    """(queries, chosen) the place of each chosen item, from 0, the history left out."""
    scores = scores.copy()
    scores[:, history] = -np.inf
    return (scores[:, None, :] > scores[:, chosen][:, :, None]).sum(axis=2)
