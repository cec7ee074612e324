"""`evoke train queries|rank`: teach the language model on the events before the cut, judge it on validation cases, and switch it
on where it paid."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.errors import EvokeError
from agent.llm.adapters import GGUF, PROMPTS, WEIGHTS, Adapter, Trained
from agent.llm.weights import file_hash, find_weights
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from agent.terminal.console import strip_controls
from eval.comparison import rerank
from eval.comparison.arms import BUDGET, Bench
from eval.comparison.llm_cache import Progress, quiet
from eval.comparison.llm_channels import Heard, heard, unsaid
from eval.data.dataset import indexed
from eval.data.leakage import measured_catalog, seen_hash
from eval.errors import EvalError
from eval.fitting.sequences import pairs
from eval.fitting.signals import fit
from eval.metrics import per_case
from eval.training import queries, reranker
from eval.training.checkpoint import settle, unfinished
from eval.training.examples import Examples, chosen_next, near
from eval.training.gguf_export import check_architecture, export
from eval.training.lora import Lora
from eval.training.verdict import Verdict, judging
from eval.tuning.grid_search import Say, ranked
from eval.tuning.llm_stages import Judge
from eval.tuning.tune import repeating, validation_cases
from prompts import Prompts
from store import Catalog
from store.paths import alone

SAMPLES: Mapping[str, int] = {"queries": 400, "rank": 400}
"""Steps from one item to the next to learn from."""
CASES: Mapping[str, int] = {"queries": 50, "rank": 40}
"""Validation cases to judge on. With so many steps and cases all three trainings should take less than an hour on two cores."""
SHARE = 0.3
"""Share of the model's ranking in the score where it is judged; `evoke tune` finds the best one."""


SHOWN = 10
"""Users whose searches before and after are shown."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What the model writes of one person's history, before training and after."""

    history: list[str]
    before: list[str]
    after: list[str]


@dataclass(frozen=True, slots=True)
class Training:
    """What a training came to: the adapter, on or off, the table that says why, and ten people's searches (kept nowhere).

    `stays` is the adapter so far, where that stays on because the new one does not pay: the new one is not kept then.
    """

    adapter: Adapter
    verdict: Verdict
    stays: Adapter | None
    rewritten: list[Rewritten]

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self.rewritten:
            return self.verdict
        shown = Table("history, the newest last", "searches before", "searches after", show_lines=True)
        for one in self.rewritten:
            shown.add_row(
                *(Text("\n".join(map(strip_controls, part))) for part in (one.history, one.before, one.after))
            )
        return Group(self.verdict, shown)


def train(
    task: str,
    dataset: str | Path,
    *,
    store: str | Path | None = None,
    seed: int = 0,
    samples: int | None = None,
    cases: int | None = None,
    anyway: bool = False,
    say: Say = lambda _: None,
    progress: Progress = quiet,
    **settings: Any,
) -> Training:
    """Train an adapter for `task` ("queries" or "rank") and keep it in the store, on only where validation shows that it pays, or
    `anyway`.

    Learns from at most `samples` steps before the cut and is judged on at most `cases` validation cases. Run again after a kill it
    goes on where it stopped. Deterministic by seed on one machine's CPU; uses a GPU where there is one. Further keywords
    override settings. Raises EvalError where there is too little to learn from, or the extra "train" is missing;
    StoreBusy where another process is at it.
    """
    settle()
    dataset = Path(dataset)
    known = validation_cases(dataset)
    per_case([], [])  # says what is missing for measuring before the work, not after it
    repeats = repeating(known)
    say("indexing")
    folder = indexed(dataset, store)
    tuned = Tuned.load(folder)
    in_force = tuned.applied(Settings.load(**settings), folder)
    prompts = Prompts(in_force.prompts)
    if in_force.base_url:  # no server has the adapter yet: it is the embedded model that learns, and that is judged
        in_force = in_force.model_copy(update={"base_url": None, "model": None})
    fusion = tuned.judged_fusion(folder)
    weights = find_weights(in_force.model).resolve()
    check_architecture(weights)
    kept = folder / "trained" / f"{task}.unfinished"
    with alone(folder, task, f"training {task} for"), unfinished(kept) as check:
        with measured_catalog(folder, known.on) as catalog:
            drawn = pairs(known, catalog.snapshot(), samples or SAMPLES[task], seed)
            say(f"fitting on {len(known.events)} events before the cut")
            signals = fit(known, catalog)
            examples = Examples.of(catalog, prompts)
            # Searches are for what is new; ranked is whatever is recommended.
            brought = near(known, catalog, drawn, repeats) if task == "rank" else chosen_next(known, catalog, drawn)
            say(f"{len(drawn)} steps to learn from; loading {weights.stem}")
            lora = Lora(weights, seed)
            if task == "queries":
                told = queries.teach(examples, drawn, brought, repeats, lora, kept, progress)
            else:
                windows = reranker.samples(examples, drawn, brought, repeats, seed)
                if not windows:
                    raise EvalError(
                        f"{dataset}: no history has {reranker.WINDOW} candidates to choose among; add items or events"
                    )
                told = {"examples": len(windows)}
                told["loss"] = lora.learn(windows, 1, kept / "windows.pt", "batches of windows learned", progress)
            made = kept / "adapter"
            lora.save(made)
            export(made, weights)
            adapter = Adapter(
                task,
                made,
                file_hash(made / WEIGHTS),
                file_hash(made / GGUF),
                file_hash(weights),
                weights.stem,
                prompts.fingerprint(*PROMPTS[task]),
                on=False,
                evidence={"on": "valid", "seen": seen_hash(dataset), "seed": seed, "steps": len(drawn), **told},
            )
            Trained.save(adapter)
            del lora  # its memory is wanted by the engine that judges
            bench = Bench(signals, fusion, in_force.weights, tuned.baselines, repeats)
            judge = judging(known, cases or CASES[task], bench, seed, say)
            judged = _queries_judged if task == "queries" else _rank_judged
            verdict, rewritten = judged(judge, adapter, catalog, in_force, folder / "measured" / "answers.db", progress)
        evidence = adapter.evidence | {"verdict": verdict.as_json()}
        adapter = replace(adapter, on=verdict.paid or anyway, evidence=evidence)
        check()
        Trained.save(adapter)
        stays = None if adapter.on else _good_still(folder, task, seen_hash(dataset))
        if not stays:
            adapter = _taken_in(adapter, folder / "trained" / task)
        return Training(adapter, verdict, stays, rewritten)


def _good_still(folder: Path, task: str, seen: str) -> Adapter | None:
    """The adapter so far, which is not given up for one that does not pay: where it is on, was judged by these data, and nobody
    was forgotten since."""
    try:
        former = Trained.load(folder, [task]).adapter(task)
    except EvokeError:
        return None
    return former if former and former.evidence.get("seen") == seen and not former.knows_forgotten else None


def _taken_in(adapter: Adapter, place: Path) -> Adapter:
    """The adapter in its place in the store, whatever lay there before gone."""
    former = place.with_name(f"{place.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if place.exists():
        place.rename(former)
    adapter.folder.rename(place)
    shutil.rmtree(former, ignore_errors=True)
    return replace(adapter, folder=place)


def _queries_judged(
    judge: Judge, adapter: Adapter, catalog: Catalog, settings: Settings, kept: Path, progress: Progress
) -> tuple[Verdict, list[Rewritten]]:
    """The arm `queries` with the adapter and without, and had that written nothing, beside what it may join."""
    trained, plain = (
        heard(
            judge.cases, ("queries",), judge.bench, catalog, BUDGET,
            settings=settings, kept=kept, adapter=given, progress=progress,
        )
        for given in (adapter, None)
    )  # fmt: skip
    said = {
        "queries": trained.lists["queries"],
        "queries, untrained": plain.lists["queries"],
        "queries, unsaid": unsaid(judge.cases, judge.bench, catalog, BUDGET, adapter, progress),
    }
    dense = ranked(judge.bench, ["dense"], judge.cases)["dense"]
    rows = judge.bench.snapshot.rows
    base = [[rows[candidate.id] for candidate in own] for own in judge.fused()]
    fused = judge.bench.by_weight({"dense": dense, "queries": said["queries"]}, BUDGET)
    joined = judge.bench.by_weight({"base": base, "queries": said["queries"]}, BUDGET)
    lists = said | {"dense": dense, "dense+queries": fused, "base": base, "base+queries": joined}
    # What others chose is searched for with an adapter alone: ahead of the untrained model that might be the counting's merit.
    pairs = [("queries", other) for other in lists if other != "queries"]
    decisive = [("queries", before, "recall@50") for before in ("queries, untrained", "queries, unsaid")]
    verdict = Verdict.of(judge.cases, lists, judge.bench.snapshot.ids, pairs, decisive)
    return verdict, _rewritten(judge, plain, trained)


def _rewritten(judge: Judge, before: Heard, after: Heard) -> list[Rewritten]:
    """The first case of each of ten users."""
    snapshot = judge.bench.snapshot
    first: dict[str, int] = {}
    for row, case in enumerate(judge.cases):
        first.setdefault(case.user, row)
    shown = []
    for row in list(first.values())[:SHOWN]:
        history = [snapshot.titles[snapshot.rows[id]] for id in judge.cases[row].known if id in snapshot.rows]
        shown.append(Rewritten(history[-5:], before.found[row].queries, after.found[row].queries))
    return shown


def _rank_judged(
    judge: Judge, adapter: Adapter, catalog: Catalog, settings: Settings, _: Path, progress: Progress
) -> tuple[Verdict, list[Rewritten]]:
    """The fused list ranked with the adapter, and as it was."""
    fused = judge.fused()
    places: list[dict[str, float]] = []
    with progress("cases ranked") as advance:
        for start in range(0, len(fused), rerank.AT_ONCE):
            at = slice(start, start + rerank.AT_ONCE)
            places += rerank.placed(judge.cases[at], fused[at], catalog, settings, adapter)["places"]
            advance(len(places), len(fused))
    orders = {"ranked": rerank.blended(fused, places, SHARE), "as fused": fused}
    rows = judge.bench.snapshot.rows
    lists = {name: [[rows[candidate.id] for candidate in own] for own in order] for name, order in orders.items()}
    pair = ("ranked", "as fused")
    return Verdict.of(judge.cases, lists, judge.bench.snapshot.ids, [pair], [(*pair, "ndcg@10")]), []
