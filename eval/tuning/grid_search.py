"""What tuning searches without a model: parameters of baselines, weights of channels, the trees of learned fusion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent.ranking.features import Candidates
from agent.ranking.learned_fusion import Learned
from eval import metrics
from eval.comparison.arms import BUDGET, FUSED, Bench, Lists
from eval.comparison.baselines import PARAMETERS
from eval.data.cases import Case, Cases
from eval.fitting.signals import batches, histories

TREES: Sequence[dict[str, Any]] = (
    {"num_leaves": 15, "rounds": 200},
    {"num_leaves": 31, "rounds": 300},
)
WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0)
START = {"dense": 0.6, "collaborative": 1.0, "lexical": 0.3, "popular": 0.1}
"""The weights that the search begins with, those of `Settings`."""

Say = Callable[[str], None]


def values(cases: Sequence[Case], lists: Lists, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """nDCG@10, recall@10 and recall@100 of each case's list of snapshot rows."""
    ranked = [[ids[row] for row in rows] for rows in lists]
    found = metrics.per_case(cases, ranked, ks=(10, 100))
    return {measure: found[measure] for measure in ("ndcg@10", "recall@10", "recall@100")}


def goal(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What joining base goes by, of each case: the first ten places and the candidates alike."""
    return values["ndcg@10"] + values["recall@100"]


def measures(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Their means over the cases, rounded as evidence is kept."""
    return {measure: round(float(own.mean()), 5) for measure, own in values.items()}


def ranked(bench: Bench, arms: Sequence[str], cases: Sequence[Case], k: int = BUDGET) -> dict[str, Lists]:
    """Each model-free arm's lists of k rows for all cases."""
    read = histories(cases, bench.signals.snapshot)
    lists: dict[str, Lists] = {arm: [] for arm in arms}
    for at in batches(len(read)):
        for arm, rows in bench.rank(arms, read[at], k).items():
            lists[arm] += rows
    return lists


def parameters(bench: Bench, arm: str, cases: Cases, measure: str, say: Say) -> dict[str, float]:
    """The parameters of one baseline that are best by the measure, of all combinations."""
    names = list(PARAMETERS[arm])
    tried = []
    for found in itertools.product(*PARAMETERS[arm].values()):
        given = dict(zip(names, found, strict=True))
        one = Bench(bench.signals, baselines={arm: given}, repeats=bench.repeats)
        lists = ranked(one, [arm], cases.cases)[arm]
        tried.append((metrics.means(values(cases.cases, lists, bench.signals.snapshot.ids))[measure], given))
    best = max(tried, key=lambda entry: entry[0])
    say(f"{arm}: {', '.join(f'{k} {v:g}' for k, v in best[1].items())} ({measure} {best[0]:.4f})")
    return best[1]


def channel_weights(bench: Bench, cases: Cases, say: Say) -> tuple[dict[str, float], dict[str, float]]:
    """Weights of the channels in reciprocal rank fusion, one at a time; and the quality they give."""
    ids = bench.signals.snapshot.ids
    lists = ranked(bench, FUSED, cases.cases)

    def quality(weights: Mapping[str, float]) -> dict[str, float]:
        return metrics.means(values(cases.cases, Bench.fused(lists, weights, BUDGET), ids))

    weights = dict(START)
    best = quality(weights)
    for channel in ("dense", "lexical", "popular"):
        for weight in WEIGHTS:
            found = quality(tried := weights | {channel: weight})
            if found["recall@100"] + found["ndcg@10"] > best["recall@100"] + best["ndcg@10"]:
                weights, best = tried, found
    say(f"weights {weights}: recall@100 {best['recall@100']:.4f}, nDCG@10 {best['ndcg@10']:.4f}")
    return weights, best


def best_trees(
    taught: tuple[Candidates, np.ndarray],
    candidates: Candidates,
    chosen: np.ndarray,
    cases: Cases,
    measure: str,
    say: Say,
) -> tuple[dict[str, Any], dict[str, float]]:
    """The trees (of TREES) that, taught these lessons, rank the cases' candidates best by the measure, and their quality."""
    tried = []
    for trees in TREES:
        quality = _of_scores(candidates, chosen, Learned.fit(*taught, seeds=(0,), **trees).scores(candidates), cases)
        say(f"learned fusion {trees}: recall@100 {quality['recall@100']:.4f}, nDCG@10 {quality['ndcg@10']:.4f}")
        tried.append((quality[measure], dict(trees), quality))
    _, trees, quality = max(tried, key=lambda entry: entry[0])
    return trees, quality


def _of_scores(table: Candidates, chosen: np.ndarray, scores: np.ndarray, cases: Cases) -> dict[str, float]:
    """Measures of candidates ordered by score, without writing out lists; each case against all its targets."""
    n = len(cases)
    order = np.lexsort((table.item, -scores, table.case))
    case, hit = table.case[order], chosen[order]
    place = np.arange(len(case)) - np.searchsorted(case, np.arange(n))[case]
    targets = np.array([len(c.targets) for c in cases.cases])
    gain = np.where(place < 10, 1 / np.log2(place + 2), 0) * hit
    ideal = np.cumsum(1 / np.log2(np.arange(2, 12)))[np.minimum(targets, 10) - 1]
    found = {f"recall@{k}": np.bincount(case, weights=hit * (place < k), minlength=n) / targets for k in (10, 100)}
    of_case = {"ndcg@10": np.bincount(case, weights=gain, minlength=n) / ideal} | found
    return {measure: float(value.mean()) for measure, value in of_case.items()}
