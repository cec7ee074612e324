"""What the model says of cases, asked exactly as the recommender asks, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.llm.adapters import Adapter
from agent.profile.fallback import fill_up
from agent.profile.schemas import PARTS
from agent.results import Interests, Stage
from agent.retrieval.channels import chosen_by_others
from agent.retrieval.grounding import ground
from agent.settings import Settings
from eval.comparison.bench import Bench
from eval.comparison.llm_cache import Answer, answers
from eval.data.cases import Case
from eval.fitting.signals import allowed_rows, histories
from eval.progress import Progress, quiet
from store import Item


@dataclass(frozen=True, slots=True)
class ModelAnswers:
    """What the model says of some cases, and the cost of each.

    Args:
        interests: profile, queries and named titles of each case, filled up as the recommender does.
        cost: (n_cases, 4): milliseconds, calls, tokens in and out.
        said: means and shares of what it wrote, and of how much of that passes the checks.
        model: the model's cache key.
        at_once: requests in flight, which the milliseconds depend on.
    """

    interests: list[Interests]
    cost: np.ndarray
    said: dict[str, float]
    model: str
    at_once: int

    def __len__(self) -> int:
        return len(self.interests)

    def note(self) -> str:
        """Return in words what became of the model's answers."""
        said, parts = self.said, []
        if "queries written" in said:
            parts.append(
                f"{said['queries written']:.1f} queries a case, {said['queries kept']:.0%} pass the checks; in "
                f"{said['filled up']:.0%} of the cases queries from fields are added ({said['queries added']:.1f} a case)"
            )
        if "named written" in said:
            parts.append(f"{said['named written']:.1f} titles a case, {said['named grounded']:.0%} are in the catalog")
        if said["failed"]:
            parts.append(f"{said['failed']:.0%} of the answers cannot be used at all")
        return f"{self.model} writes " + "; ".join(parts)


def ask_model(
    cases: Sequence[Case],
    bench: Bench,
    *,
    settings: Settings,
    kept: Path,
    adapter: Adapter | None = None,
    parts: Sequence[str] = PARTS,
    progress: Progress = quiet,
    seconds: float | None = None,
) -> ModelAnswers:
    """Ask the model, or an adapter on it, about each case's history.

    Args:
        cases: the cases; with `seconds` only the first ones may be asked about.
        bench: what is counted of other people's choices comes from its sources alone.
        settings: which model, which prompts.
        kept: the file that answers are kept in.
        adapter: a trained adapter.
        parts: what is asked for; by default all that the recommender asks for.
        progress: shows progress.
        seconds: after so many no further case is begun.

    Raises ModelError where no model can be had or answers nothing, EvalError where one stops answering.
    """
    catalog = bench.sources.catalog
    known, others = _shown(cases, bench, adapter)
    given = answers(
        known,
        tuple(parts),
        settings=settings,
        schema=catalog.schema(),
        kept=kept,
        adapter=adapter,
        others=others,
        progress=progress,
        seconds=seconds,
    )
    cost = [[a.reply.ms, a.calls, a.reply.tokens_in, a.reply.tokens_out] for a in given.answers]
    return ModelAnswers(
        [answer.interests for answer in given.answers],
        np.array(cost, dtype=np.float64).reshape(-1, 4),
        _said([answer for answer in given.answers if answer.calls], parts, bench),
        given.model,
        given.at_once,
    )


def without_model(cases: Sequence[Case], bench: Bench, adapter: Adapter) -> list[Interests]:
    """Return the interests with an empty model answer: what the adapter is shown is searched for, and what its mix adds."""
    schema = bench.sources.catalog.schema()
    return [
        fill_up(Interests(), history, schema, Stage("profile"), adapter.mix, others) if history else Interests()
        for history, others in zip(*_shown(cases, bench, adapter), strict=True)
    ]


def _shown(cases: Sequence[Case], bench: Bench, adapter: Adapter | None) -> tuple[list[list[Item]], list[list[Item]]]:
    """For each case its history, oldest first, and what others chose next, which only a trained model is shown."""
    sources, catalog = bench.sources, bench.sources.catalog
    snapshot = sources.snapshot
    may = allowed_rows(cases, snapshot, repeats=False) if adapter else np.zeros((len(cases), 0))
    others = [
        [snapshot.ids[row] for row in chosen_by_others(sources.counts, history, own)] if adapter else []
        for history, own in zip(histories(cases, snapshot), may, strict=True)
    ]
    items = catalog.get(sorted({id for ids in (*(case.known for case in cases), *others) for id in ids}))
    return (
        [[items[id] for id in case.known if id in items] for case in cases],
        [[items[id] for id in own] for own in others],
    )


def _said(asked: Sequence[Answer], parts: Sequence[str], bench: Bench) -> dict[str, float]:
    n = max(len(asked), 1)
    said = {"failed": sum(answer.reply.written is None for answer in asked) / n}
    if "queries" in parts:
        written, kept = (sum(getattr(answer, name) for answer in asked) for name in ("queries", "queries_kept"))
        added = [len(a.interests.queries) - min(a.queries_kept, len(a.interests.queries)) for a in asked]
        said |= {
            "queries written": written / n,
            "queries kept": kept / max(written, 1),
            "filled up": sum(count > 0 for count in added) / n,
            "queries added": sum(added) / n,
        }
    if "named" in parts:
        written = sum(answer.named for answer in asked)
        titles = [title for answer in asked for title in answer.interests.named]
        found = {title: ground(title, bench.sources.snapshot).id is not None for title in set(titles)}
        said |= {"named written": written / n, "named grounded": sum(found[t] for t in titles) / max(written, 1)}
    return said
