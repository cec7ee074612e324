"""A race of prompt variants: all on few cases, the better half on twice as many, until one is left; and the test of its winner.

What counts is recall@100 of the arm `base+queries`, the model's queries joined to base by the weight in force: what a store
shows, so that a wording that finds only what base finds anyway gains nothing. On few cases many are level there; then recall@100
of `queries` alone decides, which moves with every query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ModelError
from agent.settings import Settings
from eval.comparison.bench import Bench, Lists
from eval.comparison.llm_channels import ask_model
from eval.data.cases import Case
from eval.errors import EvalError
from eval.metrics import per_case
from eval.progress import Progress
from eval.significance import compare, gain_p, pays
from eval.tuning.objective import Say, rank_all
from eval.tuning.prompts.variants import Variant, applied
from eval.tuning.resumable import Steps

FIRST = 16
"""Cases that every variant is scored on; each further round of a race doubles them."""


@dataclass(frozen=True, slots=True)
class Score:
    """Recall@100 of cases, one after another: of `base+queries` and of `queries` alone; the queries written, the model's seconds,
    and which model it was."""

    fused: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    queries: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0
    model: str = ""

    def __len__(self) -> int:
        return len(self.fused)

    def __add__(self, other: Score) -> Score:
        return Score(
            self.fused + other.fused,
            self.alone + other.alone,
            self.queries + other.queries,
            self.seconds + other.seconds,
            other.model,
        )

    def mean(self, n: int | None = None) -> tuple[float, float]:
        """What variants are ordered by: the means over the first `n` cases, of `base+queries` and then of `queries` alone."""
        return round(float(np.mean(self.fused[:n])), 9), round(float(np.mean(self.alone[:n])), 9)


@dataclass(frozen=True)
class Scorer:
    """Scores variants on `cases`; the bench's learned fusion has not seen their users."""

    cases: Sequence[Case]
    bench: Bench
    settings: Settings
    kept: Path
    progress: Progress

    def __call__(self, variant: Variant, at: slice, seconds: float | None = None) -> Score:
        """The score on these cases, with `seconds` on as many of them as that allows. Raises EvalError where no model answers."""
        try:
            with applied(variant, self.settings) as settings:
                answers = ask_model(
                    self.cases[at], self.bench, parts=("queries",),
                    settings=settings, kept=self.kept, progress=self.progress, seconds=seconds,
                )  # fmt: skip
        except ModelError as error:
            raise EvalError(f"no model answers ({error.reason}); see `evoke model`") from error
        cases = self.cases[at][: len(answers)]
        lists = rank_all(self.bench, ["base+queries", "queries"], cases, answers.interests)
        fused, alone = (_recall(cases, lists[arm]) for arm in ("base+queries", "queries"))
        queries = [list(found.queries) for found in answers.interests]
        return Score(fused, alone, queries, float(answers.cost[:, 0].sum()) / 1000 / answers.at_once, answers.model)


class Race:
    """The scores of variants on the first `n` cases of a scorer, each part of them a step that is done once, and who leads.

    Successive halving (Karnin, Koren and Somekh, ICML 2013): a bad variant costs few calls, a good one is judged on many cases.
    """

    def __init__(self, scorer: Scorer, n: int, steps: Steps, say: Say) -> None:
        self.scores: dict[Variant, Score] = {}
        self.spent = 0.0
        self._scorer, self.n, self.steps, self._say = scorer, n, steps, say

    @property
    def table(self) -> list[dict[str, Any]]:
        """Each scored variant, those judged on most cases first."""
        rows = [
            {
                "variant": variant.name, "wording": variant.wording, "draft": variant.draft, "cases": len(score),
                "base+queries": score.mean()[0], "queries": score.mean()[1],
            }
            for variant, score in self.scores.items()
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (-row["cases"], -row["base+queries"], -row["queries"]))

    def score(self, variant: Variant, n: int) -> Score:
        """Its score on the first n of the race's cases at least."""
        n = min(n, self.n)
        known = self.scores.get(variant, Score())
        if len(known) < n:
            part = partial(self._scorer, variant, slice(len(known), n))
            done = Score(**self.steps.step(f"{variant.name} {len(known)} to {n}", lambda: asdict(part())))
            self.spent += done.seconds
            self.scores[variant] = known = known + done
        return known

    def winner(self, champion: Variant, field: Sequence[Variant], seconds: float) -> Variant:
        """The best of the field where it is better than the champion on the cases that both were scored on, else the champion.

        No variant's cases are begun once the whole race has taken `seconds` of the model's time; who is unscored then is out.
        """
        leaders, n, judged = list(field), min(FIRST, self.n), 0
        while leaders and judged < n:
            seen = []
            for variant in (champion, *leaders):
                if self.spent >= seconds:
                    break
                self.score(variant, n)
                seen.append(variant)
            if len(seen) < 2:
                break
            judged = n
            leaders = sorted(seen[1:], key=lambda variant: self.scores[variant].mean(judged), reverse=True)
            self._say(
                f"{judged} cases: {champion.name} {_told(self.scores[champion].mean(judged))}; "
                + ", ".join(f"{variant.name} {_told(self.scores[variant].mean(judged))}" for variant in leaders)
            )
            if len(leaders) > 1:
                leaders, n = leaders[: (len(leaders) + 1) // 2], min(2 * n, self.n)
        if not judged:
            return champion
        better = self.scores[leaders[0]].mean(judged) > self.scores[champion].mean(judged)
        return leaders[0] if better else champion

    def tested(self, leader: Variant, champion: Variant, seconds: float, seed: int) -> dict[str, Any]:
        """The leader against the champion on the cases that had no part in the race, as many as the time allows.

        A paired randomisation test over users of recall@100 of `base+queries`, one-sided: it "pays" where p < .05.
        """
        after = self._alone(leader, slice(self.n, None), seconds / 2)
        before = self._alone(champion, slice(self.n, self.n + len(after)), None)
        users = [case.user for case in self._scorer.cases[self.n : self.n + len(after)]]
        if not users:
            return {"cases": 0, "pays": False}
        paired = compare(np.array(after.fused), np.array(before.fused), users, measure="recall@100", seed=seed)
        gain = np.array(after.fused) - np.array(before.fused)
        return {
            "cases": len(users), "users": len(set(users)), "before": before.mean(), "after": after.mean(),
            "difference": paired.difference, "low": paired.low, "high": paired.high,
            "p": gain_p(gain, users, seed), "pays": pays(gain, users, seed),
        }  # fmt: skip

    def _alone(self, variant: Variant, at: slice, seconds: float | None) -> Score:
        return Score(**self.steps.step(f"test {variant.name}", lambda: asdict(self._scorer(variant, at, seconds))))


def _recall(cases: Sequence[Case], lists: Lists) -> list[float]:
    return [float(value) for value in per_case(cases, lists, ks=(100,))["recall@100"]]


def _told(mean: tuple[float, float]) -> str:
    return f"{mean[0]:.4f} ({mean[1]:.4f} alone)"
