"""The searches of tuning that call no model: parameters of baselines, channel weights, the trees of learned fusion."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agent.ranking.candidates import Fusion
from agent.ranking.features import Candidates
from agent.ranking.fusion import fuse
from agent.ranking.learned_fusion import Learned
from agent.settings import Settings
from eval import metrics
from eval.comparison.arms import MODEL_FREE
from eval.comparison.baselines import PARAMETERS
from eval.comparison.bench import BUDGET, Bench, ids_of
from eval.data.cases import Cases
from eval.tuning.objective import Say, mean_goal, quality_of_scores, retrieve_all, values

TREES: Sequence[dict[str, Any]] = (
    {"num_leaves": 15, "rounds": 200},
    {"num_leaves": 31, "rounds": 300},
)
WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0)
"""Values that are tried for each channel weight."""
MEASURE = "ndcg@10"
"""The measure that decides between parameters of baselines."""


def parameters(bench: Bench, name: str, cases: Cases, say: Say) -> dict[str, float]:
    """Return the parameters of one baseline with the best nDCG@10, of all combinations.

    Args:
        bench: what it ranks with.
        name: the baseline.
        cases: validation cases.
        say: called with a line for the result.
    """
    tried = []
    for found in itertools.product(*PARAMETERS[name].values()):
        given = dict(zip(PARAMETERS[name], found, strict=True))
        lists = replace(bench, baselines={name: given}).rank([name], cases.cases)[name]
        tried.append((metrics.means(values(cases.cases, lists))[MEASURE], given))
    best = max(tried, key=lambda entry: entry[0])
    say(f"{name}: {', '.join(f'{k} {v:g}' for k, v in best[1].items())} ({MEASURE} {best[0]:.4f})")
    return best[1]


def channel_weights(bench: Bench, cases: Cases, say: Say) -> tuple[dict[str, float], dict[str, float]]:
    """Return the weights of the channels in rank fusion, searched one channel at a time, and the quality that they give."""
    lists = retrieve_all(replace(bench, fusion=Fusion({})), MODEL_FREE, cases.cases)

    def quality(weights: Mapping[str, float]) -> dict[str, float]:
        fused = [fuse({c: own[row] for c, own in lists.items()}, weights)[:BUDGET] for row in range(len(cases))]
        return metrics.means(values(cases.cases, ids_of(fused)))

    defaults = Settings.model_fields["weights"].get_default(call_default_factory=True)
    weights = {channel: defaults[channel] for channel in MODEL_FREE}
    best = quality(weights)
    for channel in ("dense", "lexical", "popular"):
        for weight in WEIGHTS:
            found = quality(tried := weights | {channel: weight})
            if mean_goal(found) > mean_goal(best):
                weights, best = tried, found
    say(f"weights {weights}: recall@100 {best['recall@100']:.4f}, nDCG@10 {best['ndcg@10']:.4f}")
    return weights, best


def best_trees(
    lessons: tuple[Candidates, np.ndarray], candidates: Candidates, chosen: np.ndarray, cases: Cases, say: Say
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the trees (of TREES) that rank the cases' candidates best (`mean_goal`), and their quality.

    Args:
        lessons: what they learn from: candidates, and which were chosen.
        candidates: the cases' candidates.
        chosen: (r,) bool, which of these are targets.
        cases: validation cases.
        say: called with a line for each.
    """
    tried = []
    for trees in TREES:
        scores = Learned.fit(*lessons, seeds=(0,), **trees).scores(candidates)
        quality = quality_of_scores(candidates, chosen, scores, cases)
        say(f"learned fusion {trees}: recall@100 {quality['recall@100']:.4f}, nDCG@10 {quality['ndcg@10']:.4f}")
        tried.append((dict(trees), quality))
    return max(tried, key=lambda entry: mean_goal(entry[1]))
