"""Successive halving of prompt variants (Karnin, Koren and Somekh, ICML 2013): all variants are scored on few cases, the better
half on twice as many, until one is left; then the winner is tested on other cases.

A bad variant costs few calls, and a good one is scored on many cases. The score is recall@100 of the arm `base+queries`, with the
weight of the settings: what a store shows. A wording that only finds what `base` finds anyway gains nothing. On few cases many
variants are equal; then recall@100 of `queries` alone decides, which changes with every query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from agent.errors import ModelError
from eval.comparison.bench import Bench
from eval.comparison.llm_cache import Asking
from eval.comparison.llm_channels import ask_model
from eval.data.cases import Case
from eval.errors import EvalError
from eval.metrics import per_case
from eval.significance import compare_all, gain_p, pays
from eval.tuning.objective import Say
from eval.tuning.prompts.variants import Variant, apply_variant
from eval.tuning.resumable import Steps

FIRST = 16
"""The number of cases that every variant is scored on; each further round doubles it."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a variant.

    Args:
        fused: recall@100 of `base+queries` for each case.
        alone: recall@100 of `queries` for each case.
        queries: the queries that the model wrote for each case.
        seconds: the model's time.
        model: the cache key of the model.
    """

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
        """Return the means over the first `n` cases, of `base+queries` and of `queries` alone. Variants are sorted by them."""
        return round(float(np.mean(self.fused[:n])), 9), round(float(np.mean(self.alone[:n])), 9)


@dataclass
class Race:
    """A race between variants. Each part of it is a step that is done once, also if the run is interrupted.

    Args:
        cases: the cases, in random order. Their users are unknown to the bench's learned fusion.
        n: how many of the first cases variants race on; the others are for the test of the winner.
        bench: what the cases are ranked with.
        asking: how the model is asked.
        steps: the finished steps.
        say: called with a line for each round.
        scores: the score of each variant on the cases of the race.
        spent: the seconds that the model has taken.
    """

    cases: Sequence[Case]
    n: int
    bench: Bench
    asking: Asking
    steps: Steps
    say: Say
    scores: dict[Variant, Score] = field(default_factory=dict)
    spent: float = 0.0

    @property
    def table(self) -> list[dict[str, Any]]:
        """The scored variants, those with the most cases first."""
        rows = [
            {
                "variant": variant.name, "wording": variant.wording, "draft": variant.draft, "cases": len(score),
                "base+queries": score.mean()[0], "queries": score.mean()[1],
            }
            for variant, score in self.scores.items()
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (-row["cases"], -row["base+queries"], -row["queries"]))

    def score(self, variant: Variant, n: int) -> Score:
        """Return the score of a variant on at least the first n cases of the race."""
        n = min(n, self.n)
        known = self.scores.get(variant, Score())
        if len(known) < n:
            done = self._step(f"{variant.name} {len(known)} to {n}", variant, slice(len(known), n))
            self.spent += done.seconds
            self.scores[variant] = known = known + done
        return known

    def find_winner(self, champion: Variant, field: Sequence[Variant], seconds: float) -> Variant:
        """Return the best variant of the field if it is better than the champion on the same cases, else the champion.

        Args:
            champion: the variant to beat.
            field: the other variants.
            seconds: once the model has taken this time in all, no further variant is scored. A variant without a score is out.
        """
        leaders, n, scored = list(field), min(FIRST, self.n), 0
        while leaders and scored < n:
            seen = []
            for variant in (champion, *leaders):
                if self.spent >= seconds:
                    break
                self.score(variant, n)
                seen.append(variant)
            if len(seen) < 2:
                break
            scored = n
            leaders = sorted(seen[1:], key=lambda variant: self.scores[variant].mean(scored), reverse=True)
            means = {variant.name: self.scores[variant].mean(scored) for variant in (champion, *leaders)}
            first, *others = (f"{name} {fused:.4f} ({alone:.4f} alone)" for name, (fused, alone) in means.items())
            self.say(f"{scored} cases: {first}; {', '.join(others)}")
            if len(leaders) > 1:
                leaders, n = leaders[: (len(leaders) + 1) // 2], min(2 * n, self.n)
        if scored and self.scores[leaders[0]].mean(scored) > self.scores[champion].mean(scored):
            return leaders[0]
        return champion

    def test(self, leader: Variant, champion: Variant, seconds: float, seed: int) -> dict[str, Any]:
        """Compare the leader with the champion on the cases that were not in the race, as many as the time allows.

        The test is a one-sided paired randomisation test over users, of recall@100 of `base+queries`. It "pays" if p < .05.
        """
        after = self._step(f"test {leader.name}", leader, slice(self.n, None), seconds / 2)
        asked = slice(self.n, self.n + len(after))
        before = self._step(f"test {champion.name}", champion, asked)
        users = [case.user for case in self.cases[asked]]
        if not users:
            return {"cases": 0, "pays": False}
        values = {"after": np.array(after.fused), "before": np.array(before.fused)}
        (paired,) = compare_all(values, users, measure="recall@100", seed=seed)
        gain = values["after"] - values["before"]
        return {
            "cases": len(users), "users": len(set(users)), "before": before.mean(), "after": after.mean(),
            "difference": paired.difference, "low": paired.low, "high": paired.high,
            "p": gain_p(gain, users, seed), "pays": pays(gain, users, seed),
        }  # fmt: skip

    def _step(self, name: str, variant: Variant, at: slice, seconds: float | None = None) -> Score:
        """Score a variant on these cases, or return its score if this step was done before."""
        return Score(**self.steps.step(name, lambda: asdict(self._measure(variant, at, seconds))))

    def _measure(self, variant: Variant, at: slice, seconds: float | None) -> Score:
        """Return the score on these cases; with `seconds`, on as many of them as the time allows."""
        try:
            with apply_variant(variant, self.asking.settings) as settings:
                asking = replace(self.asking, settings=settings, seconds=seconds)
                answers = ask_model(self.cases[at], self.bench, asking, ("queries",))
        except ModelError as error:
            raise EvalError(f"no model answers ({error.reason}); see `evoke model`") from error
        cases = self.cases[at][: len(answers)]
        lists = self.bench.rank(["base+queries", "queries"], cases, answers.interests)
        fused, alone = (per_case(cases, own, ks=(100,))["recall@100"].tolist() for own in lists.values())
        queries = [list(found.queries) for found in answers.interests]
        return Score(fused, alone, queries, float(answers.cost[:, 0].sum()) / 1000 / answers.at_once, answers.model)
