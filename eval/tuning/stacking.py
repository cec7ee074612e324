"""Whether learned joining pays: the ranks in the model's channels beside the odds of learned fusion, cross-validated over users.

All of it on the few cases that a model was asked about. The first stage has not seen them, the second ranks each without having
seen its user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.ranking.features import Candidates
from agent.ranking.learned_fusion import Learned, best_of
from agent.ranking.stacking import MODEL_CHANNELS, Brought, Joined, beside, falling, log_odds, stacked
from eval.comparison.arms import BUDGET, Bench, Lists
from eval.data.cases import Case
from eval.fitting.signals import table_of
from eval.tuning.grid_search import goal, measures, values

if TYPE_CHECKING:
    from eval.tuning.llm_stages import Judge

KINDS: Sequence[dict[str, Any]] = tuple(
    {"num_leaves": leaves, "rounds": rounds, "feature_fraction": 0.7} for leaves, rounds in ((2, 100), (4, 60), (8, 60))
)
"""Small trees: there are at most a few hundred cases."""
SETS: Sequence[tuple[str, ...]] = (("queries",), ("named",), MODEL_CHANNELS)
LEAST_USERS = 10
"""Users something was found for: fewer teach nothing."""
FOLDS = 3


@dataclass(frozen=True, slots=True)
class Way:
    """One way to join: what it ranks for the cases, unseen, with the measures of each, and what to fit it with."""

    channels: tuple[str, ...]
    trees: Mapping[str, Any]
    lists: Lists
    quality: Mapping[str, np.ndarray]

    @property
    def goal(self) -> np.ndarray:
        """What is gone by, of each case."""
        return goal(self.quality)


@dataclass(frozen=True, slots=True)
class Unseen:
    """Trees fitted for folds of users: what they say of a case comes from those that have not seen its user."""

    fold_of: Mapping[str, int]
    models: Sequence[Learned]

    @classmethod
    def fit(
        cls, table: Candidates, chosen: np.ndarray, cases: Sequence[Case], start: np.ndarray, **trees: Any
    ) -> Unseen:
        """Fitted to the candidates of these cases; see `Learned.fit`."""
        users = sorted({case.user for case in cases})
        fold_of = dict(zip(users, np.random.default_rng(0).permutation(len(users)) % FOLDS, strict=True))
        folds = np.array([fold_of[case.user] for case in cases])[table.case]
        models = []
        for fold in range(FOLDS):
            inside = folds != fold
            models.append(Learned.fit(_some(table, inside), chosen[inside], seeds=(0,), start=start[inside], **trees))
        return cls(fold_of, models)

    def scores(self, table: Candidates, cases: Sequence[Case], start: np.ndarray) -> np.ndarray:
        """(r,) the score of each candidate of these cases, whose users are among those it was fitted for."""
        folds = np.array([self.fold_of[case.user] for case in cases])[table.case]
        scores = np.zeros(len(table.case))
        for fold, model in enumerate(self.models):
            own = folds == fold
            scores[own] = model.scores(_some(table, own), start[own])
        return scores


@dataclass(frozen=True, slots=True)
class Stack:
    """The candidates of some cases as the second stage reads them, with the log-odds that it starts from."""

    cases: Sequence[Case]
    channels: tuple[str, ...]
    table: Candidates
    start: np.ndarray
    chosen: np.ndarray

    @classmethod
    def of(cls, cases: Sequence[Case], lists: Brought, bench: Bench, first: Learned) -> Stack:
        """With these channels' lists, and odds from a first stage that has not seen the cases."""
        whole, chosen = table_of(cases, bench.signals, repeats=bench.repeats, beside=beside(lists))
        start = log_odds(first.scores(whole))
        return cls(cases, tuple(lists), stacked(whole, start, lists), start, chosen)

    @property
    def teaches(self) -> bool:
        """Whether enough users' targets are among the candidates."""
        return len({self.cases[case].user for case in self.table.case[self.chosen]}) >= LEAST_USERS

    def way(self, trees: Mapping[str, Any], ids: Sequence[str]) -> Way:
        """What a second stage of this kind ranks for the cases."""
        folds = Unseen.fit(self.table, self.chosen, self.cases, self.start, **self._whole(trees))
        scores = folds.scores(self.table, self.cases, self.start)
        lists = [[row for row, _ in best] for best in best_of(self.table, scores, len(self.cases), BUDGET)]
        return Way(self.channels, trees, lists, values(self.cases, lists, ids))

    def fitted(self, trees: Mapping[str, Any]) -> Joined:
        """The second stage of this kind, fitted to all the cases."""
        second = Learned.fit(self.table, self.chosen, start=self.start, **self._whole(trees))
        return Joined(second, self.channels)

    def _whole(self, trees: Mapping[str, Any]) -> dict[str, Any]:
        return {**trees, "monotone_constraints": falling(self.table.names)}


def learned_joining(
    judge: Judge, lists: Mapping[str, Lists], first: Learned, weighted: np.ndarray
) -> tuple[Joined | None, Judge, dict[str, Any]]:
    """The second stage where it pays beside base alone and is better than the best weights, whose goal is `weighted` for each case;
    the judge with what it ranks in the place of base, else as given; and the evidence.

    Both channels are read where that pays beside the better one of them.
    """
    ids = judge.bench.snapshot.ids
    stacks = {s: Stack.of(judge.cases, {c: lists[c] for c in s}, judge.bench, first) for s in SETS}
    evidence: dict[str, Any] = {"users": len({case.user for case in judge.cases}), "tried": []}
    ways = []
    for stack in stacks.values():
        tried = [stack.way(trees, ids) for trees in KINDS] if stack.teaches else []
        evidence["tried"] += [
            {"channels": list(way.channels), "trees": way.trees} | measures(way.quality) for way in tried
        ]
        ways += [max(tried, key=lambda way: way.goal.mean())] if tried else []
    if not ways:
        return None, judge, evidence
    best, before = None, judge.goal()
    for few in (True, False):
        more = [way for way in ways if (len(way.channels) == 1) == few]
        top = max(more, key=lambda way: way.goal.mean(), default=None)
        if top and judge.pays(top.goal - before):
            best, before = top, top.goal
    on = best is not None and bool(before.mean() > weighted.mean())
    evidence["on"] = on
    if best is None or not on:
        return None, judge, evidence
    evidence |= {"channels": list(best.channels), "trees": best.trees, "with": measures(best.quality)}
    return stacks[best.channels].fitted(best.trees), judge.ranked(best.lists), evidence


def _some(table: Candidates, rows: np.ndarray) -> Candidates:
    return Candidates(table.case[rows], table.item[rows], table.features[rows], table.names)
