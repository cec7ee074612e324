"""The objective of tuning, and the judge of additions to `base`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent.ranking.candidates import BASE, with_learned
from agent.ranking.diversity import diversify
from agent.ranking.features import Candidates
from agent.ranking.fusion import Candidate, fuse
from agent.results import Interests
from agent.retrieval.channels import Batch, retrieve
from eval import metrics
from eval.comparison.arms import MODEL_FREE
from eval.comparison.bench import BUDGET, Bench, Lists, ids_of, request_of
from eval.data.cases import Case, Cases
from eval.fitting.signals import batches
from eval.significance import pays
from store import Hit

Say = Callable[[str], None]
"""Called with a line for each finished step."""
HitLists = Mapping[str, Sequence[Sequence[Hit]]]
"""By channel, the list of each case."""


def values(cases: Sequence[Case], lists: Lists) -> dict[str, np.ndarray]:
    """Return nDCG@10, recall@10 and recall@100 of each case's list of ids."""
    found = metrics.per_case(cases, lists, ks=(10, 100))
    return {measure: found[measure] for measure in ("ndcg@10", "recall@10", "recall@100")}


def goal(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the objective of each case, nDCG@10 + recall@100: the first places and the candidates alike."""
    return values["ndcg@10"] + values["recall@100"]


def mean_goal(means: Mapping[str, float]) -> float:
    """Return the objective of measures that are means over cases: see `goal`."""
    return means["ndcg@10"] + means["recall@100"]


def measures(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the means over the cases, rounded as evidence is kept."""
    return {measure: round(float(own.mean()), 5) for measure, own in values.items()}


def retrieve_all(
    bench: Bench, channels: Sequence[str], cases: Sequence[Case], interests: Sequence[Interests] | None = None
) -> dict[str, list[Sequence[Hit]]]:
    """Return the list of each channel for all cases, and that of learned fusion where it is on.

    Args:
        bench: what they are retrieved with.
        channels: their names.
        cases: the cases.
        interests: a model's answer for each case, for its channels.
    """
    lists: dict[str, list[Sequence[Hit]]] = {}
    for at in batches(len(cases)):
        own = interests[at] if interests else [None] * len(cases[at])
        requests = [request_of(case, bench.repeats, said) for case, said in zip(cases[at], own, strict=True)]
        batch = Batch(bench.sources, requests, channels)
        found, _, _ = with_learned(batch, retrieve(batch), bench.fusion)
        for channel in dict.fromkeys(name for of_case in found for name in of_case):
            lists.setdefault(channel, []).extend(of_case.get(channel, []) for of_case in found)
    return lists


def judge_base(bench: Bench, cases: Sequence[Case], weights: Mapping[str, float], say: Say) -> Judge:
    """Return the judge of additions to `base`.

    Args:
        bench: what the cases are ranked with; where it has learned fusion, that is `base`.
        cases: validation cases that learned fusion has not seen.
        weights: the weights of the channels, where there is no learned fusion.
        say: called with a line for each finding.
    """
    learned = bench.fusion.learned is not None
    lists = retrieve_all(bench, () if learned else MODEL_FREE, cases)
    return Judge(cases, lists, {BASE: 1.0} if learned else {c: weights[c] for c in MODEL_FREE}, bench, say)


def quality_of_scores(table: Candidates, chosen: np.ndarray, scores: np.ndarray, cases: Cases) -> dict[str, float]:
    """Return the measures of candidates ordered by score, without lists; each case against all its targets.

    Args:
        table: the candidates of all cases.
        chosen: (r,) bool, which of them are targets.
        scores: (r,) their scores.
        cases: the cases.
    """
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


@dataclass(frozen=True)
class Judge:
    """Cases with the lists that are fused for them: judges additions to these lists.

    Args:
        cases: validation cases; learned fusion has not seen them.
        lists: by channel, the list of each case.
        weights: the weights of these lists.
        bench: what they were ranked with.
        say: called with a line for each finding.
    """

    cases: Sequence[Case]
    lists: HitLists
    weights: Mapping[str, float]
    bench: Bench
    say: Say

    def first(self, n: int) -> Judge:
        """Return the judge of the first n cases."""
        return replace(self, cases=self.cases[:n], lists={name: own[:n] for name, own in self.lists.items()})

    def adding(self, lists: HitLists, weights: Mapping[str, float]) -> Judge:
        """Return the judge with these lists among the fused ones."""
        return replace(self, lists={**self.lists, **lists}, weights={**self.weights, **weights})

    def fused(self, diversity: float | None = None) -> list[list[Candidate]]:
        """Return each case's fused candidates; with `diversity` as they are served."""
        snapshot = self.bench.sources.snapshot
        found = []
        for row in range(len(self.cases)):
            candidates = fuse({name: own[row] for name, own in self.lists.items()}, self.weights)
            if diversity is not None:
                candidates = diversify(candidates, snapshot, diversity, 3 * BUDGET)
            found.append(candidates[:BUDGET])
        return found

    def quality(self, fused: Sequence[Sequence[Candidate]] | None = None) -> dict[str, np.ndarray]:
        """Return the measures of each case's list."""
        return values(self.cases, ids_of(self.fused() if fused is None else fused))

    def recall(self, lists: Lists) -> np.ndarray:
        """Return recall@50 of each case's list of ids."""
        return metrics.per_case(self.cases, lists, ks=(50,))["recall@50"]

    @property
    def users(self) -> list[str]:
        """The user of each case."""
        return [case.user for case in self.cases]

    def pays(self, gain: np.ndarray) -> bool:
        """Return whether a gain, (n_cases,), is significant (see `eval.significance.pays`)."""
        return pays(gain, self.users)
