"""`evoke tune`: on validation cases alone, find what a store should use, and write it there with the evidence."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ModelError
from agent.llm.adapters import Trained
from agent.ranking.learned_fusion import Learned
from agent.ranking.stacking import Joined
from agent.ranking.tuned import JOINED, JUDGED, Tuned
from agent.retrieval.signals import Signals
from agent.settings import Settings
from eval.comparison.arms import FUSED, Bench
from eval.comparison.baselines import PARAMETERS
from eval.comparison.llm_cache import Progress, quiet
from eval.comparison.rerank import ranking
from eval.data.cases import Cases
from eval.data.dataset import indexed
from eval.data.leakage import measured_catalog, seen_hash
from eval.data.read_cases import case_file, known_in_use, load_cases
from eval.errors import EvalError
from eval.fitting.ablation import MOST_CASES
from eval.fitting.cross_fitting import lessons
from eval.fitting.signals import fit, table
from eval.tuning.grid_search import Say, best_trees, channel_weights, parameters, ranked
from eval.tuning.llm_stages import Judge, diversity, model_channels
from eval.tuning.resumable import Steps
from store import Catalog, History
from store.cooccurrence import Cooccurrence
from store.paths import alone

SEARCH_CASES = 1500
"""Cases that weights and the comparison's baselines are searched on."""
MODEL_CASES = 500
"""The most cases that stages which call a model are judged on."""
MINUTES = 10.0
READING = 0.75
"""Share of the model's time for its channels; the rest is for ranking."""
REPEATS = 0.005
"""Share of targets that repeat a history item from which on repeats are learned."""


def tune(
    dataset: str | Path,
    *,
    store: str | Path | None = None,
    seed: int = 0,
    model_cases: int = MODEL_CASES,
    minutes: float = MINUTES,
    measure: str = "ndcg@10",
    say: Say = lambda _: None,
    progress: Progress = quiet,
    **settings: Any,
) -> Tuned:
    """Tune the store of this dataset on its validation cases; returns what was found and written.

    Stages that call a model are judged on at most `model_cases` cases and for about `minutes`; with 0 of either they are not
    judged, and what is not judged keeps its default. `measure` (ndcg@10, recall@10 or recall@100) decides between parameters
    and between trees; channel weights go by recall@100 and nDCG@10 together. Further keywords override settings, such as
    `base_url`. `say` is told each step. Raises EvalError where there are no validation cases or no events to fit on.
    """
    dataset = Path(dataset)
    cases = validation_cases(dataset)
    say("indexing")
    folder = indexed(dataset, store)
    cases = cases.sample(MOST_CASES, seed)
    seen = seen_hash(dataset)
    # Beside the model's answers: ranking's are about people, too, and `evoke forget` empties that folder.
    steps = Steps(folder / "measured" / "unfinished.json", f"{seen} {seed} {measure}")
    former = Tuned.load(folder).settings
    prompts = {"prompts": former["prompts"]} if "prompts" in former else {}
    in_force = Tuned(prompts).applied(Settings.load(**settings), folder)
    with alone(folder, "tuning", "tuning"), measured_catalog(folder, cases.on) as catalog:
        say(f"fitting on {len(cases.events)} events before the cut")
        signals = fit(cases, catalog)
        repeats = repeating(cases)
        bench = Bench(signals, repeats=repeats)
        few = cases.sample(SEARCH_CASES, seed)
        baselines = {arm: steps.step(arm, partial(parameters, bench, arm, few, measure, say)) for arm in PARAMETERS}
        bench = Bench(signals, baselines=baselines, repeats=repeats)
        weights, by_rank = steps.step("weights", lambda: channel_weights(bench, few, say))
        drawn = _drawn(cases, seed)
        taught = lessons(cases, catalog, repeats=repeats, seed=seed, progress=progress)
        pays = bool(taught[1].any())
        trees: dict[str, Any] = {}
        learned: dict[str, float] = {}
        judged_fusion = None
        if pays:
            say(f"features of {len(cases)} cases")
            candidates, chosen = table(cases, signals, repeats=repeats)
            trees, learned = steps.step("fusion", lambda: best_trees(taught, candidates, chosen, cases, measure, say))
            pays = learned[measure] >= by_rank[measure]
        if pays:
            say("training learned fusion")
            judged_fusion = Learned.fit(*taught, **trees)
        judged = tuple(cases.cases[row] for row in drawn)
        lists = ranked(replace(bench, learned=judged_fusion), ["base"] if pays else FUSED, judged)
        judge = Judge(judged, lists, {"base": 1.0} if pays else weights, bench, say)
        found, arms, evidence, joined = _joining(
            judge, catalog, in_force, folder, steps, model_cases, minutes, progress, judged_fusion
        )
        defaults = Settings.model_fields["weights"].get_default(call_default_factory=True)
        # With learned fusion the four channels serve requests in words, which no validation case holds: they keep their defaults.
        found |= {"decay": baselines["dense"]["decay"]} | prompts
        found["weights"] = defaults | ({} if pays else weights) | found.get("weights", {})
        tuned = Tuned(
            settings=found,
            baselines=baselines | arms,
            learned=pays,
            evidence={
                "on": "valid", "seen": seen, "seed": seed, "cases": len(cases), "users": cases.users, "repeats": repeats,
                "measure": measure, "weighted ranks": by_rank, "learned fusion": learned, "trees": trees,
                **evidence,
            },
            joined=list(joined.channels) if joined else [],
        )  # fmt: skip
        steps.check()
        for stale in (folder / "tuned").glob("without-*"):
            shutil.rmtree(stale)
        if judged_fusion:
            judged_fusion.save(folder / "tuned" / JUDGED)
            say("learning fusion once more, for use")
            _learned_for_use(dataset, folder, trees, repeats, seed, progress).save(folder / "tuned")
        if joined:
            joined.second.save(folder / "tuned" / JOINED)
        tuned.save(folder)
        if not joined:
            shutil.rmtree(folder / "tuned" / JOINED, ignore_errors=True)
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
    """Fusion taught by all steps that may be known in use, those of the validation period among them."""
    known = known_in_use(dataset)
    with measured_catalog(folder, known.on) as catalog:
        return Learned.fit(*lessons(known, catalog, repeats=repeats, seed=seed, progress=progress), **trees)


def validation_cases(dataset: Path) -> Cases:
    """The cases that may be tuned on. Raises EvalError where there are none, or no events to fit on."""
    if case_file(dataset, "valid") is None and case_file(dataset, "test") is not None:
        raise EvalError(f"{dataset}: there is no valid.jsonl, and tuning looks at no test case; add validation cases")
    cases = load_cases(dataset, "valid")
    if not cases.events:
        raise EvalError(f"{dataset}: there are no events before the validation cases; add events.csv to tune on")
    return cases


def _joining(
    judge: Judge,
    catalog: Catalog,
    settings: Settings,
    folder: Path,
    steps: Steps,
    model_cases: int,
    minutes: float,
    progress: Progress,
    first: Learned | None,
) -> tuple[dict[str, Any], dict[str, dict[str, float]], dict[str, Any], Joined | None]:
    """Settings of what joins base (model channels, diversity, ranking), parameters of arms with the model's channels, the evidence
    for each, and learned joining where it is on.

    `first` is learned fusion, where it is on; it has not seen the cases.
    """
    found: dict[str, Any] = {}
    arms: dict[str, dict[str, float]] = {}
    joined = None
    evidence: dict[str, Any] = {}
    seconds = 60 * minutes
    kept = folder / "measured" / "answers.db"
    trained = Trained.load(folder)
    asking = judge.first(min(model_cases, MODEL_CASES))
    reading = len(asking.cases) > 0 and seconds > 0
    if reading:
        try:
            channels = model_channels(
                asking, catalog, settings, trained.adapter("queries"), kept, progress, READING * seconds, first
            )
            found, arms, evidence["model channels"] = channels.settings, channels.arms, channels.evidence
            asking, joined = channels.judge, channels.joined
        except ModelError as error:
            judge.say(
                f"no model answers ({error.reason}): its channels and ranking keep their defaults; see `evoke model`"
            )
            evidence["model channels"] = {"not judged": error.reason}
            reading = False
    else:
        judge.say("stages that call a model were not judged, and keep their defaults")
    joining = reading and any(found["weights"].values())
    found["diversity"], evidence["diversity"] = diversity(asking if joining else judge)
    judge.say(f"diversity {found['diversity']:g}")
    if reading:
        try:
            found["rank_weight"], evidence["ranking"] = ranking(
                asking, catalog, settings, trained.adapter("rank"), steps, (1 - READING) * seconds
            )
        except ModelError as error:
            evidence["ranking"] = {"not judged": error.reason}
    return found, arms, evidence, joined


def _drawn(cases: Cases, seed: int) -> list[int]:
    """The rows of the cases that joining stages are judged on, in an order drawn at random: the first n are a fair sample too."""
    users = {case.user for case in cases.sample(MODEL_CASES, seed).cases}
    rows = [row for row, case in enumerate(cases.cases) if case.user in users]
    return [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))[:MODEL_CASES]]


def repeating(cases: Cases) -> bool:
    """Whether people choose again what they chose before often enough that repeats are recommended."""
    again = sum(target in case.history for case in cases.cases for target in case.targets)
    return again >= REPEATS * sum(len(case.targets) for case in cases.cases)
