"""Learning by rejection: the model samples lists of queries, and is trained on the best of them as on examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.profile.fallback import good_queries
from agent.profile.schemas import MOST_QUERIES
from eval.progress import Progress
from eval.training.examples import Examples
from eval.training.lora import Lora, Sample
from eval.training.reward import PREFIX, TEMPERATURE, TOKENS, Shown, parse_queries, score_queries
from eval.tuning.resumable import Steps

HISTORIES = 40
"""The most histories that lists are sampled for."""
DRAWS = 2
"""The lists sampled for each history."""


def train_by_rejection(
    examples: Examples, fresh: Sequence[Shown], learned: Sequence[Sample], lora: Lora, kept: Path, progress: Progress
) -> dict[str, Any]:
    """Train on the best queries that the model writes for new histories; return figures about it.

    Args:
        examples: makes the prompts.
        fresh: histories that the model has seen no example of.
        learned: samples that were learned before. As many of them are mixed in, so that answers keep to the catalog's words.
        lora: the model.
        kept: the folder for unfinished work.
        progress: the progress display.
    """
    best, figures = select_best(examples, fresh[:HISTORIES], lora, kept, progress)
    if best:
        mixed = [*best, *learned[: len(best)]]
        figures["loss by reward"] = lora.learn(mixed, 1, kept / "winners.pt", "batches of best lists learned", progress)
    return figures


def select_best(
    examples: Examples, fresh: Sequence[Shown], lora: Lora, kept: Path, progress: Progress
) -> tuple[list[Sample], dict[str, Any]]:
    """Sample lists for each history; return a sample with the best queries of each history, and figures.

    A history without a query that retrieves an item chosen next gives no sample. The mean reward in the figures is over
    histories, of the best query for each item.
    """
    prompts = [examples.prompt(pair, others, "queries") for pair, others in fresh for _ in range(DRAWS)]
    whole = hashlib.blake2b(json.dumps(prompts).encode(), digest_size=12).hexdigest()
    # Sampling takes long, so its results are kept.
    steps = Steps(kept / "drawn.json", f"{lora.seed} {lora.state_hash} {TOKENS} {TEMPERATURE} {DRAWS} {whole}")
    texts = steps.step("drawn", lambda: lora.generate(prompts, PREFIX, TOKENS, TEMPERATURE, "lists sampled", progress))
    lists = []
    for row, (pair, _) in enumerate(fresh):
        written = [query for text in texts[row * DRAWS : (row + 1) * DRAWS] for query in parse_queries(text)]
        lists.append(good_queries(written, examples.history(pair)))
    samples, rewards = [], []
    for row, (queries, (scores, missed)) in enumerate(zip(lists, score_queries(examples, fresh, lists), strict=True)):
        if not scores.size:
            continue
        rewards.append(scores.max(axis=0).mean())
        by_query = scores.sum(axis=1)
        if by_query.max() > 0:
            best = [queries[at] for at in np.argsort(-by_query, kind="stable")[:MOST_QUERIES]]
            weight = 1.0 + float(missed[scores.max(axis=0) > 0].any())
            samples.append(Sample(prompts[row * DRAWS], json.dumps({"queries": best}, ensure_ascii=False), weight))
    mean = float(np.mean(rewards)) if rewards else 0.0
    return samples, {"scored": len(fresh), "winners": len(samples), "reward": {"mean": mean, "histories": len(rewards)}}
