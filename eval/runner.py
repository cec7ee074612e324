"""Running a comparison: every arm on the same cases, measured, tested against each other, with what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.tuned import Tuned
from eval import metrics, significance
from eval.arms import CHANNELS, DEFAULT, MODEL, Bench, parts
from eval.cases import data_hash, load_cases
from eval.errors import EvalError
from eval.fitting import batches, fit, histories
from eval.records import Cases
from eval.report import PRIMARY, Run
from store import Catalog

BUDGET = 100
"""Items that every arm may rank for a case."""
TIMED = 200
"""Cases on which milliseconds a request are measured, one by one."""

Advance = Callable[[int, int], None]


def compare(
    dataset: str | Path,
    arms: Sequence[str] = DEFAULT,
    *,
    store: str | Path | None = None,
    on: str = "test",
    cases: int | None = None,
    seed: int = 0,
    allow_repeats: bool = False,
    how: str | None = None,
    progress: Advance | None = None,
) -> Run:
    """Rank the catalog for every case with every arm, and say how well each does, what it adds and what it costs.

    Everything derived is fitted on events before the cut; what `evoke tune` found, on validation, is used. `cases` draws
    users until there are so many. `allow_repeats` keeps history items among the candidates. Raises EvalError and StoreError
    in one line that names the remedy.
    """
    from store.index import index
    from store.place import default_store

    dataset = Path(dataset)
    for arm in arms:
        if set(parts(arm)) & MODEL:
            raise EvalError(f'the arm "{arm}" calls a model, which compare cannot do yet; leave it out')
    asked = load_cases(dataset, on, how)
    asked = asked.sample(cases, seed) if cases else asked
    folder = Path(store) if store else default_store(dataset)
    index(dataset, folder)
    with Catalog.open(folder, create=False) as catalog:
        tuned = Tuned.load(folder)
        signals = fit(asked, catalog)
        bench = Bench(
            signals, tuned.fusion(folder), tuned.settings.get("weights", {}), tuned.baselines, repeats=allow_repeats
        )
        ranked = _ranked(bench, arms, asked, progress)
        run = measured(asked, ranked, catalog, bench)
    run.data, run.seed = data_hash(dataset), seed
    run.settings = {"allow_repeats": allow_repeats, "budget": BUDGET, "tuned": tuned.settings, "learned": tuned.learned}
    if not tuned.evidence:
        run.warnings.append("nothing was tuned for this store: defaults are used; run `evoke tune` first")
    return run


def _ranked(bench: Bench, arms: Sequence[str], cases: Cases, progress: Advance | None) -> dict[str, list[list[str]]]:
    ids = bench.signals.snapshot.ids
    read = histories(cases, bench.signals.snapshot)
    found: dict[str, list[list[str]]] = {arm: [] for arm in arms}
    for at in batches(len(read)):
        for arm, lists in bench.rank(arms, read[at], BUDGET).items():
            found[arm] += [[ids[row] for row in rows] for rows in lists]
        if progress:
            progress(at.stop, len(read))
    return found


def measured(cases: Cases, ranked: dict[str, list[list[str]]], catalog: Catalog, bench: Bench) -> Run:
    """The run of these lists: measures and their intervals, comparisons with the first arm, channels, strata, cost."""
    users = [case.user for case in cases.cases]
    values = {arm: metrics.per_case(cases.cases, lists) for arm, lists in ranked.items()}
    counts = bench.signals.counts.popularity
    popularity = {id: float(n) for id, n in zip(bench.signals.snapshot.ids, counts, strict=True) if n}
    channels = {arm: lists for arm, lists in ranked.items() if arm in CHANNELS}
    exclusive = metrics.exclusive(cases.cases, channels) if channels else {}
    arms: dict[str, dict[str, Any]] = {}
    for arm, lists in ranked.items():
        shown = metrics.beyond_accuracy(lists, len(catalog), popularity, catalog.vectors)
        cost = {**_milliseconds(bench, arm, cases), "calls": 0.0, "tokens_in": 0.0, "tokens_out": 0.0, "tokens": 0.0}
        arms[arm] = metrics.means(values[arm]) | shown | cost
        if arm in exclusive:
            arms[arm]["exclusive@100"] = exclusive[arm]
    first, *others = list(ranked)
    tests = [
        test
        for measure in PRIMARY
        for test in significance.compare_all(
            {arm: values[arm][measure] for arm in ranked}, users, measure=measure, pairs=[(first, o) for o in others]
        )
    ] if others else []  # fmt: skip
    per_arm = {arm: {measure: values[arm][measure] for measure in PRIMARY} for arm in ranked}
    codes = {user: code for code, user in enumerate(dict.fromkeys(users))}
    return Run(
        dataset=cases.dataset,
        on=cases.on,
        cases=len(cases),
        users=cases.users,
        arms=arms,
        comparisons=significance.holm(tests),
        union_ceiling=metrics.union_ceiling(cases.cases, channels) if channels else None,
        intervals={arm: significance.intervals(own, users) for arm, own in per_arm.items()},
        overlap=metrics.overlap(cases.cases, channels) if channels else {},
        strata=metrics.within(metrics.strata(cases.cases, popularity, popularity.keys()), per_arm),
        warnings=list(cases.warnings),
        values=per_arm,
        case_users=np.array([codes[user] for user in users]),
    )


def _milliseconds(bench: Bench, arm: str, cases: Cases) -> dict[str, float]:
    """p50 and p90 of one request at a time."""
    taken = []
    for history in histories(cases, bench.signals.snapshot)[:TIMED]:
        started = time.perf_counter()
        bench.rank([arm], [history], BUDGET)
        taken.append((time.perf_counter() - started) * 1000)
    p50, p90 = np.percentile(taken, [50, 90])
    return {"ms_p50": round(float(p50), 2), "ms_p90": round(float(p90), 2)}
