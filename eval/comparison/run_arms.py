"""Arms of a comparison on its cases: their lists, what each costs, and what a model said for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ModelError
from agent.llm.adapters import Adapter
from agent.ranking.fusion import Candidate, fuse
from agent.settings import Settings
from eval.comparison.arms import BUDGET, JOINING, MODEL, RANK, Bench, Given, Lists, Parts, asked_parts, parts
from eval.comparison.dialogue_cases import talked
from eval.comparison.llm_cache import Progress
from eval.comparison.llm_channels import Heard, heard, sliced
from eval.comparison.rerank import reordered
from eval.data.cases import Cases
from eval.fitting.signals import batches, histories
from store import Catalog, Hit

TIMED = 200
"""Cases on which milliseconds a request are measured, one by one..."""
TIMING = 20.0
"""...unless that takes more than these seconds: then a quarter of them is enough."""
FITTED = frozenset({"collaborative", "popular", "item-knn", "ease", "star"})
"""Arms that say nothing without events."""


@dataclass
class Ran:
    """By arm the ids ranked for each case and the cost of a request; what the model said, by what it was asked for; which model
    ranked, if one did, and by arm in words what became of that; and the arms that could not run, each with the reason."""

    lists: dict[str, list[list[str]]] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    said: dict[Parts, Heard] = field(default_factory=dict)
    ranker: str = ""
    ranked: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def run_arms(
    arms: Sequence[str],
    bench: Bench,
    catalog: Catalog,
    cases: Cases,
    settings: Settings,
    adapters: Mapping[str, Adapter],
    kept: Path,
    progress: Progress,
) -> Ran:
    """Rank the catalog for every case with every arm that can run. `adapters` are the trained ones to use, by task; what a model
    says is kept in the file `kept`."""
    ran = Ran(not_run=cannot_run(arms, bench, cases))
    _ask(ran, arms, bench, catalog, cases, settings, adapters.get("queries"), kept, progress)
    arms = [arm for arm in arms if arm not in ran.not_run]
    if not arms:
        return ran
    talk = talked(arms, bench, catalog, cases, BUDGET, progress)
    given: dict[tuple[str, Parts], Any] = {(single, ()): lists for single, lists in talk.lists.items()}
    given |= {(part, each): own.lists[part] for each, own in ran.said.items() for part in each}
    ran.lists = _ranked(bench, arms, cases, given, progress)
    for arm in arms:
        plan = parts(arm, bench.on)
        said = ran.said.get(asked_parts(plan))
        cost = _of_model(said, len(cases))
        if RANK in plan:
            share = settings.rank_weight or JOINING
            fused = _fused(arm, ran.lists[arm], bench, cases, given)
            try:
                moved, ranking, ran.ranker, ran.ranked[arm] = reordered(
                    cases.cases, fused, share, catalog, settings, adapters.get(RANK), kept, progress
                )
            except ModelError as error:
                ran.not_run[arm] = _no_model(error)
                del ran.lists[arm]
                continue
            ran.lists[arm] = [[candidate.id for candidate in own] for own in moved]
            cost += ranking
        ran.cost[arm] = _cost(bench, arm, cases, given, cost, talk.cost(plan))
    return ran


def _fused(arm: str, ranked: list[list[str]], bench: Bench, cases: Cases, given: Given) -> list[list[Candidate]]:
    """What the model is given to rank: what the arm `ranked`, with the scores that the recommender gives it."""
    plan = tuple(single for single in parts(arm, bench.on) if single != RANK)
    if len(plan) == 1 or bench.joined_to(plan):
        lists, shares = {arm: ranked}, {arm: 1.0}
    else:
        said, ids = asked_parts(plan), bench.snapshot.ids
        at_hand = {single: given[key] for single in plan if (key := (single, said if single in MODEL else ())) in given}
        rows = bench.cut(at_hand | _singles(set(plan) - at_hand.keys(), bench, cases), BUDGET)
        lists = {single: [[ids[row] for row in own] for own in rows[single]] for single in plan}
        shares = bench.shares(plan)
    hits = [{name: [Hit(id, 0.0) for id in own[row]] for name, own in lists.items()} for row in range(len(cases))]
    return [fuse(found, shares)[:BUDGET] for found in hits]


def _singles(wanted: set[str], bench: Bench, cases: Cases) -> dict[str, Lists]:
    read = histories(cases.cases, bench.snapshot)
    found: dict[str, Lists] = {single: [] for single in wanted}
    for at in batches(len(read)) if wanted else ():
        for single, lists in bench.singles(wanted, read[at], BUDGET).items():
            if single in wanted:
                found[single] += lists
    return found


def _of_model(said: Heard | None, n: int) -> np.ndarray:
    """(n_cases, 4): milliseconds, calls, tokens in and out of each case's answer."""
    if said is None:
        return np.zeros((n, 4))
    return np.stack([np.array(said.ms), said.calls, said.tokens_in, said.tokens_out], axis=1)


def _no_model(error: ModelError) -> str:
    return f"no model answers ({error.reason}); see `evoke model`"


def cannot_run(arms: Sequence[str], bench: Bench, cases: Cases) -> dict[str, str]:
    """The arms that cannot run on these cases, each with the reason."""
    reasons = {}
    no_history = not any(case.known for case in cases.cases)
    no_talk = not any(case.dialogue for case in cases.cases)
    for arm in arms:
        for single in parts(arm, bench.on):
            if single in FITTED and not cases.events:
                reasons[arm] = "there are no events to fit it on; add events.csv"
            elif single == "dialogue" and no_talk:
                reasons[arm] = "no case holds a dialogue"
            elif single == "mentioned" and not any(case.mentioned for case in cases.cases):
                reasons[arm] = "no dialogue of the cases mentions an item"
            elif no_history and single not in ("base", "dialogue", "popular"):
                reasons[arm] = "no case has a history"
    return reasons


def _ask(
    ran: Ran,
    arms: Sequence[str],
    bench: Bench,
    catalog: Catalog,
    cases: Cases,
    settings: Settings,
    adapter: Adapter | None,
    kept: Path,
    progress: Progress,
) -> None:
    """Fill in what the model says for the arms that can run; those that have no model to call cannot."""
    for arm in [arm for arm in arms if arm not in ran.not_run]:
        wanted = asked_parts(parts(arm, bench.on))
        if not wanted or wanted in ran.said:
            continue
        try:
            ran.said[wanted] = heard(
                cases.cases,
                wanted,
                bench,
                catalog,
                BUDGET,
                settings=settings,
                adapter=adapter,
                kept=kept,
                progress=progress,
            )
        except ModelError as error:
            ran.not_run[arm] = _no_model(error)


def _ranked(
    bench: Bench, arms: Sequence[str], cases: Cases, given: Given, progress: Progress
) -> dict[str, list[list[str]]]:
    ids = bench.signals.snapshot.ids
    read = histories(cases.cases, bench.signals.snapshot)
    found: dict[str, list[list[str]]] = {arm: [] for arm in arms}
    with progress("cases ranked") as advance:
        for at in batches(len(read)):
            for arm, lists in bench.rank(arms, read[at], BUDGET, sliced(given, at)).items():
                found[arm] += [[ids[row] for row in rows] for rows in lists]
            advance(at.stop, len(read))
    return found


def _cost(
    bench: Bench, arm: str, cases: Cases, given: Given, model: np.ndarray, talking: Sequence[float] | None
) -> dict[str, float]:
    """Milliseconds of a request (p50 and p90), and calls and tokens of it. A model's milliseconds are as they came with as many
    requests at once as the run says; the others' of one at a time."""
    taken: list[float] = []
    begun = time.perf_counter()
    for row, history in enumerate(histories(cases.cases, bench.signals.snapshot)[:TIMED]):
        if row >= TIMED // 4 and time.perf_counter() - begun > TIMING:
            break
        before = model[row, 0] + (talking[row] if talking else 0.0)
        started = time.perf_counter()
        bench.rank([arm], [history], BUDGET, sliced(given, slice(row, row + 1)))
        taken.append(before + (time.perf_counter() - started) * 1000)
    p50, p90 = np.percentile(taken, [50, 90])
    _, calls, read, written = model.mean(axis=0)
    cost = {"ms_p50": p50, "ms_p90": p90, "calls": calls, "tokens_in": read, "tokens_out": written}
    return {name: round(float(value), 2) for name, value in (cost | {"tokens": read + written}).items()}
