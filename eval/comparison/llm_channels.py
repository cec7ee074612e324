"""Ask the model about the histories of cases, as the recommender does, and measure the cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from agent import event_loop
from agent.errors import BadAnswer, ModelDown, RequestRefused
from agent.llm.adapters import Adapter
from agent.llm.client import LLM, Deadline
from agent.profile.fallback import NO_MIX, fill_up
from agent.profile.interests import Question, ask, checked, questions
from agent.profile.schemas import PARTS, Written
from agent.results import Interests, Stage
from agent.retrieval.channels import chosen_by_others
from agent.retrieval.grounding import ground
from eval.comparison.bench import Bench
from eval.comparison.llm_cache import DEADLINE, Ask, Asking, Reply, ask_all, key_of
from eval.data.cases import Case
from eval.fitting.signals import allowed_rows, histories
from prompts import Prompts
from store import Item
from store.filters import Field


@dataclass(frozen=True, slots=True)
class ModelAnswers:
    """The model's answers for some cases, and the cost of each.

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
        """Return in words how many of the model's answers could be used."""
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


@dataclass(frozen=True, slots=True)
class _Answer:
    """One case's answer as the recommender uses it.

    Args:
        interests: the answer after the checks, filled up.
        reply: the replies to all calls together.
        calls: how many calls were made; 0 for a case without history.
        queries: how many the model wrote.
        queries_kept: how many of these passed the checks.
        named: how many titles the model wrote.
    """

    interests: Interests
    reply: Reply
    calls: int = 0
    queries: int = 0
    queries_kept: int = 0
    named: int = 0


def ask_model(cases: Sequence[Case], bench: Bench, asking: Asking, parts: Sequence[str] = PARTS) -> ModelAnswers:
    """Ask the model, or an adapter on it, about each case's history.

    Args:
        cases: the cases; with `asking.seconds` only the first ones may be asked about.
        bench: what is counted of other people's choices comes from its sources alone.
        asking: how the model is asked.
        parts: what is asked for (`agent.profile.schemas.FORMS`); by default all that the recommender asks for.

    Raises ModelError where no model can be had or answers nothing, EvalError where one stops answering.
    """
    schema, prompts, adapter = bench.sources.catalog.schema(), Prompts(asking.settings.prompts), asking.adapter
    known, others = _shown(cases, bench, adapter)
    asked = [
        questions(history, prompts, schema, tuple(parts), adapter, own) if history else []
        for history, own in zip(known, others, strict=True)
    ]
    each = [question for own in asked for question in own]

    def prepare(llm: LLM) -> tuple[Sequence[str], Ask]:
        keys = [key_of(llm.cache_key(one.adapter), [one.form.__name__], one.messages) for one in each]
        return keys, lambda row: _answer(llm, each[row])

    replies, model = event_loop.run(ask_all(asking, f"answers of the model for {' and '.join(parts)}", prepare))
    left, answers = iter(replies), []
    for history, own, of_case in zip(known, others, asked, strict=True):
        said = list(islice(left, len(of_case)))
        if len(said) < len(of_case):
            break
        answers.append(_combine(said, history, schema, adapter, own))
    cost = [[a.reply.ms, a.calls, a.reply.tokens_in, a.reply.tokens_out] for a in answers]
    return ModelAnswers(
        [answer.interests for answer in answers],
        np.array(cost, dtype=np.float64).reshape(-1, 4),
        _said([answer for answer in answers if answer.calls], parts, bench),
        model,
        asking.at_once,
    )


def without_model(cases: Sequence[Case], bench: Bench, adapter: Adapter) -> list[Interests]:
    """Return the interests with an empty model answer: what the adapter is shown is searched for, and what its mix adds."""
    schema = bench.sources.catalog.schema()
    return [
        fill_up(Interests(), history, schema, Stage("profile"), adapter.mix, others) if history else Interests()
        for history, others in zip(*_shown(cases, bench, adapter), strict=True)
    ]


def _shown(cases: Sequence[Case], bench: Bench, adapter: Adapter | None) -> tuple[list[list[Item]], list[list[Item]]]:
    """Return for each case its history, oldest first, and the items that others chose next, which only a trained model is shown."""
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


async def _answer(llm: LLM, question: Question) -> Reply:
    """Return the reply to one question, with nothing written if it cannot be used.

    Raises ModelError if no answer comes, or if the request is refused: the next time it may not be.
    """
    started = time.perf_counter()
    try:
        try:
            reply = await ask(llm, [question], Deadline(DEADLINE))
        except ModelDown:
            reply = await ask(llm, [question], Deadline(DEADLINE))
    except RequestRefused:
        raise
    except BadAnswer:
        return Reply(None, ms=round((time.perf_counter() - started) * 1000, 1))
    usage = reply.usage
    written = reply.value.model_dump(exclude_unset=True)  # what was not asked for must not hide another answer's
    return Reply(written, usage.tokens_in, usage.tokens_out, round(reply.ms, 1))


def _combine(
    replies: Sequence[Reply],
    history: Sequence[Item],
    schema: Mapping[str, Field],
    adapter: Adapter | None,
    others: Sequence[Item],
) -> _Answer:
    """Return the answer of one case, from the replies to all its questions."""
    if not history:
        return _Answer(Interests(), Reply(None))
    stage = Stage("profile")
    said = {name: value for reply in replies for name, value in (reply.written or {}).items()}
    written = Written.model_validate(said)
    passed = checked(written, history, None, stage)
    tokens_in, tokens_out = (sum(getattr(r, name) for r in replies) for name in ("tokens_in", "tokens_out"))
    return _Answer(
        fill_up(passed, history, schema, stage, adapter.mix if adapter else NO_MIX, others),
        Reply(said or None, tokens_in, tokens_out, max(reply.ms for reply in replies)),
        calls=len(replies),
        queries=len(written.queries),
        queries_kept=len(passed.queries),
        named=len(written.named),
    )


def _said(asked: Sequence[_Answer], parts: Sequence[str], bench: Bench) -> dict[str, float]:
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
