"""`evoke train queries|rank`: train an adapter of the language model on the events before the cut, judge it on validation cases,
and switch it on if it paid."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.errors import EvokeError
from agent.llm.adapters import GGUF, PROMPTS, WEIGHTS, Adapter, Adapters
from agent.llm.weights import file_hash, find_weights
from agent.ranking.candidates import Fusion
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from agent.terminal.console import strip_controls
from eval.comparison.bench import Bench, ids_of
from eval.comparison.llm_cache import Asking
from eval.comparison.llm_channels import ModelAnswers, ask_model, without_model
from eval.comparison.rerank import blend_all, rerank_cases
from eval.data.dataset import index_dataset
from eval.data.leakage import hash_tuning_data, open_measured_catalog
from eval.errors import EvalError
from eval.fitting.sequences import pairs
from eval.fitting.signals import fit_sources
from eval.metrics import check_extra
from eval.progress import Progress, quiet
from eval.training import queries, reranker
from eval.training.checkpoint import configure_torch, unfinished
from eval.training.examples import Examples, retrieve_candidates, retrieve_chosen_next
from eval.training.gguf_export import check_architecture, export
from eval.training.lora import Lora
from eval.training.verdict import Verdict, spread_over_users
from eval.tuning.objective import Judge, Say, judge_base
from eval.tuning.tune import repeating, validation_cases
from prompts import Prompts
from store.locks import exclusive_lock

SAMPLES: Mapping[str, int] = {"queries": 400, "rank": 400}
"""The most pairs of a history and the items chosen next to learn from."""
CASES: Mapping[str, int] = {"queries": 50, "rank": 40}
"""The most validation cases to judge on. With these numbers all three trainings should take less than an hour on two cores."""
RERANK_SHARE = 0.3
"""The weight of the model's ranking in the score when it is judged; `evoke tune` finds the best weight."""
EXAMPLE_USERS = 10
"""The users whose queries before and after training are shown."""


@dataclass(frozen=True, slots=True)
class QueryExample:
    """The titles of one user's latest history, and the queries that the model wrote for it before and after training."""

    history: list[str]
    before: list[str]
    after: list[str]


@dataclass(frozen=True, slots=True)
class Training:
    """The result of a training.

    Args:
        adapter: the new adapter, on or off.
        verdict: the comparison that decided it.
        stays: the former adapter if it stays on because the new one does not pay; the new one is discarded then.
        rewritten: the queries of ten users before and after training, which are not saved.
    """

    adapter: Adapter
    verdict: Verdict
    stays: Adapter | None
    rewritten: list[QueryExample]

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "adapter": self.adapter.name,
            "on": self.adapter.on,
            "evidence": self.adapter.evidence,
            "stays": self.stays.name if self.stays else None,
            "rewritten": [asdict(one) for one in self.rewritten],
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self.rewritten:
            return self.verdict
        table = Table("history, newest last", "queries before", "queries after", show_lines=True)
        for one in self.rewritten:
            table.add_row(
                *(Text("\n".join(map(strip_controls, part))) for part in (one.history, one.before, one.after))
            )
        return Group(self.verdict, table)


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
    """Train an adapter and save it in the store. It is switched on only if it pays on validation cases, or with `anyway`.

    A training that was killed continues where it stopped when it is run again. The result depends on the seed alone, on the CPU
    of one machine; a GPU is used if there is one.

    Args:
        task: "queries" or "rank".
        dataset: the dataset's folder.
        store: the store's folder, by default the dataset's own store.
        seed: the seed.
        samples: the most pairs to learn from, by default SAMPLES.
        cases: the most validation cases to judge on, by default CASES.
        anyway: switch the adapter on even if it does not pay.
        say: prints a line about what is done.
        progress: the progress display.
        settings: these override the settings.

    Raises EvalError if there are too few events, or if the extra "train" is missing; StoreBusy if another process trains.
    """
    check_extra()
    configure_torch()
    dataset = Path(dataset)
    known, seen = validation_cases(dataset), hash_tuning_data(dataset)
    repeats = repeating(known)
    say("indexing")
    folder = index_dataset(dataset, store)
    tuned = Tuned.load(folder)
    active = tuned.applied(Settings.load(**settings), folder)
    prompts = Prompts(active.prompts)
    if active.base_url:  # no server has the new adapter: the embedded model is trained and judged
        active = active.model_copy(update={"base_url": None, "model": None})
    fusion = tuned.judged_fusion(folder)
    weights = find_weights(active.model).resolve()
    check_architecture(weights)
    kept = folder / "trained" / f"{task}.unfinished"
    with exclusive_lock(folder, task, f"training {task} for"), unfinished(kept) as check:
        with open_measured_catalog(folder, known.on) as catalog:
            drawn = pairs(known, catalog.snapshot(), samples or SAMPLES[task], seed)
            say(f"fitting on {len(known.events)} events before the cut")
            sources = fit_sources(known, catalog)
            examples = Examples.of(catalog, prompts)
            if task == "rank":
                rows = retrieve_candidates(known, catalog, drawn, repeats)
            else:
                rows = retrieve_chosen_next(known, catalog, drawn)
            say(f"{len(drawn)} pairs to learn from; loading {weights.stem}")
            lora = Lora(weights, seed)
            if task == "queries":
                figures = queries.train_queries(examples, drawn, rows, repeats, lora, kept, progress)
            else:
                windows = reranker.make_samples(examples, drawn, rows, repeats, seed)
                if not windows:
                    raise EvalError(f"{dataset}: no history has {reranker.WINDOW} candidates; add items or events")
                figures = {"examples": len(windows)}
                figures["loss"] = lora.learn(windows, 1, kept / "windows.pt", "batches of rankings learned", progress)
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
                evidence={"on": "valid", "seen": seen, "seed": seed, "steps": len(drawn)} | figures,
            )
            Adapters.save(adapter)
            del lora  # the engine that judges needs its memory
            fused = Fusion(active.weights, "weights" in tuned.settings, fusion, active.diversity)
            bench = Bench(sources, fused, tuned.baselines, repeats)
            # The fusion of the bench has not seen these cases.
            few = [known.cases[row] for row in spread_over_users(known, cases or CASES[task], seed)]
            judge = judge_base(bench, few, bench.fusion.weights, say)
            asking = Asking(active, folder / "measured" / "answers.db", adapter, progress)
            if task == "queries":
                verdict, rewritten = _judge_queries(judge, asking, adapter)
            else:
                verdict, rewritten = _judge_rank(judge, asking), []
        evidence = adapter.evidence | {"verdict": asdict(verdict)}
        adapter = replace(adapter, on=verdict.paid or anyway, evidence=evidence)
        check()
        Adapters.save(adapter)
        stays = None if adapter.on else _former_adapter(folder, task, seen)
        if not stays:
            adapter = _move_into_store(adapter, folder / "trained" / task)
        return Training(adapter, verdict, stays, rewritten)


def _former_adapter(folder: Path, task: str, seen: str) -> Adapter | None:
    """Return the adapter in use if it was judged on these data and no user was deleted since; else None.

    Such an adapter is not replaced by one that does not pay.
    """
    try:
        former = Adapters.load(folder, [task]).adapter(task)
    except EvokeError:
        return None
    return former if former and former.evidence.get("seen") == seen and not former.knows_forgotten else None


def _move_into_store(adapter: Adapter, place: Path) -> Adapter:
    """Move the adapter into its folder in the store, in place of the former one; return it."""
    former = place.with_name(f"{place.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if place.exists():
        place.rename(former)
    adapter.folder.rename(place)
    shutil.rmtree(former, ignore_errors=True)
    return replace(adapter, folder=place)


def _judge_queries(judge: Judge, asking: Asking, adapter: Adapter) -> tuple[Verdict, list[QueryExample]]:
    """Compare the arm `queries` with the adapter, without it, and with an empty model answer; and with other arms."""
    cases, bench = judge.cases, judge.bench
    trained, plain = (
        ask_model(cases, bench, replace(asking, adapter=given), ("queries",)) for given in (adapter, None)
    )
    empty = without_model(cases, bench, adapter)
    lists = bench.rank(["queries", "dense", "dense+queries", "base", "base+queries"], cases, trained.interests)
    for name, interests in (("untrained", plain.interests), ("without model", empty)):
        lists[f"queries, {name}"] = bench.rank(["queries"], cases, interests)["queries"]
    # Only with an adapter are the items that others chose next searched for. A gain on the untrained model could come from that
    # alone, so the adapter must also be better than the same search without a model.
    pairs = [("queries", other) for other in lists if other != "queries"]
    decisive = [("queries", before, "recall@50") for before in ("queries, untrained", "queries, without model")]
    verdict = Verdict.of(cases, lists, pairs, decisive)
    return verdict, _query_examples(judge, plain, trained)


def _query_examples(judge: Judge, before: ModelAnswers, after: ModelAnswers) -> list[QueryExample]:
    """Return the queries of the first case of each of ten users."""
    snapshot = judge.bench.sources.snapshot
    first: dict[str, int] = {}
    for row, case in enumerate(judge.cases):
        first.setdefault(case.user, row)
    examples = []
    for row in list(first.values())[:EXAMPLE_USERS]:
        history = [snapshot.titles[snapshot.rows[id]] for id in judge.cases[row].known if id in snapshot.rows]
        written = (list(answers.interests[row].queries) for answers in (before, after))
        examples.append(QueryExample(history[-5:], *written))
    return examples


def _judge_rank(judge: Judge, asking: Asking) -> Verdict:
    """Compare the fused list reranked with the adapter to the fused list."""
    fused = judge.fused(asking.settings.diversity)
    found = rerank_cases(judge.cases, fused, judge.bench.sources.catalog, asking)
    orders = {"reranked": blend_all(fused, found.places, RERANK_SHARE, asking.settings.rank_depth), "as fused": fused}
    lists = {name: ids_of(order) for name, order in orders.items()}
    pair = ("reranked", "as fused")
    return Verdict.of(judge.cases, lists, [pair], [(*pair, "ndcg@10")])
