"""`evoke train queries`: the model learns to write, from a history, the searches and titles that find what people choose next.

First by example: histories before the cut, with searches in the catalog's own words for what was chosen next and for what people
choose after such a history. What a history holds needs no model: how many of its latest things are searched for beside what the
model writes is what the retriever finds most with. Then by reward: it writes several lists for
histories it has not learned from, each search is scored by where it ranks what was chosen, and it goes on learning from the best
of its own (rejection sampling; the reward is the retriever's own recall, as in Rec-R1, arXiv 2503.24289). What the history's own
vectors miss counts double: that is what queries are for.
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
from agent.topup import good_queries, queries_for_latest
from agent.written import MOST_QUERIES, TRAINED
from eval.answers import Progress
from eval.train.examples import Examples
from eval.train.lora import Lora, Sample
from eval.train.pairs import Pair

NAMED_SHARE = 4
"""One in so many samples asks for titles; the rest ask for searches."""
TRIED = 0.15
"""Share of the users that nothing is learned from by example: what is written for them is scored."""
SCORED = 100
"""How many histories are written for at most: drawing takes longer than learning."""
DRAWS = 2
TEMPERATURE = 1.0
BEGUN = '{"queries": ["'
"""How every answer begins: served, the form is held by a grammar."""
REWARDED = 100
"""A search is rewarded where it ranks what was chosen among so many."""
TOKENS = 130
LATEST = (0, 2, 4, 6)
"""So many of the things chosen last may be searched for themselves."""
COMPARED = 1500
"""Histories that these are compared on."""
FOUND = 50
"""Recall is counted among so many."""


def teach(
    examples: Examples,
    pairs: Sequence[Pair],
    near: Sequence[Sequence[int]],
    repeats: bool,
    lora: Lora,
    kept: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Teach the adapter both ways; returns what can be told of it. `near` are the rows that `base` brings for each pair; `repeats`
    says whether what was chosen before counts as found. Resumable: `kept` is a folder for what is unfinished."""
    users = sorted({pair.user for pair in pairs})
    tried = set(np.random.default_rng(lora.seed).permutation(users)[: round(TRIED * len(users))].tolist())
    latest, found = best_mix(examples, pairs[:COMPARED], near, repeats)
    known = [
        (pair, brought)
        for pair, brought in zip(pairs, near, strict=True)
        if pair.user not in tried and set(pair.chosen) - set(pair.history)
    ]
    samples = [
        examples.example(pair, brought, "named" if at % NAMED_SHARE == NAMED_SHARE - 1 else "queries")
        for at, (pair, brought) in enumerate(known)
    ]
    told: dict[str, Any] = {"examples": len(samples), "latest": latest, "recall by latest": found}
    told["loss by example"] = lora.learn(samples, 1, kept / "examples.pt", "batches learned by example", progress)
    fresh = [pair for pair in pairs if pair.user in tried][:SCORED]
    won, reward = winners(examples, fresh, lora, kept, progress)
    told |= {"scored": len(fresh), "winners": len(won), "reward": reward}
    if won:
        # With as many examples as before: what it writes must stay of the catalog.
        mixed = [*won, *samples[: len(won)]]
        told["loss by reward"] = lora.learn(mixed, 1, kept / "winners.pt", "batches learned by reward", progress)
    return told


def best_mix(
    examples: Examples, pairs: Sequence[Pair], near: Sequence[Sequence[int]], repeats: bool
) -> tuple[int, dict[int, float]]:
    """How many of a history's latest things should be searched for beside what the model writes; and for each number the recall@50
    of what was chosen next, by lists that say by heart what the model is to learn. The highest number that is at most one standard
    error behind the best: what a history holds is known, and what comes next is only guessed."""
    found = {latest: _recall(examples, pairs, near, repeats, latest) for latest in LATEST}
    best = max(LATEST, key=lambda latest: found[latest].mean())
    behind = {latest: found[best] - own for latest, own in found.items()}
    error = {latest: own.std() / np.sqrt(len(own)) for latest, own in behind.items()}
    chosen = max(latest for latest in LATEST if behind[latest].mean() <= error[latest])
    return chosen, {latest: round(float(own.mean()), 5) for latest, own in found.items()}


def _recall(
    examples: Examples, pairs: Sequence[Pair], near: Sequence[Sequence[int]], repeats: bool, latest: int
) -> np.ndarray:
    """Recall@50 of what was chosen next in each pair, by searches for the `latest` and for what is `near`."""
    lists = []
    for pair, brought in zip(pairs, near, strict=False):
        history = examples.history(pair)
        known = queries_for_latest(history, examples.schema, latest)
        lists.append(known + good_queries(examples.searches(pair, brought), history, known))
    flat = sorted({query for own in lists for query in own})
    at = {query: row for row, query in enumerate(flat)}
    encoded, vectors = examples.catalog.embedder.encode_queries(flat), np.asarray(examples.snapshot.vectors)
    shares = np.zeros(len(pairs))
    for row, (pair, own) in enumerate(zip(pairs, lists, strict=True)):
        chosen = [item for item in pair.chosen if repeats or item not in pair.history]
        if own and chosen:
            best = (encoded[[at[query] for query in own]] @ vectors.T).max(axis=0)[None]
            shares[row] = (_ranks(best, [] if repeats else pair.history, chosen) < FOUND).mean()
    return shares


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
        missed = _ranks(vectors[history[-10:]] @ vectors.T, history, chosen).min(axis=0) >= REWARDED
        ranks = _ranks(encoded[[at[query] for query in own]] @ vectors.T, history, chosen)
        gains = np.where(ranks < REWARDED, (1 + missed) / np.log2(2 + ranks), 0.0)
        reward = gains.sum(axis=1)
        rewards.append(gains.max(axis=0).mean())
        if reward.max() > 0:
            best = [own[row] for row in np.argsort(-reward, kind="stable")[:MOST_QUERIES]]
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
    steps = Steps(kept / "drawn.json", f"{lora.seed} {lora.learned} {TOKENS} {TEMPERATURE} {DRAWS} {whole}")
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
                written += parse(text, TRAINED["queries"])[0].queries  # type: ignore[attr-defined]
            except BadAnswer:
                continue
        lists.append(good_queries(written, examples.history(pair)))
    return lists


def _ranks(scores: np.ndarray, history: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
    """(queries, chosen) the place of each chosen item, from 0, the history left out."""
    scores = scores.copy()
    scores[:, history] = -np.inf
    return (scores[:, None, :] > scores[:, chosen][:, :, None]).sum(axis=2)
