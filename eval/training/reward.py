"""The reward of a list of queries: how well they retrieve the items chosen next, as in Rec-R1 (arXiv 2503.24289).

A query earns, for each item chosen next, more the higher it ranks that item. An item that the vectors of the history do not
retrieve counts double, because finding such items is the purpose of queries. Two trainings use this reward: `rejection` on a
CPU, and `policy_gradient` on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.errors import BadAnswer
from agent.llm.parsing import parse
from agent.profile.schemas import TRAINED
from eval.fitting.sequences import Pair
from eval.training.examples import Examples

PREFIX = '{"queries": ["'
"""The beginning of every sampled answer. In production a grammar keeps answers in this form."""
TOKENS = 130
"""The most tokens of a sampled answer."""
TEMPERATURE = 1.0
DEPTH = 100
"""A query earns nothing for items that it ranks below this place."""

Shown = tuple[Pair, Sequence[int]]
"""A pair, and the rows that the model is shown with its history: what other users chose next."""


def score_queries(
    examples: Examples, shown: Sequence[Shown], lists: Sequence[Sequence[str]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return two arrays for each history and its list of queries: the reward of each query for each new item chosen next,
    (queries, items), and which of these items the vectors of the history do not retrieve, (items,) bool."""
    vectors = np.asarray(examples.snapshot.vectors)
    flat = sorted({query for own in lists for query in own})
    at = {query: row for row, query in enumerate(flat)}
    encoded = examples.catalog.embedder.encode_queries(flat) if flat else vectors[:0]
    scores = []
    for (pair, _), own in zip(shown, lists, strict=True):
        history, chosen = list(pair.history), new_items(pair)
        missed = rank_items(vectors[history[-10:]] @ vectors.T, history, chosen).min(axis=0) >= DEPTH
        ranks = rank_items(encoded[[at[query] for query in own]] @ vectors.T, history, chosen)
        scores.append((np.where(ranks < DEPTH, (1 + missed) / np.log2(2 + ranks), 0.0), missed))
    return scores


def rank_items(scores: np.ndarray, history: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
    """Return the rank, from 0, of each chosen row by each row of `scores` (queries, n), without the history: (queries, chosen)."""
    scores = scores.copy()
    scores[:, history] = -np.inf
    return (scores[:, None, :] > scores[:, chosen][:, :, None]).sum(axis=2)


def new_items(pair: Pair) -> list[int]:
    """Return the rows chosen next that are not in the history."""
    return [row for row in pair.chosen if row not in pair.history]


def parse_queries(text: str) -> list[str]:
    """Return the queries of an answer, none if it cannot be parsed."""
    try:
        return list(parse(text, TRAINED["queries"])[0].queries)  # type: ignore[attr-defined]
    except BadAnswer:
        return []
