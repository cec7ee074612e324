"""Measures of ranked lists: the quality of each arm with intervals, what each channel adds, and what users would see."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent.retrieval.channels import CHANNELS
from eval import metrics, significance
from eval.comparison.bench import Bench
from eval.data.cases import Cases
from eval.report.report import Run
from eval.report.run import PRIMARY

CERTAIN = (*PRIMARY, "recall@1", "recall@5")
"""Measures with intervals."""


def measure(cases: Cases, ranked: dict[str, list[list[str]]], bench: Bench) -> Run:
    """Return the run of these lists: measures and their intervals, comparisons with the first arm, channels, strata.

    Args:
        cases: the cases.
        ranked: by arm, the list of ids for each case.
        bench: what they were ranked with, for the catalog and the popularity of items.
    """
    catalog = bench.sources.catalog
    users = [case.user for case in cases.cases]
    values = {arm: metrics.per_case(cases.cases, lists) for arm, lists in ranked.items()}
    counts = bench.sources.counts.popularity
    popularity = {id: float(n) for id, n in zip(bench.sources.snapshot.ids, counts, strict=True) if n}
    channels = {arm: lists for arm, lists in ranked.items() if arm in CHANNELS}
    exclusive = metrics.exclusive_recall(cases.cases, channels) if channels else {}
    arms: dict[str, dict[str, Any]] = {}
    for arm, lists in ranked.items():
        shown = metrics.measure_shown_items(lists, len(catalog), popularity, catalog.vectors)
        arms[arm] = metrics.means(values[arm]) | shown
        if arm in exclusive:
            arms[arm]["exclusive@100"] = exclusive[arm]
    first, *others = list(ranked)
    tests = significance.compare_measures(values, users, PRIMARY, [(first, other) for other in others])
    per_arm = {arm: {measure: values[arm][measure] for measure in PRIMARY} for arm in ranked}
    labels = metrics.label_cases(cases.cases, popularity, {event.item for event in cases.events})
    codes = {user: code for code, user in enumerate(dict.fromkeys(users))}
    return Run(
        dataset=cases.dataset,
        on=cases.on,
        cases=len(cases),
        users=cases.users,
        arms=arms,
        comparisons=significance.correct_by_holm(tests),
        asked=cases.hash,
        union_ceiling=metrics.union_ceiling(cases.cases, channels) if channels else None,
        intervals={
            arm: significance.bootstrap_intervals({measure: values[arm][measure] for measure in CERTAIN}, users)
            for arm in ranked
        },
        overlap=metrics.overlap(cases.cases, channels) if channels else {},
        strata=metrics.means_by_stratum(labels, per_arm),
        warnings=list(cases.warnings),
        values=per_arm,
        case_users=np.array([codes[user] for user in users]),
    )
