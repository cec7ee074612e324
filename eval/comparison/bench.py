"""The bench: ranks cases with the code that serves requests, and with the baselines."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.ranking.candidates import Fusion, fuse_lists
from agent.ranking.fusion import Candidate, fuse
from agent.ranking.learned_fusion import Learned
from agent.results import Interests
from agent.retrieval.channels import CHANNELS, MODEL_CHANNELS, Batch, Request, retrieve
from agent.retrieval.signals import Signals
from agent.retrieval.sources import Sources
from eval.comparison.arms import RANK, base_of, left_out, parts
from eval.comparison.baselines import BASELINES, baseline_scores
from eval.data.cases import Case
from eval.fitting.signals import batches
from store import Hit
from store.sparse import highest

BUDGET = 100
"""Items that every arm may rank for a case."""
JOINING = 0.3
"""Weight in an arm with `base` of a model's channel, and share of its reranking, that the settings leave off."""
DEPTH = "depth"
"""The parameter of dense+queries and dense+named: how many first places of the model's channel count."""

Lists = Sequence[Sequence[str]]
"""For each case the ids of an arm, best first."""


def request_of(case: Case, repeats: bool, interests: Interests | None = None) -> Request:
    """Return the request that asks for a case's targets, with a model's answer about its history."""
    excluded = () if repeats else case.excluded
    if interests is None:
        return Request(history=case.known, exclude=excluded)
    latest = interests.latest
    return Request(case.known, None, interests.queries[:latest], interests.queries[latest:], interests.named, excluded)


def ids_of(lists: Sequence[Sequence[Candidate]]) -> list[list[str]]:
    """Return the ids of each case's candidates."""
    return [[candidate.id for candidate in own] for own in lists]


@dataclass(frozen=True)
class Bench:
    """What arms rank with.

    Args:
        sources: fitted on events before the cut.
        fusion: how `base` is fused: as in use.
        baselines: parameters of baselines and of arms that tuning found.
        repeats: whether history items may come back.
        on: the model's channels (and RANK) that `full` holds.
        without: learned fusion refitted without a channel, by channel.
    """

    sources: Sources
    fusion: Fusion
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    repeats: bool = False
    on: Sequence[str] = ()
    without: Mapping[str, Learned] = field(default_factory=dict)

    @property
    def signals(self) -> Signals:
        """The signals of the sources."""
        assert self.sources.signals is not None  # noqa: S101  see `fit_sources`
        return self.sources.signals

    def candidates(
        self,
        arms: Sequence[str],
        cases: Sequence[Case],
        interests: Sequence[Interests] | None = None,
        given: Mapping[str, Lists] | None = None,
        k: int = BUDGET,
    ) -> dict[str, list[list[Candidate]]]:
        """Return each arm's k best candidates for each case, before the model reranks.

        Args:
            arms: names; each is one of `eval.comparison.arms`.
            cases: a batch of cases.
            interests: a model's answer for each case, for arms with its channels.
            given: lists of parts that are ranked elsewhere (dialogues), by part.
            k: how many.
        """
        given = given or {}
        plans = {arm: tuple(part for part in parts(arm, self.on) if part != RANK) for arm in arms}
        requests = [
            request_of(case, self.repeats, interests[row] if interests else None) for row, case in enumerate(cases)
        ]
        fusions = {
            arm: self._fusion(plan) for arm, plan in plans.items() if base_of(plan) and base_of(plan) not in given
        }
        batch = Batch(self.sources, requests, self._channels(plans.values(), fusions.values()))
        lists = retrieve(batch)
        baselines = {part for plan in plans.values() for part in plan if part in BASELINES}
        ranked: dict[str, Sequence[Sequence[Hit]]] = {**lists}
        ranked |= {name: self._baseline(name, batch) for name in baselines}
        ranked |= {part: [[Hit(id, 0.0) for id in own] for own in of_all] for part, of_all in given.items()}
        found = {}
        for arm, plan in plans.items():
            others = [part for part in plan if part in BASELINES or part in given]
            if arm in fusions:
                candidates = fuse_lists(batch, lists, fusions[arm], k).candidates
                if others:  # a baseline joins by its rank
                    own = {"base": [[Hit(c.id, c.score) for c in of_case] for of_case in candidates]}
                    candidates = self.by_rank(own | {part: ranked[part] for part in others}, k)
            else:
                candidates = self.by_rank({part: ranked[part] for part in plan}, k)
            found[arm] = [of_case[:k] for of_case in candidates]
        return found

    def rank(
        self, arms: Sequence[str], cases: Sequence[Case], interests: Sequence[Interests] | None = None, k: int = BUDGET
    ) -> dict[str, list[list[str]]]:
        """Return the ids of `candidates`, for any number of cases.

        Args:
            arms: names.
            cases: the cases.
            interests: a model's answer for each case, for arms with its channels.
            k: how many.
        """
        found: dict[str, list[list[str]]] = {arm: [] for arm in arms}
        for at in batches(len(cases)):
            for arm, own in self.candidates(arms, cases[at], interests[at] if interests else None, k=k).items():
                found[arm] += ids_of(own)
        return found

    def shares(self, plan: Collection[str]) -> dict[str, float]:
        """Return the weights by which the lists of these parts are fused by rank."""
        if base_of(list(plan)) is None:
            found = self.baselines.get("+".join(sorted(plan)), {})
            return {part: found.get(part, 1.0) for part in plan}
        return {part: 1.0 if left_out(part) is not None else JOINING for part in plan}

    def _fusion(self, plan: Sequence[str]) -> Fusion:
        """How `base`, or `base-x`, is fused with the model's channels of the plan."""
        out = left_out(base_of(plan) or "base") or ""
        weights = dict(self.fusion.weights)
        for channel in MODEL_CHANNELS:
            weights[channel] = (weights.get(channel, 0.0) or JOINING) if channel in plan else 0.0
        if out:
            weights[out] = 0.0
        learned = self.without[out] if out and self.fusion.learned else self.fusion.learned
        return replace(self.fusion, weights=weights, learned=learned, without=out)

    def _channels(self, plans: Collection[Sequence[str]], fusions: Collection[Fusion]) -> set[str]:
        wanted = {part for plan in plans for part in plan if part in CHANNELS}
        for fusion in fusions:
            for with_history in (True, False):
                wanted |= set(fusion.weights_of(with_text=False, with_history=with_history)) & set(CHANNELS)
        return wanted

    def _baseline(self, name: str, batch: Batch) -> list[list[Hit]]:
        ids = self.sources.snapshot.ids
        scores = baseline_scores(name, self.signals, batch.histories, self.baselines.get(name, {}))
        scores = np.where(batch.allowed, scores, 0)
        # An item that an arm says nothing of is not ranked: a list padded with the catalog's first items would measure those.
        return [
            [Hit(ids[at], float(own[at])) for at in rows]
            for own, rows in zip(scores, highest(scores, BUDGET), strict=True)
        ]

    def by_rank(self, lists: Mapping[str, Sequence[Sequence[Hit]]], k: int) -> list[list[Candidate]]:
        """Fuse lists by their shares, each cut to the k first or, in an arm of a model's channel, as tuning found."""
        found = self.baselines.get("+".join(sorted(lists)), {})
        depth = {part: int(found.get(DEPTH, k)) if part in MODEL_CHANNELS else k for part in lists}
        shares = self.shares(lists)
        n = len(next(iter(lists.values())))
        return [fuse({part: own[row][: depth[part]] for part, own in lists.items()}, shares)[:k] for row in range(n)]
