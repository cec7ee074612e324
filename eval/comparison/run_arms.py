"""Run arms on cases: their lists, the cost of each, and the model's answers for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from agent.errors import ModelError
from agent.llm.adapters import Adapter
from agent.ranking.fusion import Candidate
from agent.retrieval.channels import MODEL_CHANNELS
from agent.settings import Settings
from eval.comparison.arms import DIALOGUE, RANK, parts
from eval.comparison.bench import JOINING, Bench, ids_of
from eval.comparison.dialogue_cases import dialogue_lists
from eval.comparison.llm_cache import Asking
from eval.comparison.llm_channels import ModelAnswers, ask_model
from eval.comparison.rerank import blend_all, rerank_cases
from eval.data.cases import Cases
from eval.fitting.signals import batches
from eval.progress import Progress

TIMED = 200
"""Cases on which the milliseconds of a request are measured, one at a time..."""
TIMING = 20.0
"""...unless that takes more than these seconds: then a quarter of them is enough."""
FITTED = frozenset({"collaborative", "popular", "item-knn", "ease", "star"})
"""Arms that say nothing without events."""


@dataclass
class Results:
    """The results of arms.

    Args:
        lists: by arm, the ids ranked for each case.
        cost: by arm, the cost of a request.
        answers: the model's answers, where an arm asked it.
        ranker: the cache key of the model that reranked.
        ranked: by arm, in words what became of the reranking.
        not_run: the arms that could not run, each with the reason.
    """

    lists: dict[str, list[list[str]]] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: ModelAnswers | None = None
    ranker: str = ""
    ranked: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def run_arms(
    arms: Sequence[str],
    bench: Bench,
    cases: Cases,
    settings: Settings,
    adapters: Mapping[str, Adapter],
    kept: Path,
    progress: Progress,
) -> Results:
    """Rank the catalog for every case with every arm that can run.

    Args:
        arms: names.
        bench: what they rank with.
        cases: the cases.
        settings: which model, which prompts, the share of reranking.
        adapters: trained adapters to use, by task.
        kept: the file that the model's answers are kept in.
        progress: shows progress.
    """
    results = Results(not_run=cannot_run(arms, bench, cases))
    calling = [arm for arm in arms if arm not in results.not_run and set(MODEL_CHANNELS) & set(parts(arm, bench.on))]
    if calling:
        try:
            asking = Asking(settings, kept, adapters.get("queries"), progress)
            results.answers = ask_model(cases.cases, bench, asking)
        except ModelError as error:
            results.not_run |= dict.fromkeys(calling, _no_model(error))
    arms = [arm for arm in arms if arm not in results.not_run]
    if not arms:
        return results
    talk = dialogue_lists(arms, bench, cases, settings, progress)
    answers = results.answers

    def candidates(arms: Sequence[str], at: slice) -> dict[str, list[list[Candidate]]]:
        given = {part: own[at] for part, own in talk.lists.items()}
        return bench.candidates(arms, cases.cases[at], answers.interests[at] if answers else None, given)

    results.lists = {arm: [] for arm in arms}
    fused: dict[str, list[list[Candidate]]] = {arm: [] for arm in arms if RANK in parts(arm, bench.on)}
    with progress("cases ranked") as advance:
        for at in batches(len(cases)):
            for arm, own in candidates(arms, at).items():
                results.lists[arm] += ids_of(own)
                if arm in fused:
                    fused[arm] += own
            advance(at.stop, len(cases))
    for arm in arms:
        plan = parts(arm, bench.on)
        cost = np.zeros((len(cases), 4))
        if answers and set(MODEL_CHANNELS) & set(plan):
            cost += answers.cost
        if RANK in plan:
            share, depth = settings.rank_weight or JOINING, settings.rank_depth
            try:
                asking = Asking(settings, kept, adapters.get(RANK), progress)
                reranked = rerank_cases(cases.cases, fused[arm], bench.sources.catalog, asking)
            except ModelError as error:
                results.not_run[arm] = _no_model(error)
                del results.lists[arm]
                continue
            results.lists[arm] = ids_of(blend_all(fused.pop(arm), reranked.places, share, depth))
            results.ranker, results.ranked[arm] = reranked.model, reranked.note
            cost += reranked.cost
        read = [talk.ms[part] for part in plan if part in talk.ms]
        results.cost[arm] = _cost(partial(candidates, [arm]), cost, read)
    return results


def cannot_run(arms: Sequence[str], bench: Bench, cases: Cases) -> dict[str, str]:
    """Return the arms that cannot run on these cases, each with the reason."""
    reasons = {}
    no_history = not any(case.known for case in cases.cases)
    no_talk = not any(case.dialogue for case in cases.cases)
    for arm in arms:
        for single in parts(arm, bench.on):
            if single in FITTED and not cases.events:
                reasons[arm] = "there are no events to fit it on; add events.csv"
            elif single == DIALOGUE and no_talk:
                reasons[arm] = "no case holds a dialogue"
            elif single == "mentioned" and not any(case.mentioned for case in cases.cases):
                reasons[arm] = "no dialogue of the cases mentions an item"
            elif no_history and single not in ("base", DIALOGUE, "popular"):
                reasons[arm] = "no case has a history"
    return reasons


def _no_model(error: ModelError) -> str:
    return f"no model answers ({error.reason}); see `evoke model`"


def _cost(rank: Callable[[slice], object], model: np.ndarray, dialogues: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the milliseconds of a request (p50 and p90), and its calls and tokens. A model's milliseconds are as measured, with as
    many requests at once as the run says; the others' of one request at a time.

    Args:
        rank: ranks the cases of a slice.
        model: (n_cases, 4) the model's milliseconds, calls, tokens in and out.
        dialogues: for each part that read the dialogues, the milliseconds of each case.
    """
    taken: list[float] = []
    begun = time.perf_counter()
    for row in range(min(len(model), TIMED)):
        if row >= TIMED // 4 and time.perf_counter() - begun > TIMING:
            break
        before = model[row, 0] + sum(ms[row] for ms in dialogues)
        started = time.perf_counter()
        rank(slice(row, row + 1))
        taken.append(before + (time.perf_counter() - started) * 1000)
    p50, p90 = np.percentile(taken, [50, 90])
    _, calls, read, written = model.mean(axis=0)
    cost = {"ms_p50": p50, "ms_p90": p90, "calls": calls, "tokens_in": read, "tokens_out": written}
    return {name: round(float(value), 2) for name, value in (cost | {"tokens": read + written}).items()}
