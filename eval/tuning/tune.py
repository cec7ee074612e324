"""`evoke tune`: find on validation cases alone what a store should use, and write it there with the evidence."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ModelError
from agent.llm.adapters import Adapters
from agent.ranking.candidates import Fusion
from agent.ranking.learned_fusion import Learned
from agent.ranking.tuned import JUDGED, Tuned
from agent.retrieval.signals import Signals
from agent.settings import Settings
from eval.comparison.baselines import PARAMETERS
from eval.comparison.bench import Bench
from eval.comparison.llm_cache import Asking
from eval.data.cases import Cases
from eval.data.dataset import index_dataset
from eval.data.leakage import hash_tuning_data, open_measured_catalog
from eval.data.read_cases import case_file, load_cases, load_production_cases
from eval.errors import EvalError
from eval.fitting.ablation import MOST_CASES
from eval.fitting.cross_fitting import lessons
from eval.fitting.signals import fit_sources, table
from eval.metrics import check_extra
from eval.progress import Progress, quiet
from eval.tuning.grid_search import best_trees, channel_weights, parameters
from eval.tuning.llm_stages import Added, diversity, model_channels, reranking
from eval.tuning.objective import Judge, Say, judge_base, mean_goal
from eval.tuning.resumable import Steps
from store import Catalog, History
from store.cooccurrence import Cooccurrence
from store.locks import exclusive_lock

SEARCH_CASES = 1500
"""Cases that weights and the comparison's baselines are searched on."""
MODEL_CASES = 500
"""Most cases that stages which call a model are judged on."""
MINUTES = 10.0
CHANNELS_SHARE = 0.75
"""Share of the model's time for its channels; the rest is for reranking."""
REPEATS = 0.005
"""Share of targets that repeat a history item from which on repeats are learned."""


def tune(
    dataset: str | Path,
    *,
    store: str | Path | None = None,
    seed: int = 0,
    model_cases: int = MODEL_CASES,
    minutes: float = MINUTES,
    say: Say = lambda _: None,
    progress: Progress = quiet,
    **settings: Any,
) -> Tuned:
    """Tune the store of this dataset on its validation cases; return what was found and written.

    Args:
        dataset: the dataset folder. Raises EvalError where it has no validation cases, or no events to fit on.
        store: the store folder; default: the dataset's own.
        seed: of all draws.
        model_cases: most cases that stages which call a model are judged on. With 0 of these or of `minutes` they are not judged,
            and keep their defaults.
        minutes: about the time for these stages.
        say: called with a line for each finished step.
        progress: shows progress.
        settings: any of `agent.settings.Settings`, such as `base_url`.
    """
    check_extra()
    dataset = Path(dataset)
    cases = validation_cases(dataset)
    say("indexing")
    folder = index_dataset(dataset, store)
    cases = cases.sample(MOST_CASES, seed)
    seen = hash_tuning_data(dataset)
    # In the folder of the model's answers, which `evoke forget` empties: the steps are about users too.
    steps = Steps(folder / "measured" / "unfinished.json", f"{seen} {seed}")
    former = Tuned.load(folder).settings
    prompts = {"prompts": former["prompts"]} if "prompts" in former else {}
    in_use = Tuned(prompts).applied(Settings.load(**settings), folder)
    with exclusive_lock(folder, "tuning", "tuning"), open_measured_catalog(folder, cases.on) as catalog:
        say(f"fitting on {len(cases.events)} events before the cut")
        repeats = repeating(cases)
        bench = Bench(fit_sources(cases, catalog), Fusion({}), repeats=repeats)
        few = cases.sample(SEARCH_CASES, seed)
        baselines = {name: steps.step(name, partial(parameters, bench, name, few, say)) for name in PARAMETERS}
        weights, by_rank = steps.step("weights", lambda: channel_weights(bench, few, say))
        taught = lessons(cases, catalog, repeats=repeats, seed=seed, progress=progress)
        pays = bool(taught[1].any())
        trees: dict[str, Any] = {}
        learned: dict[str, float] = {}
        judged_fusion = None
        if pays:
            say(f"features of {len(cases)} cases")
            candidates, chosen = table(cases.cases, bench.signals, repeats=repeats)
            trees, learned = steps.step("fusion", lambda: best_trees(taught, candidates, chosen, cases, say))
            pays = mean_goal(learned) >= mean_goal(by_rank)
        if pays:
            say("training learned fusion")
            judged_fusion = Learned.fit(*taught, **trees)
        judged = tuple(cases.cases[row] for row in _draw_judged(cases, seed))
        bench = replace(bench, fusion=Fusion({}, learned=judged_fusion), baselines=baselines)
        judge = judge_base(bench, judged, weights, say)
        found = _judge_added(judge, folder, in_use, model_cases, minutes, progress)
        defaults = Settings.model_fields["weights"].get_default(call_default_factory=True)
        # With learned fusion the four channels serve requests with text, which no validation case holds: they keep their defaults.
        settings_found = {"weights": defaults | ({} if pays else weights) | found.weights} | found.settings | prompts
        tuned = Tuned(
            settings=settings_found,
            baselines=baselines | found.arms,
            learned=pays,
            evidence={
                "on": "valid", "seen": seen, "seed": seed, "cases": len(cases), "users": cases.users, "repeats": repeats,
                "weighted ranks": by_rank, "learned fusion": learned, "trees": trees, **found.evidence,
            },
        )  # fmt: skip
        steps.check()
        for stale in (folder / "tuned").glob("without-*"):
            shutil.rmtree(stale)
        if judged_fusion:
            judged_fusion.save(folder / "tuned" / JUDGED)
            say("learning fusion once more, for use")
            _learned_for_use(dataset, folder, trees, repeats, seed, progress).save(folder / "tuned")
        tuned.save(folder)
    if judged_fusion:
        own = Catalog.open(folder, create=False, embedder=Settings.load().embedder())
        with own as catalog, History.open(folder) as history:
            counts = Cooccurrence.of(history, catalog.snapshot(), catalog.folder)
            Signals.of(catalog, history, counts, refit=True)
    steps.finish()
    return tuned


def _learned_for_use(
    dataset: Path, folder: Path, trees: Mapping[str, Any], repeats: bool, seed: int, progress: Progress
) -> Learned:
    """Learned fusion of all steps that may be known in use, those of the validation period among them."""
    known = load_production_cases(dataset)
    with open_measured_catalog(folder, known.on) as catalog:
        return Learned.fit(*lessons(known, catalog, repeats=repeats, seed=seed, progress=progress), **trees)


def validation_cases(dataset: Path) -> Cases:
    """Return the cases that may be tuned on. Raises EvalError where there are none, or no events to fit on."""
    if case_file(dataset, "valid") is None and case_file(dataset, "test") is not None:
        raise EvalError(f"{dataset}: there is no valid.jsonl, and tuning looks at no test case; add validation cases")
    cases = load_cases(dataset, "valid")
    if not cases.events:
        raise EvalError(f"{dataset}: there are no events before the validation cases; add events.csv to tune on")
    return cases


def _judge_added(
    judge: Judge, folder: Path, settings: Settings, model_cases: int, minutes: float, progress: Progress
) -> Added:
    """Judge the model's channels, diversity and reranking on top of `base`. Learned fusion has not seen the judge's cases."""
    found, seconds = Added(), 60 * minutes
    kept, trained = folder / "measured" / "answers.db", Adapters.load(folder)
    asked = judge.first(min(model_cases, MODEL_CASES))
    answered = len(asked.cases) > 0 and seconds > 0
    if answered:
        try:
            asking = Asking(settings, kept, trained.adapter("queries"), progress, CHANNELS_SHARE * seconds)
            found, asked = model_channels(asked, asking)
        except ModelError as error:
            judge.say(
                f"no model answers ({error.reason}): its channels and reranking keep their defaults; see `evoke model`"
            )
            found.evidence["model channels"] = {"not judged": error.reason}
            answered = False
    else:
        judge.say("stages that call a model were not judged, and keep their defaults")
    with_model = answered and any(found.weights.values())
    found.settings["diversity"], found.evidence["diversity"] = diversity(asked if with_model else judge)
    judge.say(f"diversity {found.settings['diversity']:g}")
    if answered:
        now = settings.model_copy(update={"diversity": found.settings["diversity"]})
        try:
            asking = Asking(now, kept, trained.adapter("rank"), progress, (1 - CHANNELS_SHARE) * seconds)
            found.settings["rank_weight"], found.evidence["reranking"] = reranking(asked, asking)
        except ModelError as error:
            found.evidence["reranking"] = {"not judged": error.reason}
    return found


def _draw_judged(cases: Cases, seed: int) -> list[int]:
    """Return the rows of the cases that added stages are judged on, in random order, so that the first n are a fair sample."""
    users = {case.user for case in cases.sample(MODEL_CASES, seed).cases}
    rows = [row for row, case in enumerate(cases.cases) if case.user in users]
    return [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))[:MODEL_CASES]]


def repeating(cases: Cases) -> bool:
    """Return whether users choose items again often enough that repeats are recommended."""
    again = sum(target in case.history for case in cases.cases for target in case.targets)
    return again >= REPEATS * sum(len(case.targets) for case in cases.cases)
