"""`evoke train queries`: the model learns to write, from a history, the searches and titles that find what people choose next.

First by example: histories before the cut, beside what other people chose next (`channels.chosen_by_others`), and searches in
the catalog's own words for that, what this person chose first. What is shown is found in the events of the moment, when it is used
as when it is learned: so the model learns to choose, and what it knows does not age. What a history holds needs no model: how many
of its latest things, and of their fields, are searched for beside what the model writes is what the retriever finds most with.

Then by the retriever's reward, from histories of which it has seen no example: see `eval.training.reward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.profile.fallback import Mix, topped_up
from agent.results import Interests, Stage
from agent.retrieval.channels import GUESS, SAID
from agent.retrieval.grounding import said_in
from eval.comparison.llm_cache import Progress
from eval.fitting.sequences import Pair
from eval.training import reward
from eval.training.examples import Examples
from eval.training.lora import Lora
from eval.training.reward import ranks

NAMED_SHARE = 4
"""One in so many samples asks for titles; the rest ask for searches."""
TRIED = 0.15
"""Share of the users that nothing is learned from by example: what is written for them is scored."""
MIXES = tuple(Mix(latest, built) for latest in (0, 2, 4, 6) for built in (0, 3))
"""What may be searched for beside what the model writes."""
COMPARED = 1500
"""Histories that these are compared on."""
FOUND = 50
"""Recall is counted among so many."""


def teach(
    examples: Examples,
    pairs: Sequence[Pair],
    others: Sequence[Sequence[int]],
    repeats: bool,
    lora: Lora,
    kept: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Teach the adapter both ways; returns what can be told of it. `others` are the rows that other people chose after each pair's
    history; `repeats` says whether what was chosen before counts as found. Resumable: `kept` is a folder for what is unfinished."""
    users = sorted({pair.user for pair in pairs})
    tried = set(np.random.default_rng(lora.seed).permutation(users)[: round(TRIED * len(users))].tolist())
    mix, found = best_mix(examples, pairs[:COMPARED], others, repeats)
    known = [
        (pair, own)
        for pair, own in zip(pairs, others, strict=True)
        if pair.user not in tried and set(pair.chosen) - set(pair.history)
    ]
    samples = [
        examples.example(pair, own, "named" if at % NAMED_SHARE == NAMED_SHARE - 1 else "queries")
        for at, (pair, own) in enumerate(known)
    ]
    told: dict[str, Any] = {"examples": len(samples), **mix._asdict(), "recall by mix": found}
    told["loss by example"] = lora.learn(samples, 1, kept / "examples.pt", "batches learned by example", progress)
    fresh = [(pair, own) for pair, own in zip(pairs, others, strict=True) if pair.user in tried]
    # Drawing takes longer than learning: on a CPU there is time for a few lists alone.
    by_reward = reward.by_policy if lora.on_gpu else reward.by_rejection
    return told | by_reward(examples, fresh, samples, lora, kept, progress)


def best_mix(
    examples: Examples, pairs: Sequence[Pair], others: Sequence[Sequence[int]], repeats: bool
) -> tuple[Mix, dict[str, float]]:
    """What should be searched for beside what the model writes; and for each mix the recall@50 of what was chosen next, by lists
    that say by heart what the model is to learn. Of those at most one standard error behind the best, the one that searches for
    most of the latest things: what a history holds is known, and what comes next is only guessed."""
    recall = _recall(examples, pairs, others, repeats)
    mean = {mix: float(own.mean()) for mix, own in recall.items()}
    best = max(MIXES, key=lambda mix: mean[mix])
    behind = {mix: recall[best] - own for mix, own in recall.items()}
    close = [mix for mix, gap in behind.items() if gap.mean() <= gap.std() / np.sqrt(len(gap))]
    chosen = max(close, key=lambda mix: (mix.latest, mean[mix]))
    return chosen, {f"{mix.latest} latest, {mix.built} built": round(own, 5) for mix, own in mean.items()}


def _recall(
    examples: Examples, pairs: Sequence[Pair], others: Sequence[Sequence[int]], repeats: bool
) -> dict[Mix, np.ndarray]:
    """By mix the recall@50 of what was chosen next in each pair, where the model writes what it is shown, in its order."""
    lists: dict[Mix, list[Interests]] = {mix: [] for mix in MIXES}
    for pair, shown in zip(pairs, others, strict=False):
        history, next_ = examples.history(pair), [examples.item(row) for row in shown]
        said = Interests(None, examples.searches(pair, shown), [])
        for mix, own in lists.items():
            own.append(topped_up(said, history, examples.schema, Stage("interests"), mix, next_))
    flat = sorted({query for own in lists.values() for found in own for query in found.queries})
    at = {query: row for row, query in enumerate(flat)}
    encoded, vectors = examples.catalog.embedder.encode_queries(flat), np.asarray(examples.snapshot.vectors)
    shares = {mix: np.zeros(len(pairs)) for mix in MIXES}
    for row, pair in enumerate(pairs):
        chosen = [item for item in pair.chosen if repeats or item not in pair.history]
        for mix, own in lists.items():
            queries = own[row].queries
            if queries and chosen:
                weights = np.where(np.arange(len(queries)) < own[row].latest, 1.0, GUESS)[:, None]
                alike = encoded[[at[query] for query in queries]] @ vectors.T
                for line, query in enumerate(queries):
                    titled = said_in(query, examples.snapshot)
                    alike[line, titled] = np.maximum(alike[line, titled], SAID)
                best = (weights * alike).max(axis=0)[None]
                shares[mix][row] = (ranks(best, [] if repeats else pair.history, chosen) < FOUND).mean()
    return shares
