"""Whether the stages that join `base` pay: the model's channels, diversity, ranking. Judged on some validation cases, whose `base`
lists come from a fusion that has not seen them.

What costs a call of a model is switched on only where it gains more than luck gives to one useless stage in twenty: the best of
many tries is better than none by chance alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.llm.adapters import Adapter
from agent.ranking.fusion import Candidate, fuse, spread
from agent.ranking.learned_fusion import Learned
from agent.ranking.stacking import Joined
from agent.settings import Settings
from eval import metrics
from eval.comparison.arms import BUDGET, DEPTH, MODEL, Bench, Lists
from eval.comparison.llm_cache import Progress
from eval.comparison.llm_channels import heard
from eval.data.cases import Case
from eval.tuning.grid_search import Say, goal, measures, ranked, values
from eval.tuning.stacking import LEAST_USERS, learned_joining
from store import Catalog, Hit

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
DIVERSITIES = (0.05, 0.1, 0.2, 0.3)
BESIDE_DENSE = (1.0, 0.6, 0.3, 2.0)
DEPTHS = (BUDGET, 40, 20, 10)
"""Weights of a model's channel beside dense, and how many of its first places count; of equals the first are taken."""
SURE = 1.645
"""Standard errors that a gain must pass (one-sided p < .05), over LEAST_USERS users at least: fewer tell nothing."""
PLACES = 30
"""Places that are spread, as for a request of ten."""


@dataclass(frozen=True)
class Judge:
    """Cases with the lists that stages join, and the weights of those lists."""

    cases: Sequence[Case]
    lists: Mapping[str, Lists]
    weights: Mapping[str, float]
    bench: Bench
    say: Say

    def first(self, n: int) -> Judge:
        """The same for the first n cases."""
        return replace(self, cases=self.cases[:n], lists={name: own[:n] for name, own in self.lists.items()})

    def beside(self, lists: Mapping[str, Lists], weights: Mapping[str, float]) -> Judge:
        """The same with these lists among the fused ones."""
        return replace(self, lists={**self.lists, **lists}, weights={**self.weights, **weights})

    def ranked(self, lists: Lists) -> Judge:
        """The same with these lists in the place of all fused ones."""
        return replace(self, lists={"base": lists}, weights={"base": 1.0})

    def goal(self) -> np.ndarray:
        """What joining goes by, of each case."""
        return goal(self.quality())

    def fused(self) -> list[list[Candidate]]:
        """Each case's fused candidates."""
        ids = self.bench.snapshot.ids
        fused = []
        for row in range(len(self.cases)):
            found = {name: [Hit(ids[item], 0.0) for item in own[row]] for name, own in self.lists.items()}
            fused.append(fuse(found, self.weights)[:BUDGET])
        return fused

    def quality(self, fused: Sequence[Sequence[Candidate]] | None = None) -> dict[str, np.ndarray]:
        """The measures of each case's list."""
        rows = self.bench.snapshot.rows
        lists = [[rows[candidate.id] for candidate in own] for own in (self.fused() if fused is None else fused)]
        return values(self.cases, lists, self.bench.snapshot.ids)

    def recall(self, lists: Lists) -> np.ndarray:
        """Recall@50 of each case's list of snapshot rows."""
        ids = self.bench.snapshot.ids
        return metrics.per_case(self.cases, [[ids[row] for row in rows] for rows in lists], ks=(50,))["recall@50"]

    def surely(self, gain: np.ndarray) -> float:
        """What a gain, (n_cases,), is at least, but for luck; users are what varies."""
        _, code = np.unique([case.user for case in self.cases], return_inverse=True)
        off = np.bincount(code, weights=gain - gain.mean())
        return float(gain.mean() - SURE * np.sqrt((off**2).sum()) / len(gain))

    def pays(self, gain: np.ndarray) -> bool:
        """Whether a gain, (n_cases,), is more than luck."""
        return len({case.user for case in self.cases}) >= LEAST_USERS and self.surely(gain) > 0


@dataclass(frozen=True)
class Channels:
    """What was found of the model's channels: `settings`, parameters of the `arms` dense+queries and dense+named, the evidence,
    learned joining where it is on, and the judge with what the channels bring joined to its lists."""

    settings: dict[str, Any]
    arms: dict[str, dict[str, float]]
    evidence: dict[str, Any]
    judge: Judge
    joined: Joined | None


def model_channels(
    judge: Judge,
    catalog: Catalog,
    settings: Settings,
    adapter: Adapter | None,
    kept: Path,
    progress: Progress,
    seconds: float,
    first: Learned | None = None,
) -> Channels:
    """Whether and how the model's channels join. Raises ModelError without a model.

    The cases are asked about in their order until the time is up. `first` is learned fusion, where it is on; it has not seen them.
    """
    said = heard(
        judge.cases, MODEL, judge.bench, catalog, BUDGET,
        settings=settings, kept=kept, adapter=adapter, progress=progress, seconds=seconds,
    )  # fmt: skip
    judge = judge.first(len(said))
    weights, tried = _weights(judge, said.lists)
    arms, beside = _beside_dense(judge, said.lists)
    by_weight = judge.beside(said.lists, weights)
    evidence: dict[str, Any] = {
        "model": said.model, "cases": len(said), "said": said.said, "tried": tried, "beside dense": beside,
        "seconds a case": float(np.mean(said.ms)) / 1000,
        "tokens a case": float((said.tokens_in + said.tokens_out).mean()),
        "without": measures(judge.quality()), "with": measures(by_weight.quality()),
    }  # fmt: skip
    told = ", ".join(f"{channel} {weight:g}" for channel, weight in weights.items())
    judge.say(f"model channels on {len(said)} validation cases: weights {told}; {said.note()}")
    joined = None
    if first:
        joined, learned, evidence["learned joining"] = learned_joining(judge, said.lists, first, by_weight.goal())
    if joined:
        judge.say(f"learned joining of {' and '.join(joined.channels)} is better than weights, and on")
        # A weight above 0 has the model asked; it counts where learned joining cannot serve, a model that is down among it.
        weights = {c: max(weights[c], WEIGHTS[1]) if c in joined.channels else 0.0 for c in MODEL}
        return Channels({"weights": weights}, arms, evidence, learned, joined)
    return Channels({"weights": weights}, arms, evidence, by_weight, None)


def _weights(judge: Judge, lists: Mapping[str, Lists]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Weights of the model's channels, each switched on where it pays beside what is on; and all that was tried."""
    quality: dict[tuple[float, ...], dict[str, np.ndarray]] = {}
    for pair in itertools.product(WEIGHTS, WEIGHTS):
        quality[pair] = judge.beside(lists, dict(zip(MODEL, pair, strict=True))).quality()
    goals = {pair: goal(found) for pair, found in quality.items()}
    best = (0.0, 0.0)
    for at in (0, 1, 0, 1):
        off = (0.0, best[1]) if at == 0 else (best[0], 0.0)
        others = [(weight, best[1]) if at == 0 else (best[0], weight) for weight in WEIGHTS]
        top = max(others, key=lambda pair: goals[pair].mean())
        best = top if judge.pays(goals[top] - goals[off]) else off
    tried = [dict(zip(MODEL, pair, strict=True)) | measures(found) for pair, found in quality.items()]
    return dict(zip(MODEL, best, strict=True)), tried


def _beside_dense(
    judge: Judge, lists: Mapping[str, Lists]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The weight and depth of each of the model's channels in its arm with dense, those whose gain in recall@50 is surest; and the
    recall that each gave."""
    dense = ranked(judge.bench, ["dense"], judge.cases)["dense"]
    alone = judge.recall(dense)
    arms, tried = {}, {}
    for channel, own in lists.items():
        found = {}
        for weight, depth in itertools.product(BESIDE_DENSE, DEPTHS):
            bench = replace(judge.bench, baselines={f"dense+{channel}": {channel: weight, DEPTH: depth}})
            found[weight, depth] = judge.recall(bench.by_weight({"dense": dense, channel: own}, BUDGET))
        weight, depth = max(found, key=lambda way: judge.surely(found[way] - alone))
        arms[f"dense+{channel}"] = {channel: weight, DEPTH: depth}
        tried[channel] = {f"{w:g} of {d}": round(float(recall.mean()), 5) for (w, d), recall in found.items()}
    return arms, tried


def diversity(judge: Judge) -> tuple[float, dict[str, dict[str, float]]]:
    """The most diversity that costs neither nDCG@10 nor recall@10 on these cases, and what each gave."""
    fused = judge.fused()
    spreads = {d: [spread(own, judge.bench.snapshot, d, PLACES) for own in fused] for d in (0.0, *DIVERSITIES)}
    quality = {d: judge.quality(lists) for d, lists in spreads.items()}
    first = quality[0.0]
    costless = [
        d for d, own in quality.items() if all(own[m].mean() >= first[m].mean() for m in ("ndcg@10", "recall@10"))
    ]
    best = max(costless)
    return best, {f"{d:g}": measures(own) for d, own in quality.items()}
