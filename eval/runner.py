"""Running a comparison: every arm on the same cases, measured, tested against each other, with what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ModelError
from agent.learned import Learned
from agent.settings import Settings
from agent.trained import Adapter
from agent.tuned import Tuned
from eval.answers import Progress, quiet
from eval.arms import DEFAULT, MODEL, Bench, Given, Parts, asked_parts, parts
from eval.cases import data_hash, load_cases
from eval.dialogue import talked
from eval.errors import EvalError
from eval.fitting import batches, fit, histories
from eval.heard import Heard, heard, sliced
from eval.measured import measured
from eval.records import Cases
from eval.reduced import refitted
from eval.report import Run
from eval.trust import trusted, trusted_adapter
from store import Catalog

BUDGET = 100
"""Items that every arm may rank for a case."""
TIMED = 200
"""Cases on which milliseconds a request are measured, one by one..."""
TIMING = 20.0
"""...unless that takes more than these seconds: then a quarter of them is enough."""
MODEL_CASES = 1000
"""Cases of a run in which an arm calls a model, unless told otherwise."""
FITTED = frozenset({"collaborative", "popular", "item-knn", "ease", "star"})
"""Arms that say nothing without events."""


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
    against: str | Path | None = None,
    progress: Progress = quiet,
    **settings: Any,
) -> Run:
    """Rank the catalog for every case with every arm, and say how well each does, what it adds and what it costs.

    Everything derived is fitted on events before the cut; what `evoke tune` found, on validation, is used. `cases` draws
    users until there are so many (1,000 where an arm calls a model). `allow_repeats` keeps history items among the candidates.
    `against` is a saved run to compare this one with. Further keywords override settings, such as `base_url`. An arm that cannot
    run is listed with the reason. Raises EvalError and StoreError in one line that names the remedy.
    """
    from store.index import index
    from store.place import default_store

    dataset = Path(dataset)
    earlier = Run.load(Path(against)) if against else None
    arms = list(dict.fromkeys(arms))
    calling = [arm for arm in arms if set(parts(arm)) & set(MODEL)]
    asked = load_cases(dataset, on, how)
    folder = Path(store) if store else default_store(dataset)
    index(dataset, folder)
    with Catalog.open(folder, create=False) as catalog:
        tuned, warnings = trusted(folder, dataset, on, how)
        adapter = trusted_adapter(folder, dataset, on, how, warnings)
        told = tuned.applied(Settings.load(**settings), folder)
        switched_on = [channel for channel in MODEL if told.weights.get(channel, 0.0) > 0]
        calling = [arm for arm in calling if set(parts(arm, switched_on)) & set(MODEL)]
        if calling and cases is None and len(asked) > MODEL_CASES:
            cases = MODEL_CASES
            warnings.append(
                f"arms call a model, so users were drawn (seed {seed}) until there were {cases:,} cases; see --cases"
            )
        asked = asked.sample(cases or len(asked), seed)
        bench = Bench(
            fit(asked, catalog),
            tuned.fusion(folder),
            told.weights,
            tuned.baselines,
            allow_repeats,
            switched_on,
            without=_without(arms, dataset, catalog, tuned, folder),
            joining=tuned.joining(folder),
        )
        not_run = cannot_run(arms, bench, asked)
        said = _heard(
            [arm for arm in calling if arm not in not_run],
            bench,
            catalog,
            asked,
            told,
            adapter,
            folder,
            progress,
            not_run,
        )
        arms = [arm for arm in arms if arm not in not_run]
        if not arms:
            raise EvalError("; ".join(f'"{arm}" cannot run: {reason}' for arm, reason in not_run.items()))
        talk = talked(arms, bench, catalog, asked, BUDGET, progress)
        given: dict[tuple[str, Parts], Any] = {(single, ()): lists for single, lists in talk.lists.items()}
        given |= {(part, each): own.lists[part] for each, own in said.items() for part in each}
        run = measured(asked, _ranked(bench, arms, asked, given, progress), catalog, bench)
        for arm in arms:
            plan = parts(arm, bench.on)
            run.arms[arm] |= _cost(bench, arm, asked, given, said.get(asked_parts(plan)), talk.cost(plan))
    run.data, run.seed, run.arms_not_run = data_hash(dataset), seed, not_run
    run.warnings += [*warnings, *(f"{' and '.join(each)}: {own.note()}" for each, own in said.items())]
    run.settings = {"allow_repeats": allow_repeats, "budget": BUDGET, "tuned": tuned.settings, "learned": tuned.learned}
    run.settings["joined"] = list(bench.joining.channels) if bench.joining else []
    _tell_model(run, said, told, arms, switched_on)
    if earlier:
        run.changes = run.against(earlier).as_json()
    return run


def _without(arms: Sequence[str], dataset: Path, catalog: Catalog, tuned: Tuned, folder: Path) -> dict[str, Learned]:
    """Learned fusion refitted without each channel that an arm leaves out of base."""
    out = {single.removeprefix("base-") for arm in arms for single in parts(arm) if single.startswith("base-")}
    return {channel: refitted(dataset, catalog, tuned, folder, channel) for channel in sorted(out) if tuned.learned}


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


def _heard(
    arms: Sequence[str],
    bench: Bench,
    catalog: Catalog,
    cases: Cases,
    settings: Settings,
    adapter: Adapter | None,
    folder: Path,
    progress: Progress,
    not_run: dict[str, str],
) -> dict[Parts, Heard]:
    """What the model says for these arms, by what it is asked for; arms that have no model to call join `not_run`."""
    said: dict[Parts, Heard] = {}
    for arm in arms:
        wanted = asked_parts(parts(arm, bench.on))
        if wanted in said:
            continue
        try:
            said[wanted] = heard(
                cases.cases,
                wanted,
                bench,
                catalog,
                BUDGET,
                settings=settings,
                adapter=adapter,
                kept=folder / "measured" / "answers.db",
                progress=progress,
            )
        except ModelError as error:
            not_run[arm] = f"no model answers ({error.reason}); see `evoke model`"
    return said


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
    bench: Bench, arm: str, cases: Cases, given: Given, said: Heard | None, talking: Sequence[float] | None
) -> dict[str, float]:
    """Milliseconds of one request at a time (p50 and p90), a model's answer included, and calls and tokens of a request."""
    taken: list[float] = []
    begun = time.perf_counter()
    for row, history in enumerate(histories(cases.cases, bench.signals.snapshot)[:TIMED]):
        if row >= TIMED // 4 and time.perf_counter() - begun > TIMING:
            break
        before = (said.ms[row] if said else 0.0) + (talking[row] if talking else 0.0)
        started = time.perf_counter()
        bench.rank([arm], [history], BUDGET, sliced(given, slice(row, row + 1)))
        taken.append(before + (time.perf_counter() - started) * 1000)
    p50, p90 = np.percentile(taken, [50, 90])
    calls, read, written = (
        (float(mean.mean()) for mean in (said.calls, said.tokens_in, said.tokens_out)) if said else (0.0, 0.0, 0.0)
    )
    cost = {"ms_p50": float(p50), "ms_p90": float(p90), "calls": calls, "tokens_in": read, "tokens_out": written}
    return {name: round(value, 2) for name, value in (cost | {"tokens": read + written}).items()}


def _tell_model(
    run: Run, said: Mapping[Parts, Heard], settings: Settings, arms: Sequence[str], switched_on: Sequence[str]
) -> None:
    """Write into the run which model answered which prompts, and what `full` is."""
    from prompts import Prompts

    if said:
        run.model = next(iter(said.values())).model
        run.prompts = {"interests": Prompts(settings.prompts).fingerprint("interests")}
        run.settings["model"] = {
            " and ".join(each): own.said | {"requests at once": own.at_once} for each, own in said.items()
        }
    if any(part.startswith("full") for arm in arms for part in arm.split("+")):
        run.settings["full"] = {"base": 1.0} | {channel: settings.weights[channel] for channel in switched_on}
        if not switched_on:
            run.warnings.append("tuning left no model channel on for this store: full is base, and calls no model")
