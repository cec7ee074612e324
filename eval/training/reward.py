"""Learning by reward: the model writes lists of searches for histories of which it has seen no example, and what they find says
what it goes on learning from. The reward is the retriever's recall, as in Rec-R1 (arXiv 2503.24289): each search is scored by where
it ranks what was chosen, and what the history's own vectors miss counts double, since that is what queries are for.

Two ways. By rejection it learns once more by example, from the best of its own lists. By policy gradient it draws several lists
a history, and every one of them becomes likelier by as much as it finds more than the others of its history do, or less likely
(group-relative, as in GRPO, arXiv 2402.03300, without scaling by the group's spread, arXiv 2503.20783). The second draws thousands
of lists, and so wants a GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import BadAnswer
from agent.llm.parsing import parse
from agent.profile.fallback import good_queries
from agent.profile.schemas import MOST_QUERIES, TRAINED
from eval.comparison.llm_cache import Progress, quiet
from eval.fitting.sequences import Pair
from eval.training.examples import Examples
from eval.training.lora import Lora, Sample
from eval.tuning.resumable import Steps

BEGUN = '{"queries": ["'
"""How every answer begins: served, the form is held by a grammar."""
TOKENS = 130
TEMPERATURE = 1.0
REWARDED = 100
"""A search is rewarded where it ranks what was chosen among so many."""
SCORED = 40
"""Histories that lists are rejected of, at most."""
DRAWS = 2
"""Lists of each of these."""
ROUNDS = 60
"""Steps by policy gradient."""
HISTORIES = 16
"""Histories in each of these."""
GROUP = 8
"""Lists of each of them."""
EXAMPLE = 0.1
"""What an example weighs there, of which each step sees one for every history: it must go on writing of the catalog, and titles."""

Shown = tuple[Pair, Sequence[int]]
"""A pair, and the rows that the model is shown beside its history: what other people chose next."""


def by_rejection(
    examples: Examples, fresh: Sequence[Shown], taught: Sequence[Sample], lora: Lora, kept: Path, progress: Progress
) -> dict[str, Any]:
    """Go on learning from the best of what it writes for these histories, beside as many of the samples that were `taught`;
    returns what can be told of it."""
    won, told = winners(examples, fresh[:SCORED], lora, kept, progress)
    if won:
        # What it writes must stay of the catalog.
        mixed = [*won, *taught[: len(won)]]
        told["loss by reward"] = lora.learn(mixed, 1, kept / "winners.pt", "batches learned by reward", progress)
    return told


def winners(
    examples: Examples, fresh: Sequence[Shown], lora: Lora, kept: Path, progress: Progress
) -> tuple[list[Sample], dict[str, Any]]:
    """For each history for which a search found what was chosen: the best searches of all lists drawn, as one list. And what can
    be told of it: the mean over histories of what the best search for each chosen item earns."""
    asked = [examples.asked(pair, others, "queries") for pair, others in fresh for _ in range(DRAWS)]
    whole = hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()
    # Drawing takes long.
    steps = Steps(kept / "drawn.json", f"{lora.seed} {lora.learned} {TOKENS} {TEMPERATURE} {DRAWS} {whole}")
    texts = steps.step("drawn", lambda: lora.write(asked, BEGUN, TOKENS, TEMPERATURE, "lists drawn", progress))
    lists = []
    for row, (pair, _) in enumerate(fresh):
        written = [query for text in texts[row * DRAWS : (row + 1) * DRAWS] for query in _queries(text)]
        lists.append(good_queries(written, examples.history(pair)))
    samples, earned = [], []
    for row, (queries, (gains, missed)) in enumerate(zip(lists, scored(examples, fresh, lists), strict=True)):
        if not gains.size:
            continue
        earned.append(gains.max(axis=0).mean())
        each = gains.sum(axis=1)
        if each.max() > 0:
            best = [queries[at] for at in np.argsort(-each, kind="stable")[:MOST_QUERIES]]
            weight = 1.0 + float(missed[gains.max(axis=0) > 0].any())
            samples.append(Sample(asked[row * DRAWS], json.dumps({"queries": best}, ensure_ascii=False), weight))
    mean = float(np.mean(earned)) if earned else 0.0
    return samples, {"scored": len(fresh), "winners": len(samples), "reward": {"mean": mean, "histories": len(earned)}}


def by_policy(
    examples: Examples, fresh: Sequence[Shown], taught: Sequence[Sample], lora: Lora, kept: Path, progress: Progress
) -> dict[str, Any]:
    """ROUNDS steps by policy gradient on lists drawn for some of these histories, beside a few of the samples that were `taught`,
    resumed like all learning; returns what can be told of it: the mean reward of the lists of the first and the last tenth."""
    fresh = [(pair, others) for pair, others in fresh if _new(pair)]
    if not fresh:
        return {"scored": 0}
    asked = [examples.asked(pair, others, "queries") for pair, others in fresh]

    def drawn(turn: int) -> tuple[list[Sample], float]:
        random = np.random.default_rng([lora.seed, turn])
        rows = [row for row in random.permutation(len(fresh))[:HISTORIES] for _ in range(GROUP)]
        # From all tokens: what is never drawn could not be weighed.
        texts = lora.write([asked[row] for row in rows], BEGUN, TOKENS, TEMPERATURE, "", quiet, 1 + turn, 1.0)
        some = [fresh[row] for row in rows]
        lists = [
            good_queries(_queries(text), examples.history(pair)) for text, (pair, _) in zip(texts, some, strict=True)
        ]
        earned = np.array([gains.max(axis=0, initial=0.0).mean() for gains, _ in scored(examples, some, lists)])
        groups = earned.reshape(-1, GROUP)
        ahead = (groups - groups.mean(axis=1, keepdims=True)).ravel()
        own = [
            Sample(asked[row], text.removeprefix(BEGUN), float(weight), BEGUN, text.endswith("}"))
            for row, text, weight in zip(rows, texts, ahead, strict=True)
        ]
        beside = [taught[at] for at in random.permutation(len(taught))[:HISTORIES]]
        return own + [replace(sample, weight=EXAMPLE) for sample in beside], float(earned.mean())

    whole = hashlib.blake2b(np.asarray(examples.snapshot.vectors).tobytes(), digest_size=12)
    whole.update(json.dumps([asked, [pair.chosen for pair, _ in fresh], [s.answer for s in taught]]).encode())
    key = f"{whole.hexdigest()} {TOKENS} {TEMPERATURE} {REWARDED} {HISTORIES} {GROUP} {EXAMPLE}"
    earned = lora.reinforce(ROUNDS, drawn, key, kept / "policy.pt", progress)
    tenth = max(len(earned) // 10, 1)
    first, last = float(np.mean(earned[:tenth])), float(np.mean(earned[-tenth:]))
    return {"scored": len(fresh), "rounds": len(earned), "reward": {"first": first, "last": last}}


def scored(
    examples: Examples, shown: Sequence[Shown], lists: Sequence[Sequence[str]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each history and its list what every search earns by each new item that was chosen, (searches, items), and which of
    these the history's own vectors miss, (items,) bool."""
    vectors = np.asarray(examples.snapshot.vectors)
    flat = sorted({query for own in lists for query in own})
    at = {query: row for row, query in enumerate(flat)}
    encoded = examples.catalog.embedder.encode_queries(flat) if flat else vectors[:0]
    found = []
    for (pair, _), own in zip(shown, lists, strict=True):
        history, chosen = list(pair.history), _new(pair)
        missed = ranks(vectors[history[-10:]] @ vectors.T, history, chosen).min(axis=0) >= REWARDED
        placed = ranks(encoded[[at[query] for query in own]] @ vectors.T, history, chosen)
        found.append((np.where(placed < REWARDED, (1 + missed) / np.log2(2 + placed), 0.0), missed))
    return found


def ranks(scores: np.ndarray, history: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
    """(queries, chosen) the place of each chosen item, from 0, the history left out."""
    scores = scores.copy()
    scores[:, history] = -np.inf
    return (scores[:, None, :] > scores[:, chosen][:, :, None]).sum(axis=2)


def _new(pair: Pair) -> list[int]:
    return [row for row in pair.chosen if row not in pair.history]


def _queries(text: str) -> list[str]:
    """The searches of an answer, none where it cannot be read."""
    try:
        return list(parse(text, TRAINED["queries"])[0].queries)  # type: ignore[attr-defined]
    except BadAnswer:
        return []
