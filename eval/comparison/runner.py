"""Running a comparison: every arm on the same cases, measured, tested against each other, with what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.llm.adapters import Adapter
from agent.ranking.learned_fusion import Learned
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.comparison.arms import BUDGET, DEFAULT, MODEL, RANK, TRAINED, Bench, parts, untaught
from eval.comparison.llm_cache import Progress, quiet
from eval.comparison.measure import measured
from eval.comparison.run_arms import Ran, run_arms
from eval.data.cases import Cases
from eval.data.dataset import indexed
from eval.data.leakage import before_retriever, measured_catalog, trusted, trusted_adapters
from eval.data.read_cases import data_hash, load_cases
from eval.errors import EvalError
from eval.fitting.ablation import refitted
from eval.fitting.signals import fit
from eval.report.run import Run
from store import Catalog
from store.paths import retriever

FORMER = ("retriever", "training")
"""What arms do without that rank by the encoder's vectors as they were before its training."""
IN_FORCE = {"weights", "rank_weight", "rank_depth"}
"""Settings that lists depend on, whether they were tuned or set by hand."""
MODEL_CASES = 1000
"""Cases of a run in which an arm calls a model, unless told otherwise."""


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
    dataset = Path(dataset)
    earlier = Run.load(Path(against)) if against else None
    arms = list(dict.fromkeys(arms))
    if not arms:
        raise EvalError("no arm is named; name some, such as base,dense")
    for arm in arms:
        parts(arm)  # says what there is before any work
    asked = load_cases(dataset, on, how)
    folder = indexed(dataset, store)
    with measured_catalog(folder, on) as catalog:
        tuned, warnings = trusted(folder, dataset, on, how)
        adapters, doubts = trusted_adapters(folder, dataset, on, how)
        told = tuned.applied(Settings.load(**settings), folder)
        switched_on = [channel for channel in MODEL if told.weights.get(channel, 0.0) > 0]
        switched_on += [RANK] if told.rank_weight else []
        calling = [arm for arm in arms if {*MODEL, RANK} & set(parts(arm, switched_on))]
        warnings += doubts if calling else []
        if calling and cases is None and len(asked) > MODEL_CASES:
            cases = MODEL_CASES
            warnings.append(
                f"arms call a model, so users were drawn (seed {seed}) until there were {cases:,} cases; see --cases"
            )
        asked = asked.sample(cases or len(asked), seed)
        kept = folder / "measured" / "answers.db"
        not_run = _untrained(arms, folder, adapters)
        arms = [arm for arm in arms if arm not in not_run]
        bench = _bench(
            [arm for arm in arms if untaught(arm)[1] not in FORMER],
            asked,
            catalog,
            dataset,
            folder,
            tuned,
            told,
            allow_repeats,
            switched_on,
        )
        ran: dict[str, Ran] = {}
        for out in ("", *TRAINED):
            own = [arm for arm in arms if untaught(arm)[1] == out]
            if out in FORMER and own:
                with before_retriever(folder, catalog, progress) as former:
                    other = _bench(own, asked, former, dataset, folder, tuned, told, allow_repeats, switched_on, former)
                    ran[out] = run_arms(
                        own, other, former, asked, told, adapters if out == "retriever" else {}, kept, progress
                    )
            elif own:
                ran[out] = run_arms(own, bench, catalog, asked, told, {} if out else adapters, kept, progress)
        not_run |= {arm: reason for each in ran.values() for arm, reason in each.not_run.items()}
        lists = {arm: each.lists[arm] for arm in arms for each in ran.values() if arm in each.lists}
        if not lists:
            raise EvalError("; ".join(f'"{arm}" cannot run: {reason}' for arm, reason in not_run.items()))
        run = measured(asked, lists, catalog, bench)
    for each in ran.values():
        for arm, cost in each.cost.items():
            run.arms[arm] |= cost
    run.data, run.seed, run.arms_not_run = data_hash(dataset), seed, not_run
    run.warnings += warnings + _out_of_reach(asked, allow_repeats)
    run.settings = {"split": how or "as given", "allow_repeats": allow_repeats, "budget": BUDGET}
    run.settings |= {"tuned": tuned.settings, "learned": tuned.learned, "in force": told.model_dump(include=IN_FORCE)}
    run.settings["joined"] = list(bench.joining.channels) if bench.joining else []
    if bench.joining and (by_weight := [arm for arm in lists if bench.weighs(parts(arm, switched_on))]):
        run.warnings.append(
            f"learned joining reads {' and '.join(bench.joining.channels)}: what the model writes for "
            f"{', '.join(by_weight)} is joined by weight instead"
        )
    _tell_model(run, ran, told, list(lists), switched_on)
    if earlier:
        run.changes = run.against(earlier).as_json()
    return run


def _out_of_reach(cases: Cases, repeats: bool) -> list[str]:
    """A warning of targets that no arm can find."""
    again = sum(target in case.known for case in cases.cases for target in case.targets)
    if repeats or not again:
        return []
    return [f"{again} targets stand in their case's own history, which no arm recommends without --allow-repeats"]


def _untrained(arms: Sequence[str], folder: Path, adapters: Mapping[str, Adapter]) -> dict[str, str]:
    """The arms that do without what was never taught, or is left aside here, each with the reason."""
    missing = [] if retriever(folder) else ["retriever"]
    missing += [] if adapters else ["adapter"]
    commands = {"retriever": "evoke train retriever", "adapter": "evoke train queries"}
    return {
        arm: f"there is no trained {part} in use to do without; run `{commands[part]}` first"
        for arm in arms
        for part in missing
        if untaught(arm)[1] in (part, "training")
    }


def _bench(
    arms: Sequence[str],
    cases: Cases,
    catalog: Catalog,
    dataset: Path,
    folder: Path,
    tuned: Tuned,
    settings: Settings,
    repeats: bool,
    on: Sequence[str],
    former: Catalog | None = None,
) -> Bench:
    """What these arms rank with; with a `former` catalog learned fusion is one that was trained on its vectors."""
    left_out = {single.removeprefix("base-") for arm in arms for single in parts(arm) if single.startswith("base-")}

    def learned(channel: str) -> Learned:
        return refitted(dataset, tuned, folder, channel, former)

    return Bench(
        fit(cases, catalog),
        (learned("") if former is not None else tuned.fusion(folder)) if tuned.learned else None,
        settings.weights,
        tuned.baselines,
        repeats,
        on,
        without={channel: learned(channel) for channel in sorted(left_out) if tuned.learned},
        joining=tuned.joining(folder),
    )


def _tell_model(
    run: Run, ran: Mapping[str, Ran], settings: Settings, arms: Sequence[str], switched_on: Sequence[str]
) -> None:
    """Write into the run which model answered which prompts, and what `full` is."""
    from prompts import Prompts

    said = {
        f"{' and '.join(each)}{f' (-{out})' if out else ''}": own
        for out, of in ran.items()
        for each, own in of.said.items()
    }
    if said:
        run.model = next(iter(said.values())).model
        run.prompts = {"interests": Prompts(settings.prompts).fingerprint("interests")}
        run.settings["model"] = {name: own.said | {"requests at once": own.at_once} for name, own in said.items()}
        run.warnings += [f"{name}: {own.note()}" for name, own in said.items()]
    if rankers := [of.ranker for of in ran.values() if of.ranker]:
        run.model = run.model or rankers[0]
        run.prompts["rank"] = Prompts(settings.prompts).fingerprint("rank")
        run.warnings += [f"{arm}: {note}" for of in ran.values() for arm, note in of.ranked.items()]
    if any(part.startswith("full") for arm in arms for part in arm.split("+")):
        shares = settings.weights | {RANK: settings.rank_weight}
        run.settings["full"] = {"base": 1.0} | {part: shares[part] for part in switched_on}
        if not switched_on:
            run.warnings.append("tuning left nothing of the model on for this store: full is base, and calls no model")
