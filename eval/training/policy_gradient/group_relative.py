"""Policy gradient with group-relative advantages, as in GRPO (arXiv 2402.03300) without scaling by the group's spread (2503.20783).

The model samples several lists of queries for a history. Each list becomes more likely by as much as its reward is above the mean
reward of the history's lists, or less likely by as much as it is below. This samples thousands of lists, and so needs a GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.profile.fallback import good_queries
from eval.progress import Progress, quiet
from eval.training.examples import Examples
from eval.training.lora import Lora, Sample
from eval.training.reward import DEPTH, PREFIX, TEMPERATURE, TOKENS, Shown, new_items, parse_queries, score_queries

ROUNDS = 60
"""The number of steps."""
HISTORIES = 16
"""The histories of each step."""
GROUP = 8
"""The lists sampled for each of these histories."""
EXAMPLE_WEIGHT = 0.1
"""The weight of an example. Each step mixes in one for every history, so that the model does not forget what examples taught."""


def train_by_policy_gradient(
    examples: Examples, fresh: Sequence[Shown], learned: Sequence[Sample], lora: Lora, kept: Path, progress: Progress
) -> dict[str, Any]:
    """Take ROUNDS steps of policy gradient; return figures, with the mean reward of the first and the last tenth of the steps.

    A training that was killed continues from its last checkpoint.

    Args:
        examples: makes the prompts.
        fresh: histories that the model has seen no example of.
        learned: samples that were learned before; some are mixed into each step.
        lora: the model.
        kept: the folder for unfinished work.
        progress: the progress display.
    """
    fresh = [(pair, others) for pair, others in fresh if new_items(pair)]
    if not fresh:
        return {"scored": 0}
    prompts = [examples.prompt(pair, others, "queries") for pair, others in fresh]

    def draw(turn: int) -> tuple[list[Sample], float]:
        random = np.random.default_rng([lora.seed, turn])
        rows = [row for row in random.permutation(len(fresh))[:HISTORIES] for _ in range(GROUP)]
        # top_p is 1 because answers that are never sampled get no reward.
        texts = lora.generate([prompts[row] for row in rows], PREFIX, TOKENS, TEMPERATURE, "", quiet, 1 + turn, 1.0)
        some = [fresh[row] for row in rows]
        lists = [
            good_queries(parse_queries(text), examples.history(pair))
            for text, (pair, _) in zip(texts, some, strict=True)
        ]
        rewards = np.array(
            [scores.max(axis=0, initial=0.0).mean() for scores, _ in score_queries(examples, some, lists)]
        )
        groups = rewards.reshape(-1, GROUP)
        advantages = (groups - groups.mean(axis=1, keepdims=True)).ravel()
        own = [
            Sample(prompts[row], text.removeprefix(PREFIX), float(weight), PREFIX, text.endswith("}"))
            for row, text, weight in zip(rows, texts, advantages, strict=True)
        ]
        mixed_in = [learned[at] for at in random.permutation(len(learned))[:HISTORIES]]
        return own + [replace(sample, weight=EXAMPLE_WEIGHT) for sample in mixed_in], float(rewards.mean())

    whole = hashlib.blake2b(np.asarray(examples.snapshot.vectors).tobytes(), digest_size=12)
    whole.update(json.dumps([prompts, [pair.chosen for pair, _ in fresh], [s.answer for s in learned]]).encode())
    key = f"{whole.hexdigest()} {TOKENS} {TEMPERATURE} {DEPTH} {HISTORIES} {GROUP} {EXAMPLE_WEIGHT}"
    rewards = lora.reinforce(ROUNDS, draw, key, kept / "policy.pt", progress)
    tenth = max(len(rewards) // 10, 1)
    first, last = float(np.mean(rewards[:tenth])), float(np.mean(rewards[-tenth:]))
    return {"scored": len(fresh), "rounds": len(rewards), "reward": {"first": first, "last": last}}
