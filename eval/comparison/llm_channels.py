"""The model's channels on cases: what it writes is retrieved with exactly as the recommender does, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent import event_loop
from agent.llm.adapters import Adapter
from agent.profile.fallback import topped_up
from agent.results import NOTHING, Interests, Stage
from agent.retrieval.channels import Request, Sources, chosen_by_others, recall
from agent.settings import Settings
from eval.comparison.arms import Bench, Lists, Parts
from eval.comparison.llm_cache import Answer, Progress, answers, quiet
from eval.data.cases import Case
from eval.fitting.signals import histories
from store import Catalog, Item
from store.lexical import Lexical


@dataclass(frozen=True, slots=True)
class Heard:
    """For the cases that the model was asked about with some parts of its answer: `lists` by channel, what was `found` in the
    answers, and the cost of each.

    `said` are shares and means of what it wrote and of how much of that is used.
    """

    lists: dict[str, Lists]
    found: list[Interests]
    ms: list[float]
    calls: np.ndarray
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    said: dict[str, float]
    model: str
    at_once: int

    def __len__(self) -> int:
        return len(self.ms)

    def note(self) -> str:
        """In words what became of the model's answers."""
        said, told = self.said, []
        if "queries written" in said:
            told.append(
                f"{said['queries written']:.1f} queries a case, {said['queries kept']:.0%} pass the checks; in "
                f"{said['topped up']:.0%} of the cases they are topped up ({said['queries added']:.1f} a case)"
            )
        if "named written" in said:
            told.append(f"{said['named written']:.1f} titles a case, {said['named grounded']:.0%} are in the catalog")
        if said["failed"]:
            told.append(f"{said['failed']:.0%} of the answers cannot be used at all")
        return f"{self.model} writes " + "; ".join(told)


def heard(
    cases: Sequence[Case],
    parts: Parts,
    bench: Bench,
    catalog: Catalog,
    k: int,
    *,
    settings: Settings,
    kept: Path,
    adapter: Adapter | None = None,
    progress: Progress = quiet,
    seconds: float | None = None,
) -> Heard:
    """Ask the model, or an adapter on it, for these parts of each case, and retrieve with what it says.

    Counts come from the bench's signals alone. With `seconds` it may be fewer cases than given: the first ones.
    """
    known, others = _shown(cases, bench, catalog, adapter)
    given = answers(
        known,
        parts,
        settings=settings,
        schema=catalog.schema(),
        kept=kept,
        adapter=adapter,
        others=others,
        progress=progress,
        seconds=seconds,
    )
    found = [answer.found for answer in given.answers]
    lists, ms, grounded = _retrieved(cases, found, parts, bench, catalog, k, progress)
    replies = [answer.reply for answer in given.answers]
    return Heard(
        lists,
        found,
        [reply.ms + own for reply, own in zip(replies, ms, strict=True)],
        np.array([answer.calls for answer in given.answers], dtype=np.float64),
        np.array([reply.tokens_in for reply in replies], dtype=np.float64),
        np.array([reply.tokens_out for reply in replies], dtype=np.float64),
        _said([answer for answer in given.answers if answer.calls], parts, grounded),
        given.model,
        given.at_once,
    )


def unsaid(
    cases: Sequence[Case],
    bench: Bench,
    catalog: Catalog,
    k: int,
    adapter: Adapter,
    progress: Progress,
) -> Lists:
    """The lists of the channel queries had the model with this adapter written nothing: what it is shown is searched for, and what
    the adapter's mix adds. So much needs no model."""
    schema = catalog.schema()
    found = [
        topped_up(NOTHING, history, schema, Stage("interests"), adapter.mix, others) if history else NOTHING
        for history, others in zip(*_shown(cases, bench, catalog, adapter), strict=True)
    ]
    return _retrieved(cases, found, ("queries",), bench, catalog, k, progress)[0]["queries"]


def _retrieved(
    cases: Sequence[Case],
    found: Sequence[Interests],
    parts: Parts,
    bench: Bench,
    catalog: Catalog,
    k: int,
    progress: Progress,
) -> tuple[dict[str, Lists], list[float], int]:
    """The channels' lists, the milliseconds of each case, and how many named titles are in the catalog."""
    snapshot = bench.snapshot
    sources = Sources(catalog, snapshot, bench.signals.counts, Lexical.of(catalog, snapshot))
    catalog.embedder.encode_queries(["warm"])
    lists: dict[str, Lists] = {part: [] for part in parts}
    taken, grounded = [], 0
    with progress("cases searched with the model's words") as advance:
        for row, (case, interests) in enumerate(zip(cases, found, strict=False), 1):
            started = time.perf_counter()
            latest, guesses = interests.searched()
            request = Request(
                history=case.known,
                queries=latest,
                guesses=guesses,
                named=interests.named,
                exclude=() if bench.repeats else case.known,
                k=k,
            )
            hits, named = event_loop.run(recall(sources, request, parts, Stage("recall")))
            taken.append((time.perf_counter() - started) * 1000)
            grounded += sum(name.id is not None for name in named)
            for part in parts:
                lists[part].append([snapshot.rows[hit.id] for hit in hits[part]])
            advance(row, len(found))
    return lists, taken, grounded


def _shown(
    cases: Sequence[Case], bench: Bench, catalog: Catalog, adapter: Adapter | None
) -> tuple[list[list[Item]], list[list[Item]]]:
    """For each case its history, oldest first, and what others chose next, which a trained model alone is shown: as the
    recommender shows them."""
    snapshot, counts = bench.snapshot, bench.signals.counts
    others = [
        [snapshot.ids[row] for row in chosen_by_others(counts, history, ~snapshot.hidden)] if adapter else []
        for history in histories(cases, snapshot)
    ]
    items = catalog.get(sorted({id for ids in (*(case.known for case in cases), *others) for id in ids}))
    return (
        [[items[id] for id in case.known if id in items] for case in cases],
        [[items[id] for id in own] for own in others],
    )


def _said(asked: Sequence[Answer], parts: Parts, grounded: int) -> dict[str, float]:
    n = max(len(asked), 1)
    said = {"failed": sum(answer.reply.written is None for answer in asked) / n}
    if "queries" in parts:
        written, kept = (sum(getattr(answer, name) for answer in asked) for name in ("queries", "queries_kept"))
        built = [len(answer.found.queries) - min(answer.queries_kept, len(answer.found.queries)) for answer in asked]
        said |= {
            "queries written": written / n,
            "queries kept": kept / max(written, 1),
            "topped up": sum(count > 0 for count in built) / n,
            "queries added": sum(built) / n,
        }
    if "named" in parts:
        written = sum(answer.named for answer in asked)
        said |= {"named written": written / n, "named grounded": grounded / max(written, 1)}
    return said


def sliced(given: Mapping[tuple[str, Parts], Lists], at: slice) -> dict[tuple[str, Parts], Lists]:
    """The lists of these cases."""
    return {key: lists[at] for key, lists in given.items()}
