"""Interests: one cached model call turns a history into a profile, descriptive queries and named titles.

The answer is checked against the history. `agent.profile.fallback` adds what it left open, so that a request is served as
well with a weak or silent model as without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from agent.errors import ModelError
from agent.item_text import STEP, WINDOW, item_query, latest_items, normalize_title, prompt_lines
from agent.llm.adapters import Adapter
from agent.llm.call import ModelCall
from agent.llm.client import LLM, Deadline, Reply, Usage
from agent.profile.fallback import good_queries
from agent.profile.schemas import FORMS, MOST_QUERIES, N_NAMED, N_QUERIES, PARTS, TRAINED, Written
from agent.results import Interest, Interests, Named, Profile, Stage
from prompts import Prompts
from store import History, Item
from store.catalog import Field as SchemaField

MAX_TOKENS = 420
PENALTY = 0.5
"""OpenAI's `frequency_penalty` for a trained model: without it a small one repeats itself."""
SHOWN = 8
"""Most recent history items that a trained model is shown."""


@dataclass(frozen=True, slots=True)
class UserContext:
    """The user whose history is read, and what helps to read it.

    Args:
        schema: the catalog's fields.
        cache: the store's histories, where profiles are kept.
        user: the user, or None for a history given outright.
        others: items that other people chose after such a history; a trained model is shown them.
    """

    schema: Mapping[str, SchemaField]
    cache: History
    user: str | None = None
    others: Sequence[Item] = ()


async def read_interests(call: ModelCall, history: Sequence[Item], context: UserContext) -> Interests:
    """Return the interests behind `history` (liked items, oldest first): cached, refreshed or newly written by the model.

    Only what the model said and passed the checks: `fill_up` adds what it left open. Where the model fails,
    `call.stage.degraded` says why and nothing is returned.
    """
    stage, adapter, prompts = call.stage, call.adapter, call.prompts
    ids = [item.id for item in history]
    stage.prompt = prompts.fingerprint(*_templates(adapter))
    try:
        llm = await call.connect()
        stage.model = await llm.model_name(call.deadline)
        key = llm.cache_key(adapter)
        known = context.cache.profile(context.user, ids, key, stage.prompt)
        former = _read_cached(known.profile) if known else None
        if known and known.exact and former:
            stage.cached = True
            return former
        if former and former.profile and not (former.profile.summary or former.profile.interests):
            former = None  # it said nothing
        former_ids = known.history if known and former else []
        if len(history) - len(former_ids) >= WINDOW + STEP:
            former = None  # a refresh shows all new items, more than fit; a new prompt shows a bounded number
        if former and former.profile:
            stage.notes.append(f"refreshed with {len(history) - len(former_ids)} new events")
        asking = questions(history, prompts, context.schema, PARTS, adapter, context.others, former, former_ids)
        if adapter:
            stage.notes.append("trained adapter")
        if len(asking) == 1:
            reply = _joined([await llm.structured(**asking[0].arguments(call.deadline))])
        else:
            reply = await ask(llm, asking, call.deadline)
    except ModelError as error:
        stage.degraded = error.reason
        return Interests()
    stage.tokens_in += reply.usage.tokens_in
    stage.tokens_out += reply.usage.tokens_out
    if reply.broken:
        stage.degraded = reply.broken.reason
    if reply.partial:
        stage.notes.append("the answer was cut short; what was complete is used")
    passed = checked(reply.value, history, former, stage)
    if not stage.degraded:  # half an answer must not be what the next request reads
        context.cache.save_profile(context.user, ids, key, stage.prompt, passed.as_json())
    return passed


def kept_interests(
    llm: LLM | None,
    history: Sequence[Item],
    context: UserContext,
    prompts: Prompts,
    adapter: Adapter | None,
    stage: Stage,
) -> Interests:
    """Return the interests that are cached for this history or its beginning, without a call; nothing where there are none.

    A conversation shows its items first; its profile is brought up to date by the next request outside of it.

    Args:
        llm: the model's client, whose answers are cached; None where no model was connected yet.
        history: liked items, oldest first.
        context: the user.
        prompts: the templates.
        adapter: the adapter that was trained for queries, if there is one.
        stage: where it is noted that the cache was used.
    """
    if llm is None:
        return Interests()
    ids, fingerprint = [item.id for item in history], prompts.fingerprint(*_templates(adapter))
    known = context.cache.profile(context.user, ids, llm.cache_key(adapter), fingerprint)
    found = _read_cached(known.profile) if known else None
    stage.cached = found is not None
    return found or Interests()


def _read_cached(row: dict[str, Any]) -> Interests | None:
    """A cached profile, or None where another version wrote it in another shape."""
    try:
        return Interests.from_json(row)
    except (KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the model: its messages, the form of the answer, and the adapter that is asked."""

    messages: list[dict[str, str]]
    form: type[BaseModel]
    adapter: Adapter | None = None

    def arguments(self, deadline: Deadline) -> dict[str, Any]:
        """The arguments of `LLM.structured` that ask it."""
        return {
            "messages": self.messages,
            "schema": self.form,
            "max_tokens": MAX_TOKENS,
            "deadline": deadline,
            "frequency_penalty": PENALTY if self.adapter else 0.0,
            "adapter": self.adapter,
        }


def questions(
    history: Sequence[Item],
    prompts: Prompts,
    schema: Mapping[str, SchemaField],
    parts: Sequence[str] = PARTS,
    adapter: Adapter | None = None,
    others: Sequence[Item] = (),
    former: Interests | None = None,
    former_ids: Sequence[str] = (),
) -> list[Question]:
    """Return the questions to ask: one for all parts; with a trained adapter, which writes queries and titles, one for each part.

    Args:
        history: liked items, oldest first.
        prompts: the templates.
        schema: the catalog's fields.
        parts: what is wanted, in the order of PARTS.
        adapter: the adapter that was trained for queries. Raises AdapterRefused where it was trained with other prompts.
        others: items that other people chose after such a history; a trained model is shown them.
        former: the interests of the first items of the history, to be brought up to date.
        former_ids: those items.
    """
    trained: list[Question] = []
    if adapter:
        adapter.check_prompt(prompts)
        trained = [
            Question(messages_for_trained(history, others, prompts, schema, p), TRAINED[p], adapter)
            for p in parts
            if p != "profile"
        ]
        parts = tuple(p for p in parts if p == "profile")
    if not parts:
        return trained
    if former and former.profile:
        new = prompt_lines(history, start=len(former_ids))
        messages = prompts.render("refresh", profile=former.profile.as_json(), history=new, **_wanted(parts))
    else:
        messages = prompts.render("interests", history=prompt_lines(history), **_wanted(parts))
    return [Question(messages, FORMS[tuple(parts)]), *trained]


def messages_for_trained(
    history: Sequence[Item], others: Sequence[Item], prompts: Prompts, schema: Mapping[str, SchemaField], part: str
) -> list[dict[str, str]]:
    """Return the messages that ask a trained model for one part.

    Args:
        history: liked items, oldest first; the latest SHOWN are shown, each once, newest first.
        others: items that other people chose after such a history, shown after them.
        prompts: the templates.
        schema: the catalog's fields.
        part: "queries" or "named".
    """
    known, next_ = ([item_query(item, schema) for item in items] for items in (latest_items(history, SHOWN), others))
    return prompts.render("search", history=known, others=next_, parts=[part])


async def ask(llm: LLM, asking: Sequence[Question], deadline: Deadline) -> Reply[Written]:
    """Ask all questions at once and return the answers as one; `broken` says why a missing one is missing.

    Raises ModelError where no question is answered.
    """
    found = await asyncio.gather(
        *(llm.structured(**question.arguments(deadline)) for question in asking), return_exceptions=True
    )
    if unexpected := next((e for e in found if isinstance(e, BaseException) and not isinstance(e, ModelError)), None):
        raise unexpected
    return _joined(
        [one for one in found if not isinstance(one, BaseException)], [e for e in found if isinstance(e, ModelError)]
    )


def _joined(replies: Sequence[Reply[Any]], errors: Sequence[ModelError] = ()) -> Reply[Written]:
    if not replies:
        raise errors[0]
    return Reply(
        Written(**{name: value for reply in replies for name, value in reply.value}),
        sum((reply.usage for reply in replies), Usage()),
        max(reply.ms for reply in replies),
        any(reply.partial for reply in replies),
        next(iter(errors), None) or next((reply.broken for reply in replies if reply.broken), None),
    )


def _templates(adapter: Adapter | None) -> tuple[str, ...]:
    return ("interests", "refresh", "search") if adapter else ("interests", "refresh")


def _wanted(parts: Sequence[str]) -> dict[str, Any]:
    return {"parts": list(parts), "n_queries": N_QUERIES, "n_named": N_NAMED}


def checked(written: Written, history: Sequence[Item], former: Interests | None, stage: Stage) -> Interests:
    """Return the part of the answer that passes the checks of interests, queries and titles.

    Args:
        written: the model's answer.
        history: liked items, oldest first, numbered from 1 in the prompt.
        former: the interests that the answer brings up to date; their evidence is kept.
        stage: where notes say what was dropped.
    """
    by_label = {i + 1: item.id for i, item in enumerate(history)}
    kept: list[Interest] = []
    for interest in written.interests:
        evidence = list(dict.fromkeys(by_label[label] for label in interest.evidence if label in by_label))
        if former and former.profile:
            evidence += [
                id
                for old in former.profile.interests
                if old.name == interest.name
                for id in old.evidence
                if id not in evidence
            ]
        if interest.name and evidence:
            kept.append(Interest(interest.name, round(interest.weight, 3), tuple(evidence[:5])))
    if dropped := len(written.interests) - len(kept):
        stage.notes.append(f"{dropped} interests without evidence in the history dropped")
    queries = good_queries(written.queries, history)
    if dropped := len(written.queries) - len(queries):
        stage.notes.append(f"{dropped} of {len(written.queries)} queries dropped by the check")
    titles = {normalize_title(item.title) for item in history}
    named = [Named(n.title, n.year) for n in written.named if n.title and normalize_title(n.title) not in titles]
    named = list({normalize_title(n.title): n for n in reversed(named)}.values())[::-1]
    liked = {normalize_title(interest.name) for interest in kept}
    avoid = tuple(a for a in written.avoid if normalize_title(a) and normalize_title(a) not in liked)
    return Interests(
        Profile(written.summary, tuple(kept), avoid), tuple(queries[:MOST_QUERIES]), tuple(named[:N_NAMED])
    )
