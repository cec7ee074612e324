"""Whether a training paid: arms before and after it on the same validation cases, paired by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval import metrics, significance
from eval.comparison.arms import Bench, Lists
from eval.data.cases import Case, Cases
from eval.tuning.grid_search import Say, ranked
from eval.tuning.llm_stages import Judge

MEASURES = ("recall@50", "recall@100", "ndcg@10")
SURE = 0.05
"""The training paid where what decides grew with a smaller p than this, whatever else was compared."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The table: each arm's measures, the differences that matter, and whether the training `paid`."""

    cases: int
    users: int
    arms: Mapping[str, Mapping[str, float]]
    comparisons: Sequence[Mapping[str, Any]]
    paid: bool

    @classmethod
    def of(
        cls,
        cases: Sequence[Case],
        lists: Mapping[str, Lists],
        ids: Sequence[str],
        pairs: Sequence[tuple[str, str]],
        decisive: Sequence[tuple[str, str, str]],
    ) -> Verdict:
        """Compare the `pairs` of arms; it paid where of each decisive pair the first is ahead in the measure that is named with it,
        by more than luck."""
        found = {
            arm: metrics.per_case(cases, [[ids[row] for row in rows] for rows in own], ks=(10, 50, 100))
            for arm, own in lists.items()
        }
        users = [case.user for case in cases]
        tests = [
            test
            for measure in MEASURES
            for test in significance.compare_all(
                {arm: values[measure] for arm, values in found.items()},
                users,
                measure=measure,
                pairs=pairs,
            )
        ]
        deciding = [test for test in tests if (test.a, test.b, test.measure) in decisive]
        return cls(
            len(cases),
            len(set(users)),
            {arm: {m: round(float(values[m].mean()), 5) for m in MEASURES} for arm, values in found.items()},
            [asdict(test) for test in tests],
            len(deciding) == len(decisive) and all(test.difference > 0 and test.p < SURE for test in deciding),
        )

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def __rich__(self) -> Any:
        from rich.table import Table

        shown = Table("", *MEASURES, title=f"{self.cases} validation cases of {self.users} users")
        for arm, values in self.arms.items():
            cells = []
            for measure in MEASURES:
                test = next((t for t in self.comparisons if t["b"] == arm and t["measure"] == measure), None)
                told = f"  {test['difference']:+.3f}" if test else ""
                if test and test["low"] is not None:
                    told += f" [{test['low']:+.3f}, {test['high']:+.3f}]"
                cells.append(f"{values[measure]:.3f}{told}")
            shown.add_row(arm, *cells)
        after = " or ".join(dict.fromkeys(t["a"] for t in self.comparisons))
        shown.caption = f"beside each figure: how far {after} is ahead, with the 95 % interval over users"
        return shown


def judging(cases: Cases, n: int, bench: Bench, seed: int, say: Say) -> Judge:
    """At most `n` cases, of as many users as can be, with the lists of `base`, whose fusion has not seen them."""
    few = [cases.cases[row] for row in spread(cases, n, seed)]
    return Judge(few, ranked(bench, ["base"], few), {"base": 1.0}, bench, say)


def spread(cases: Cases, n: int, seed: int) -> list[int]:
    """The rows of at most `n` cases drawn by users in turn: many cases of few people tell little of the others."""
    drawn = np.random.default_rng(seed).permutation(len(cases))
    turns: Counter[str] = Counter()
    turn = []
    for row in drawn:
        user = cases.cases[row].user
        turn.append(turns[user])
        turns[user] += 1
    return [int(drawn[at]) for at in np.argsort(turn, kind="stable")[:n]]
