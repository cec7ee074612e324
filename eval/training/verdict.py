"""Decide whether a training paid: compare arms before and after it on the same validation cases, paired by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval import metrics, significance
from eval.comparison.bench import Lists
from eval.data.cases import Case, Cases

MEASURES = ("recall@50", "recall@100", "ndcg@10")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The measures of each arm, the differences that matter, and whether the training `paid`."""

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
        pairs: Sequence[tuple[str, str]],
        decisive: Sequence[tuple[str, str, str]],
    ) -> Verdict:
        """Compare pairs of arms.

        Args:
            cases: the validation cases.
            lists: the ranked ids of each case, by arm.
            pairs: the pairs of arms to compare.
            decisive: (arm, arm, measure): the training paid if in each of these the first arm is significantly better
                (`eval.significance.pays`).
        """
        values = {arm: metrics.per_case(cases, own, ks=(10, 50, 100)) for arm, own in lists.items()}
        users = [case.user for case in cases]
        tests = significance.compare_measures(values, users, MEASURES, pairs)
        return cls(
            len(cases),
            len(set(users)),
            {arm: {m: round(float(own[m].mean()), 5) for m in MEASURES} for arm, own in values.items()},
            [asdict(test) for test in tests],
            all(significance.pays(values[a][m] - values[b][m], users) for a, b, m in decisive),
        )

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("", *MEASURES, title=f"{self.cases} validation cases of {self.users} users")
        for arm, values in self.arms.items():
            cells = []
            for measure in MEASURES:
                test = next((t for t in self.comparisons if t["b"] == arm and t["measure"] == measure), None)
                difference = f"  {test['difference']:+.3f}" if test else ""
                if test and test["low"] is not None:
                    difference += f" [{test['low']:+.3f}, {test['high']:+.3f}]"
                cells.append(f"{values[measure]:.3f}{difference}")
            table.add_row(arm, *cells)
        trained = " or ".join(dict.fromkeys(t["a"] for t in self.comparisons))
        table.caption = f"after each figure: the gain of {trained}, with its 95 % interval over users"
        return table


def spread_over_users(cases: Cases, n: int, seed: int) -> list[int]:
    """Draw at most `n` cases, one of each user, then a second one of each, and so on; return their positions.

    Many cases of few users would say little about the others.
    """
    drawn = np.random.default_rng(seed).permutation(len(cases))
    count: Counter[str] = Counter()
    turns = []
    for row in drawn:
        user = cases.cases[row].user
        turns.append(count[user])
        count[user] += 1
    return [int(drawn[at]) for at in np.argsort(turns, kind="stable")[:n]]
