"""`evoke train queries`: from a history, the model learns to write the queries and titles that find the items chosen next.

First it learns by example. A prompt shows a history and the items that other users chose next (`channels.chosen_by_others`). The
answer describes these items in the catalog's own words, those first that this user chose, too. The items shown are computed from
current events, in training as in production, so the model learns to choose among them, and what it has learned does not age.

The latest items of a history, and their fields, can be searched for without a model. How many of them are searched for together
with the model's queries is decided by what retrieves most (`choose_mix`).

Then it learns by the reward of retrieval, from histories that it has seen no example of: see `eval.training.reward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.profile.fallback import Mix, fill_up
from agent.results import Interests, Stage
from agent.retrieval.channels import GUESSED, TITLE_MATCH
from agent.retrieval.grounding import rows_of_title
from eval.fitting.sequences import Pair
from eval.progress import Progress
from eval.training.examples import Examples
from eval.training.lora import Lora
from eval.training.policy_gradient.group_relative import train_by_policy_gradient
from eval.training.rejection import train_by_rejection
from eval.training.reward import new_items, rank_items

NAMED_EVERY = 4
"""Every fourth sample asks for titles, the others for queries."""
REWARD_USERS = 0.15
"""The share of users that no examples come from; queries written for them are scored."""
MIXES = tuple(Mix(latest, built) for latest in (0, 2, 4, 6) for built in (0, 3))
"""The mixes of queries without a model that are compared."""
MIX_PAIRS = 1500
"""The pairs that mixes are compared on."""
RECALL_AT = 50


def train_queries(
    examples: Examples,
    pairs: Sequence[Pair],
    others: Sequence[Sequence[int]],
    repeats: bool,
    lora: Lora,
    kept: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Train the adapter by example and then by reward; return figures about it.

    Args:
        examples: makes the prompts.
        pairs: the histories, each with the items chosen next.
        others: the rows that other users chose after each history.
        repeats: whether an item of the history counts as found.
        lora: the model.
        kept: the folder for unfinished work; a training that was killed continues from it.
        progress: the progress display.
    """
    users = sorted({pair.user for pair in pairs})
    held_out = set(np.random.default_rng(lora.seed).permutation(users)[: round(REWARD_USERS * len(users))].tolist())
    mix, recall = choose_mix(examples, pairs[:MIX_PAIRS], others, repeats)
    shown = list(zip(pairs, others, strict=True))
    known = [(pair, own) for pair, own in shown if pair.user not in held_out and new_items(pair)]
    samples = [
        examples.sample(pair, own, "named" if at % NAMED_EVERY == NAMED_EVERY - 1 else "queries")
        for at, (pair, own) in enumerate(known)
    ]
    figures: dict[str, Any] = {"examples": len(samples), **mix._asdict(), "recall by mix": recall}
    figures["loss by example"] = lora.learn(samples, 1, kept / "examples.pt", "batches of examples learned", progress)
    fresh = [(pair, own) for pair, own in shown if pair.user in held_out]
    # Sampling lists takes longer than training on them: a CPU has time for a few only.
    train_by_reward = train_by_policy_gradient if lora.on_gpu else train_by_rejection
    return figures | train_by_reward(examples, fresh, samples, lora, kept, progress)


def choose_mix(
    examples: Examples, pairs: Sequence[Pair], others: Sequence[Sequence[int]], repeats: bool
) -> tuple[Mix, dict[str, float]]:
    """Return the mix of queries without a model that works best with the model's queries, and the recall@50 of each mix.

    Recall is of the items chosen next, by queries as in the examples: what the model writes if it learns them perfectly. Among
    mixes at most one standard error below the best, the one with the most queries for latest items is chosen, because these
    items are certain and the model's queries are a prediction.
    """
    recall = _recall_by_mix(examples, pairs, others, repeats)
    mean = {mix: float(own.mean()) for mix, own in recall.items()}
    best = max(MIXES, key=lambda mix: mean[mix])
    behind = {mix: recall[best] - own for mix, own in recall.items()}
    close = [mix for mix, gap in behind.items() if gap.mean() <= gap.std() / np.sqrt(len(gap))]
    chosen = max(close, key=lambda mix: (mix.latest, mean[mix]))
    return chosen, {f"{mix.latest} latest, {mix.built} built": round(own, 5) for mix, own in mean.items()}


def _recall_by_mix(
    examples: Examples, pairs: Sequence[Pair], others: Sequence[Sequence[int]], repeats: bool
) -> dict[Mix, np.ndarray]:
    """Return for each mix the recall@50 of each pair, if the model's queries describe the items shown, in their order."""
    lists: dict[Mix, list[Interests]] = {mix: [] for mix in MIXES}
    for pair, shown in zip(pairs, others, strict=False):
        history, next_ = examples.history(pair), [examples.item(row) for row in shown]
        written = Interests(None, tuple(examples.queries(pair, shown)))
        for mix, own in lists.items():
            own.append(fill_up(written, history, examples.schema, Stage("profile"), mix, next_))
    flat = sorted({query for own in lists.values() for found in own for query in found.queries})
    at = {query: row for row, query in enumerate(flat)}
    encoded, vectors = examples.catalog.embedder.encode_queries(flat), np.asarray(examples.snapshot.vectors)
    recall = {mix: np.zeros(len(pairs)) for mix in MIXES}
    for row, pair in enumerate(pairs):
        chosen = list(pair.chosen) if repeats else new_items(pair)
        for mix, own in lists.items():
            queries = own[row].queries
            if queries and chosen:
                weights = np.where(np.arange(len(queries)) < own[row].latest, 1.0, GUESSED)[:, None]
                similarity = encoded[[at[query] for query in queries]] @ vectors.T
                for line, query in enumerate(queries):
                    titled = rows_of_title(query, examples.snapshot)
                    similarity[line, titled] = np.maximum(similarity[line, titled], TITLE_MATCH)
                best = (weights * similarity).max(axis=0)[None]
                recall[mix][row] = (rank_items(best, [] if repeats else pair.history, chosen) < RECALL_AT).mean()
    return recall
