"""`evoke compare`: every arm on the same cases, measured, tested against each other, with its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.llm.adapters import Adapter
from agent.ranking.candidates import Fusion
from agent.ranking.learned_fusion import Learned
from agent.ranking.tuned import Tuned
from agent.retrieval.channels import CANDIDATES, MODEL_CHANNELS
from agent.settings import Settings
from eval.comparison.arms import DEFAULT, RANK, TRAINED, left_out, parts, trained_part
from eval.comparison.bench import Bench
from eval.comparison.measure import measure
from eval.comparison.run_arms import Results, run_arms
from eval.data.cases import Cases
from eval.data.dataset import index_dataset
from eval.data.leakage import load_trusted_adapters, load_trusted_tuning, open_measured_catalog, open_untrained_catalog
from eval.data.read_cases import data_hash, load_cases
from eval.errors import EvalError
from eval.fitting.ablation import refitted
from eval.fitting.signals import fit_sources
from eval.metrics import check_extra
from eval.progress import Progress, quiet
from eval.report.report import Run
from store import Catalog
from store.paths import trained_encoder

UNTRAINED_ENCODER = ("retriever", "training")
"""Endings of arms that rank by the untrained encoder's vectors."""
IN_USE = {"weights", "rank_weight", "rank_depth", "diversity"}
"""Settings that lists depend on, tuned or set by hand."""
MODEL_CASES = 1000
"""Cases of a run in which an arm calls a model, unless `cases` says otherwise."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The data, the tuning, the settings in use and the parts of `full`, which all arms of a run share."""

    dataset: Path
    folder: Path
    tuned: Tuned
    settings: Settings
    repeats: bool
    on: Sequence[str]

    def bench(self, arms: Sequence[str], cases: Cases, catalog: Catalog, *, former: bool = False) -> Bench:
        """Return what these arms rank with.

        Args:
            arms: names.
            cases: the cases, whose events are fitted on.
            catalog: the items.
            former: whether the catalog has the untrained encoder's vectors; learned fusion is then refitted on them.
        """
        out = {channel for arm in arms for part in parts(arm, self.on) if (channel := left_out(part))}

        def learned(channel: str) -> Learned:
            return refitted(self.dataset, self.tuned, self.folder, channel, catalog if former else None)

        fusion = Fusion(
            self.settings.weights,
            "weights" in self.tuned.settings,
            (learned("") if former else self.tuned.fusion(self.folder)) if self.tuned.learned else None,
            self.settings.diversity,
        )
        without = {channel: learned(channel) for channel in sorted(out) if self.tuned.learned}
        return Bench(fit_sources(cases, catalog), fusion, self.tuned.baselines, self.repeats, self.on, without)


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
    """Rank the catalog for every case with every arm; return how good each is, what it adds and what it costs.

    Everything derived is fitted on events before the cut; what `evoke tune` found on validation cases is used. An arm that
    cannot run is listed with the reason. Raises EvalError and StoreError in one line that names the remedy.

    Args:
        dataset: the dataset folder.
        arms: names (see `eval.comparison.arms`).
        store: the store folder; default: the dataset's own. It is indexed first where it is missing or stale.
        on: "test" or "valid".
        cases: draw users until there are so many cases; default all, or 1,000 where an arm calls a model.
        seed: of the draw and of the tests.
        allow_repeats: keep items that the user has seen among the candidates.
        how: a way of making cases from events (see `eval.data.splits.make_cases`), in place of the dataset's.
        against: a saved run to compare this one with.
        progress: shows progress.
        settings: any of `agent.settings.Settings`, such as `base_url`.
    """
    check_extra()
    dataset = Path(dataset)
    earlier = Run.load(Path(against)) if against else None
    arms = list(dict.fromkeys(arms))
    if not arms:
        raise EvalError("no arm is named; name some, such as base,dense")
    for arm in arms:
        parts(arm)  # says what there is before any work
    asked = load_cases(dataset, on, how)
    folder = index_dataset(dataset, store)
    with open_measured_catalog(folder, on) as catalog:
        tuned, warnings = load_trusted_tuning(folder, dataset, on, how)
        adapters, doubts = load_trusted_adapters(folder, dataset, on, how)
        in_use = tuned.applied(Settings.load(**settings), folder)
        switched_on = [channel for channel in MODEL_CHANNELS if in_use.weights.get(channel, 0.0) > 0]
        switched_on += [RANK] if in_use.rank_weight else []
        calling = [arm for arm in arms if {*MODEL_CHANNELS, RANK} & set(parts(arm, switched_on))]
        warnings += doubts if calling else []
        if calling and cases is None and len(asked) > MODEL_CASES:
            cases = MODEL_CASES
            warnings.append(
                f"arms call a model, so users were drawn (seed {seed}) until there were {cases:,} cases; see --cases"
            )
        asked = asked.sample(cases or len(asked), seed)
        setup = Setup(dataset, folder, tuned, in_use, allow_repeats, switched_on)
        not_run = _not_trained(arms, folder, adapters)
        arms = [arm for arm in arms if arm not in not_run]
        kept = folder / "measured" / "answers.db"
        found: dict[str, Results] = {}
        bench = setup.bench([arm for arm in arms if trained_part(arm)[1] not in UNTRAINED_ENCODER], asked, catalog)
        for out in ("", *TRAINED):
            own = [arm for arm in arms if trained_part(arm)[1] == out]
            if out in UNTRAINED_ENCODER and own:
                with open_untrained_catalog(folder, catalog, progress) as former:
                    other = setup.bench(own, asked, former, former=True)
                    used = adapters if out == "retriever" else {}
                    found[out] = run_arms(own, other, asked, in_use, used, kept, progress)
            elif own:
                found[out] = run_arms(own, bench, asked, in_use, {} if out else adapters, kept, progress)
        not_run |= {arm: reason for each in found.values() for arm, reason in each.not_run.items()}
        lists = {arm: each.lists[arm] for arm in arms for each in found.values() if arm in each.lists}
        if not lists:
            raise EvalError("; ".join(f'"{arm}" cannot run: {reason}' for arm, reason in not_run.items()))
        run = measure(asked, lists, bench)
    for each in found.values():
        for arm, cost in each.cost.items():
            run.arms[arm] |= cost
    run.data, run.seed, run.arms_not_run = data_hash(dataset), seed, not_run
    run.warnings += warnings + _out_of_reach(asked, allow_repeats)
    run.settings = {"split": how or "as given", "allow_repeats": allow_repeats, "budget": CANDIDATES}
    run.settings |= {"tuned": tuned.settings, "learned": tuned.learned, "in use": in_use.model_dump(include=IN_USE)}
    _describe_model(run, found, in_use, list(lists), switched_on)
    if earlier:
        run.changes = run.changes_since(earlier).as_json()
    return run


def _out_of_reach(cases: Cases, repeats: bool) -> list[str]:
    """A warning of targets that no arm can find."""
    again = sum(target in case.known for case in cases.cases for target in case.targets)
    if repeats or not again:
        return []
    return [f"{again} targets stand in their case's own history, which no arm recommends without --allow-repeats"]


def _not_trained(arms: Sequence[str], folder: Path, adapters: Mapping[str, Adapter]) -> dict[str, str]:
    """The arms that leave out a part that was never trained, or is not used here, each with the reason."""
    missing = [] if trained_encoder(folder) else ["retriever"]
    missing += [] if adapters else ["adapter"]
    commands = {"retriever": "evoke train retriever", "adapter": "evoke train queries"}
    return {
        arm: f"there is no trained {part} in use to leave out; run `{commands[part]}` first"
        for arm in arms
        for part in missing
        if trained_part(arm)[1] in (part, "training")
    }


def _describe_model(
    run: Run, found: Mapping[str, Results], settings: Settings, arms: Sequence[str], switched_on: Sequence[str]
) -> None:
    """Write into the run which model answered which prompts, and what `full` is."""
    from prompts import Prompts

    for out, each in found.items():
        if own := each.answers:
            name = f"model (-{out})" if out else "model"
            run.model = run.model or own.model
            run.prompts["interests"] = Prompts(settings.prompts).fingerprint("interests")
            run.settings[name] = own.said | {"requests at once": own.at_once}
            run.warnings.append(own.note() + (f" (arms without the trained {out})" if out else ""))
        if each.ranker:
            run.model = run.model or each.ranker
            run.prompts["rank"] = Prompts(settings.prompts).fingerprint("rank")
            run.warnings += [f"{arm}: {note}" for arm, note in each.ranked.items()]
    if any(part.startswith("full") for arm in arms for part in arm.split("+")):
        shares = settings.weights | {RANK: settings.rank_weight}
        run.settings["full"] = {"base": 1.0} | {part: shares[part] for part in switched_on}
        if not switched_on:
            run.warnings.append("tuning left nothing of the model on for this store: full is base, and calls no model")
