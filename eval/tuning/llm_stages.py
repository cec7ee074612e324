"""Decide which stages that call a model to use on top of `base` (its channels, its reranking), and how much diversity is free.

A stage that costs a model call is switched on only if its gain is significant (one-sided, at the 5 % level), because the best of
many settings is better than none by chance alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agent.retrieval.channels import MODEL_CHANNELS
from eval.comparison.bench import BUDGET, DEPTH, Bench, ids_of
from eval.comparison.llm_cache import Asking
from eval.comparison.llm_channels import ask_model
from eval.comparison.rerank import blend_all, rerank_cases
from eval.significance import gain_p
from eval.tuning.objective import HitLists, Judge, goal, measures, retrieve_all

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
"""Weights of a model's channel that are tried."""
DIVERSITIES = (0.0, 0.05, 0.1, 0.2, 0.3)
WITH_DENSE = (1.0, 0.6, 0.3, 2.0)
DEPTHS = (BUDGET, 40, 20, 10)
"""Weights of a model's channel in its arm with dense, and how many of its first places count; among equals the first is taken."""
RANKED_CASES = 100
"""Cases that reranking is judged on."""
SHARES = (0.1, 0.2, 0.3, 0.5)
"""Shares of reranking in the score that are tried."""


@dataclass
class Added:
    """The findings about the stages that are added to `base`.

    Args:
        settings: settings, without the weights.
        weights: the weights of the model's channels; 0 for one that does not pay.
        arms: parameters of the arms dense+queries and dense+named.
        evidence: how all of this was chosen.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    arms: dict[str, dict[str, float]] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)


def model_channels(judge: Judge, asking: Asking) -> tuple[Added, Judge]:
    """Find the weights of the model's channels; return them, and the judge with the channels' lists among the fused ones.

    The judge's cases are asked about in their order until the time is up. Raises ModelError where no model answers.
    """
    answers = ask_model(judge.cases, judge.bench, asking)
    judge = judge.first(len(answers))
    found = retrieve_all(judge.bench, MODEL_CHANNELS, judge.cases, answers.interests)
    lists = {channel: found[channel] for channel in MODEL_CHANNELS}
    weights, tried = _weights(judge, lists)
    arms, with_dense = _with_dense(judge, lists)
    joined = judge.adding(lists, weights)
    ms, _, tokens_in, tokens_out = answers.cost.mean(axis=0)
    evidence: dict[str, Any] = {
        "model": answers.model, "cases": len(answers), "said": answers.said, "tried": tried, "with dense": with_dense,
        "seconds a case": float(ms) / 1000, "tokens a case": float(tokens_in + tokens_out),
        "without": measures(judge.quality()), "with": measures(joined.quality()),
    }  # fmt: skip
    shown = ", ".join(f"{channel} {weight:g}" for channel, weight in weights.items())
    judge.say(f"model channels on {len(answers)} validation cases: weights {shown}; {answers.note()}")
    return Added(weights=weights, arms=arms, evidence={"model channels": evidence}), joined


def reranking(judge: Judge, asking: Asking) -> tuple[float, dict[str, Any]]:
    """Return the share of the model's reranking in the score (0: off), and the evidence.

    At most RANKED_CASES of the judge's cases are asked about, until the time is up. Raises ModelError where no model answers.
    """
    judge = judge.first(RANKED_CASES)
    fused = judge.fused(asking.settings.diversity)
    found = rerank_cases(judge.cases, fused, judge.bench.sources.catalog, asking)
    judge, fused = judge.first(len(found.places)), fused[: len(found.places)]
    if not found.places:
        return 0.0, {"cases": 0}
    depth = asking.settings.rank_depth
    quality = {0.0: judge.quality(fused)["ndcg@10"]}
    for share in SHARES:
        quality[share] = judge.quality(blend_all(fused, found.places, share, depth))["ndcg@10"]
    best = max(SHARES, key=lambda share: quality[share].mean())
    on = judge.pays(quality[best] - quality[0.0])
    evidence = {
        "cases": len(found.places),
        "ndcg@10": {f"{share:g}": round(float(own.mean()), 5) for share, own in quality.items()},
        "seconds a case": float(found.cost[:, 0].mean()) / 1000,
        "not reranked": float(np.mean([not own for own in found.places])),
    }
    judge.say(
        f"reranking on {len(found.places)} validation cases: nDCG@10 {quality[0.0].mean():.4f} without, at best "
        f"{quality[best].mean():.4f} with a share of {best:g}: {'on' if on else 'off'}"
    )
    return best if on else 0.0, evidence


def diversity(judge: Judge) -> tuple[float, dict[str, dict[str, float]]]:
    """Return the highest diversity that costs neither nDCG@10 nor recall@10 on these cases, and the measures of each."""
    quality = {value: judge.quality(judge.fused(value)) for value in DIVERSITIES}
    first = quality[0.0]
    free = [d for d, own in quality.items() if all(own[m].mean() >= first[m].mean() for m in ("ndcg@10", "recall@10"))]
    return max(free), {f"{d:g}": measures(own) for d, own in quality.items()}


def _weights(judge: Judge, lists: HitLists) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the weights of the model's channels, each on if it pays on top of the other one; and all that was tried."""
    quality = {
        pair: judge.adding(lists, dict(zip(MODEL_CHANNELS, pair, strict=True))).quality()
        for pair in itertools.product(WEIGHTS, WEIGHTS)
    }
    goals = {pair: goal(found) for pair, found in quality.items()}
    best = (0.0, 0.0)
    for at in (0, 1, 0, 1):
        off = (0.0, best[1]) if at == 0 else (best[0], 0.0)
        others = [(weight, best[1]) if at == 0 else (best[0], weight) for weight in WEIGHTS]
        top = max(others, key=lambda pair: goals[pair].mean())
        best = top if judge.pays(goals[top] - goals[off]) else off
    tried = [dict(zip(MODEL_CHANNELS, pair, strict=True)) | measures(found) for pair, found in quality.items()]
    return dict(zip(MODEL_CHANNELS, best, strict=True)), tried


def _with_dense(judge: Judge, lists: HitLists) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return, for each of the model's channels in its arm with dense, the weight and depth with the most significant gain in
    recall@50; and the recall of all that were tried."""
    plain = replace(judge.bench, fusion=replace(judge.bench.fusion, learned=None))
    dense = retrieve_all(plain, ["dense"], judge.cases)["dense"]
    alone = judge.recall([[hit.id for hit in own[:BUDGET]] for own in dense])
    arms, tried = {}, {}
    for channel, own in lists.items():
        found: dict[tuple[float, int], np.ndarray] = {}
        for weight, depth in itertools.product(WITH_DENSE, DEPTHS):
            bench: Bench = replace(plain, baselines={f"dense+{channel}": {channel: weight, DEPTH: depth}})
            fused = bench.by_rank({"dense": dense, channel: own}, BUDGET)
            found[weight, depth] = judge.recall(ids_of(fused))
        weight, depth = min(found, key=lambda way: (gain_p(found[way] - alone, judge.users), -found[way].mean()))
        arms[f"dense+{channel}"] = {channel: weight, DEPTH: depth}
        tried[channel] = {f"{w:g} of {d}": round(float(recall.mean()), 5) for (w, d), recall in found.items()}
    return arms, tried
