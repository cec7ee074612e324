"""The arms of a comparison: ways to rank the catalog for a history, from one signal to everything fused.

dense, queries, ...   one channel, or one baseline
base                  everything fused, no model call
full, full-x          base with the model's channels and ranking, as far as tuning left them on; the same without x
a+b                   fused by reciprocal ranks: equally, dense+queries and dense+named by the weight and the first places of the
                      channel that tuning found, beside base by the weights in force
a+rank                the first of a ranked by the model
any-retriever         the same with the encoder as it was before `evoke train retriever`
any-adapter           the same with the language model as it was before `evoke train queries` and `evoke train rank`
any-training          the same with both as they were
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.ranking.fusion import fuse
from agent.ranking.learned_fusion import Learned
from agent.ranking.stacking import MODEL_CHANNELS, Brought, Joined
from agent.retrieval.signals import Signals
from eval.comparison.baselines import FROM_SIGNALS, Scores, single_scores
from eval.errors import EvalError
from eval.fitting.ablation import without
from store import Hit
from store.snapshot import Snapshot
from store.sparse import highest

BUDGET = 100
"""Items that every arm may rank for a case."""
CHANNELS = ("queries", "named", "dense", "collaborative", "lexical", "popular")
BASELINES = ("last-item", "mean-history", "item-knn", "ease", "star", "dialogue", "mentioned")
MODEL = MODEL_CHANNELS
"""What a language model writes; all else is ranked without one."""
FUSED = ("dense", "collaborative", "lexical", "popular")
"""What `base` fuses by rank where learned fusion is off."""
DEFAULT = (
    "base",
    "dense",
    "collaborative",
    "lexical",
    "popular",
    "last-item",
    "mean-history",
    "item-knn",
    "ease",
    "star",
)
RANK = "rank"
"""The part of an arm that says that the model ranks what the others bring."""
TRAINED = ("retriever", "adapter", "training")
"""What training taught, and an arm does without by its ending."""
JOINING = 0.3
"""Weight beside `base` of a model's channel, and share of its ranking, that tuning switched off, where an arm asks for it all the
same."""

DEPTH = "depth"
"""The parameter of dense+queries and dense+named that says how many first places of the model's channel count."""

Lists = list[list[int]]
Parts = tuple[str, ...]
Given = Mapping[tuple[str, Parts], Lists]
"""Lists that are at hand: by what they are, and by the parts of the model's answer that were asked for together."""


def untaught(arm: str) -> tuple[str, str]:
    """The arm without its ending, and what of TRAINED it does without ("" where nothing)."""
    whole, _, out = arm.rpartition("-")
    return (whole, out) if out in TRAINED else (arm, "")


def parts(arm: str, on: Sequence[str] = MODEL) -> Parts:
    """The single arms that an arm fuses, where the model's channels `on` are on; the arm alone where it fuses none.

    "base-x" is base without channel x; what training taught is no part. Raises EvalError for an unknown arm.
    """
    found: list[str] = []
    for part in untaught(arm)[0].split("+"):
        whole, _, out = part.partition("-")
        if part == "full" or (whole == "full" and out in (*CHANNELS, RANK)):
            found += ["base" if out in ("", *MODEL, RANK) else f"base-{out}", *(c for c in on if c != out)]
        elif part in {*CHANNELS, *BASELINES, "base"} or (part == RANK and found):
            found.append(part)
        else:
            known = ", ".join((*CHANNELS, *BASELINES, "base", "full"))
            raise EvalError(
                f'there is no arm "{part}"; there are {known}; a+b fuses two, full-x leaves x out, a+rank ranks, and '
                "-retriever, -adapter or -training at the end of a whole arm does without what training taught"
            )
    return tuple(sorted(dict.fromkeys(found), key=lambda single: single == RANK))


def asked_parts(singles: Sequence[str]) -> Parts:
    """What a model is asked to write for these single arms, nothing where none of them needs one."""
    return tuple(part for part in MODEL if part in singles)


@dataclass(frozen=True)
class Bench:
    """What arms rank with: signals fitted before the cut, and what tuning found (its own fitting included).

    `on` are the model's channels that `full` uses; `without` holds learned fusion refitted without a channel. `joining` is what
    joins to base the model's channels that it was taught to read; others join by weight.
    """

    signals: Signals
    learned: Learned | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    repeats: bool = False
    on: Sequence[str] = ()
    without: Mapping[str, Learned] = field(default_factory=dict)
    joining: Joined | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The catalog whose rows are ranked."""
        return self.signals.snapshot

    def rank(
        self, arms: Sequence[str], histories: Sequence[np.ndarray], k: int, given: Given | None = None
    ) -> dict[str, Lists]:
        """For each arm the k best snapshot rows of each history, before the model ranks; the signals are computed once for all.

        `given` holds the lists of the model's channels, and those that take the place of others.
        """
        given = given or {}
        plans = {arm: tuple(single for single in parts(arm, self.on) if single != RANK) for arm in arms}
        lists = {single: found for (single, asked), found in given.items() if not asked}
        learned = {arm: base for arm, plan in plans.items() if (base := self.joined_to(plan)) and base not in lists}
        missing = {s for arm, plan in plans.items() if arm not in learned for s in plan} - lists.keys() - set(MODEL)
        lists |= self.singles(missing, histories, k)
        ranked = {}
        for arm, plan in plans.items():
            asked = asked_parts(plan)
            if arm in learned:
                brought = {channel: given[channel, asked] for channel in asked}
                ranked[arm] = self._joined(learned[arm], brought, histories, k)
                continue
            own = {single: given[single, asked] if single in MODEL else lists[single] for single in plan}
            ranked[arm] = self.by_weight(own, k) if len(own) > 1 else own[plan[0]]
        return ranked

    def weighs(self, plan: Parts) -> bool:
        """Whether what a model writes joins base by its weight in this plan."""
        return any(s.startswith("base") for s in plan) and bool(asked_parts(plan)) and not self.joined_to(plan)

    def joined_to(self, plan: Parts) -> str | None:
        """The base of a plan that learned joining serves: a base and exactly the channels that it was taught to read."""
        bases = [single for single in plan if single not in MODEL]
        if self.learned is None or self.joining is None or not self.joining.reads(plan):
            return None
        return bases[0] if len(bases) == 1 and bases[0].startswith("base") else None

    def _joined(self, base: str, brought: Brought, histories: Sequence[np.ndarray], k: int) -> Lists:
        assert self.joining is not None  # noqa: S101  see joined_to
        learned, signals = self._learned(base)
        ranked = self.joining.rank(learned, signals, histories, brought, k, repeats=self.repeats)
        return [[row for row, _ in best] for best in ranked]

    def _learned(self, base: str) -> tuple[Learned, Signals]:
        """What ranks "base" or "base-x", where fusion is learned."""
        assert self.learned is not None  # noqa: S101  the callers ask first
        out = _left_out(base)
        return (self.without[out], without(self.signals, out)) if out else (self.learned, self.signals)

    def singles(self, wanted: set[str], histories: Sequence[np.ndarray], k: int) -> dict[str, Lists]:
        """The lists of single arms that call no model, "base" and "base-x" among them."""
        bases = {single for single in wanted if single.startswith("base")}
        singles = wanted - bases
        if bases and self.learned is None:
            singles = singles | set(FUSED)
        scores = self.signals.scores(histories) if singles & FROM_SIGNALS or "base" in bases else {}
        lists = {arm: self._top(self._scores(arm, scores, histories), histories, k) for arm in singles}
        for base in bases:
            out = _left_out(base)
            if self.learned is None:
                lists[base] = self.fused({c: lists[c] for c in FUSED if c != out}, self.weights, k)
            else:
                learned, signals = self._learned(base)
                ranked = learned.rank(signals, histories, k, repeats=self.repeats, scores=None if out else scores)
                lists[base] = [[row for row, _ in best] for best in ranked]
        return lists

    def by_weight(self, lists: Mapping[str, Lists], k: int) -> Lists:
        """What an arm `a+b` fuses: all equally, a model's channel beside dense by what tuning found for that arm, and beside base
        what joins it by its weight, as the recommender does."""
        return self.fused(self.cut(lists, k), self.shares(lists), k)

    def cut(self, lists: Mapping[str, Lists], k: int) -> dict[str, Lists]:
        """The lists of an arm `a+b`, of a model's channel as many of the first rows as tuning found for that arm."""
        depth = int(self._found(lists).get(DEPTH, k))
        return {s: [row[:depth] for row in own] if s in MODEL else own for s, own in lists.items()}

    def shares(self, singles: Collection[str]) -> dict[str, float]:
        """The weights by which the lists of these single arms are fused."""
        if not any(single.startswith("base") for single in singles):
            found = self._found(singles)
            return {single: found.get(single, 1.0) for single in singles}
        return {s: 1.0 if s.startswith("base") else self.weights.get(s, 0.0) or JOINING for s in singles}

    def _found(self, singles: Collection[str]) -> Mapping[str, float]:
        """What tuning found for the arm that fuses these."""
        return self.baselines.get("+".join(sorted(singles)), {})

    @staticmethod
    def fused(lists: Mapping[str, Lists], weights: Mapping[str, float], k: int) -> Lists:
        """Reciprocal ranks of these lists by these weights (1 where none is given)."""
        by = {name: weights.get(name, 1.0) for name in lists}
        fused = []
        for row in range(len(next(iter(lists.values())))):
            found = {name: [Hit(str(item), 0.0) for item in own[row]] for name, own in lists.items()}
            fused.append([int(c.id) for c in fuse(found, by)[:k]])
        return fused

    def _scores(self, arm: str, scores: Scores, histories: Sequence[np.ndarray]) -> np.ndarray:
        return single_scores(arm, self.signals, scores, histories, self.baselines.get(arm, {}))

    def _top(self, scores: np.ndarray, histories: Sequence[np.ndarray], k: int) -> Lists:
        hidden = self.signals.snapshot.hidden
        may = np.array(scores)  # an arm may hand out an array of the signals
        if hidden.any():
            may[:, hidden] = 0
        if not self.repeats:
            for row, history in enumerate(histories):
                may[row, history] = 0
        # What an arm says nothing of is not ranked: a list padded with the first rows of the catalog would measure those.
        return [items.tolist() for items in highest(may, k)]


def _left_out(base: str) -> str:
    """The channel that "base-x" does without, "" for "base"."""
    return base.removeprefix("base").removeprefix("-")
