"""Interests: one cached model call turns a history into a profile, descriptive queries and named suggestions.

Whatever the model returns is checked against the history and topped up from the catalog's own fields, so that a weak or
silent model leaves a request as well served as no model at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from agent.errors import ModelError
from agent.item_text import STEP, WINDOW, described, lines, newest, plain
from agent.llm.adapters import Adapter
from agent.llm.client import LLM, Connect, Deadline, Reply, Usage
from agent.profile.fallback import ALONE, Mix, good_queries, topped_up
from agent.profile.schemas import FORMS, MOST_QUERIES, N_NAMED, N_QUERIES, PARTS, TRAINED, Written
from agent.results import NOTHING, Interest, Interests, Named, Profile, Stage
from prompts import Prompts
from store import History, Item
from store.catalog import Field as SchemaField

MAX_TOKENS = 420
PENALTY = 0.5
"""On what a trained model has said before (OpenAI's `frequency_penalty`): at its likeliest a small one says it again and again."""
SEEN = 8
"""Things of a history that a trained model reads."""


async def interests(
    history: Sequence[Item],
    *,
    others: Sequence[Item] = (),
    user: str | None,
    schema: Mapping[str, SchemaField],
    connect: Connect,
    prompts: Prompts,
    cache: History,
    adapter: Adapter | None,
    deadline: Deadline,
    stage: Stage,
) -> Interests:
    """The interests behind `history` (liked items, oldest first): cached, refreshed or newly written.

    An adapter trained for queries writes these and the titles; it is shown what `others` chose after such a history. A model that
    fails leaves `stage.degraded` set and the interests built from the catalog's fields alone.
    """
    if not history:
        stage.notes.append("no history")
        return NOTHING
    ids = [item.id for item in history]
    stage.prompt = prompts.fingerprint(*_templates(adapter))
    try:
        llm = await connect()
        stage.model = await llm.model_name(deadline)
        key = llm.key_of(adapter)
        known = cache.profile(user, ids, key, stage.prompt)
        if known and known.exact:
            stage.cached = True
            return topped_up(Interests.from_json(known.profile), history, schema, stage, _mix(adapter), others)
        former = Interests.from_json(known.profile) if known else None
        if former and former.profile and not (former.profile.summary or former.profile.interests):
            former = None  # it said nothing
        former_ids = known.history if known else []
        if len(history) - len(former_ids) >= WINDOW + STEP:
            former = None  # a refresh shows all that is new, which no slot may hold; what a new prompt shows is bounded
        if former and former.profile:
            stage.notes.append(f"refreshed with {len(history) - len(former_ids)} new events")
        asking = calls(history, prompts, schema, PARTS, adapter, others, former, former_ids)
        if adapter:
            stage.notes.append("trained adapter")
        reply = await answered(llm, asking, deadline)
    except ModelError as error:
        stage.degraded = error.reason
        return topped_up(NOTHING, history, schema, stage, _mix(adapter), others)
    stage.tokens_in += reply.usage.tokens_in
    stage.tokens_out += reply.usage.tokens_out
    if reply.broken:
        stage.degraded = reply.broken.reason
    if reply.partial:
        stage.notes.append("the answer was cut short; what was complete is used")
    passed = checked(reply.value, history, former, stage)
    if not stage.degraded:  # half an answer is not what the next request should go by
        cache.save_profile(user, ids, key, stage.prompt, passed.as_json())
    return topped_up(passed, history, schema, stage, _mix(adapter), others)


def remembered(
    history: Sequence[Item],
    others: Sequence[Item],
    user: str | None,
    schema: Mapping[str, SchemaField],
    llm: LLM | None,
    prompts: Prompts,
    cache: History,
    adapter: Adapter | None,
    stage: Stage,
) -> Interests:
    """The interests as far as they can be had at once: those kept of this history or its beginning, else the fields' alone.

    A conversation shows its items first; the profile is brought up to date by the next request outside of one.
    """
    if not history:
        stage.notes.append("no history")
        return NOTHING
    said = NOTHING
    if llm and (
        known := cache.profile(
            user, [i.id for i in history], llm.key_of(adapter), prompts.fingerprint(*_templates(adapter))
        )
    ):
        stage.cached = True
        said = Interests.from_json(known.profile)
    return topped_up(said, history, schema, stage, _mix(adapter), others)


@dataclass(frozen=True, slots=True)
class Call:
    """One question to the model: its messages, the form of the answer, and the adapter that is asked."""

    messages: list[dict[str, str]]
    form: type[BaseModel]
    adapter: Adapter | None = None


def calls(
    history: Sequence[Item],
    prompts: Prompts,
    schema: Mapping[str, SchemaField],
    parts: Sequence[str] = PARTS,
    adapter: Adapter | None = None,
    others: Sequence[Item] = (),
    former: Interests | None = None,
    former_ids: Sequence[str] = (),
) -> list[Call]:
    """What to ask for these parts of what a history says (in the order of PARTS): one question, or with a trained adapter, which
    writes queries and titles and is shown what `others` chose after such a history, one for each part.

    What was known before (`former`, of the items `former_ids`) is brought up to date. Raises AdapterRefused where the adapter
    was trained with other prompts.
    """
    trained: list[Call] = []
    if adapter:
        adapter.check_prompt(prompts)
        trained = [
            Call(asked_trained(history, others, prompts, schema, p), TRAINED[p], adapter)
            for p in parts
            if p != "profile"
        ]
        parts = tuple(p for p in parts if p == "profile")
    if not parts:
        return trained
    if former and former.profile:
        new = lines(history, start=len(former_ids))
        messages = prompts.render("refresh", profile=former.profile.as_json(), history=new, **_wanted(parts))
    else:
        messages = prompts.render("interests", history=lines(history), **_wanted(parts))
    return [Call(messages, FORMS[tuple(parts)]), *trained]


def asked_trained(
    history: Sequence[Item], others: Sequence[Item], prompts: Prompts, schema: Mapping[str, SchemaField], part: str
) -> list[dict[str, str]]:
    """The messages that ask a trained model for one part, "queries" or "named": the latest things, each once, newest first, then
    what `others` chose next."""
    known, next_ = ([described(item, schema) for item in items] for items in (newest(history, SEEN), others))
    return prompts.render("search", history=known, others=next_, parts=[part])


async def answered(llm: LLM, asking: Sequence[Call], deadline: Deadline) -> Reply[Written]:
    """The answers to all calls, made side by side, as one; `broken` says why what is missing is missing.

    Raises a ModelError where no call brought anything.
    """
    replies: list[Reply[Any]] = []
    broken: ModelError | None = None
    for found in await asyncio.gather(
        *(
            llm.structured(
                c.messages,
                c.form,
                max_tokens=MAX_TOKENS,
                deadline=deadline,
                frequency_penalty=PENALTY if c.adapter else 0.0,
                adapter=c.adapter,
            )
            for c in asking
        ),
        return_exceptions=True,
    ):
        if isinstance(found, ModelError):
            broken = found
        elif isinstance(found, BaseException):
            raise found
        else:
            replies.append(found)
    if broken and not replies:
        raise broken
    return Reply(
        Written(**{name: value for reply in replies for name, value in reply.value}),
        sum((reply.usage for reply in replies), Usage()),
        max(reply.ms for reply in replies),
        any(reply.partial for reply in replies),
        broken or next((reply.broken for reply in replies if reply.broken), None),
    )


def _mix(adapter: Adapter | None) -> Mix:
    return adapter.mix if adapter else ALONE


def _templates(adapter: Adapter | None) -> tuple[str, ...]:
    return ("interests", "refresh", "search") if adapter else ("interests", "refresh")


def _wanted(parts: Sequence[str]) -> dict[str, Any]:
    return {"parts": list(parts), "n_queries": N_QUERIES, "n_named": N_NAMED}


def checked(written: Written, history: Sequence[Item], former: Interests | None, stage: Stage) -> Interests:
    """What of the answer stands up to the history and to what queries and names must be; notes say what was dropped."""
    by_label = {i + 1: item.id for i, item in enumerate(history)}
    kept = []
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
            kept.append(Interest(interest.name, round(interest.weight, 3), evidence[:5]))
    if dropped := len(written.interests) - len(kept):
        stage.notes.append(f"{dropped} interests without evidence in the history dropped")
    queries = good_queries(written.queries, history)
    if dropped := len(written.queries) - len(queries):
        stage.notes.append(f"{dropped} of {len(written.queries)} queries dropped by the check")
    titles = {plain(item.title) for item in history}
    named = [Named(n.title, n.year) for n in written.named if n.title and plain(n.title) not in titles]
    named = list({plain(n.title): n for n in reversed(named)}.values())[::-1]
    liked = {plain(interest.name) for interest in kept}
    profile = Profile(written.summary, kept, [a for a in written.avoid if plain(a) and plain(a) not in liked])
    return Interests(profile, queries[:MOST_QUERIES], named[:N_NAMED])
