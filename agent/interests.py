"""Interests: one cached model call turns a history into a profile, descriptive queries and named suggestions.

Whatever the model returns is checked against the history and topped up from the catalog's own fields, so that a weak or
silent model leaves a request as well served as no model at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agent.errors import ModelError
from agent.facts import lines
from agent.grounding import plain
from agent.llm import LLM, Connect, Deadline
from agent.results import NOTHING, Interest, Interests, Named, Profile, Stage
from agent.topup import MIN_QUERIES, good_queries, topped_up
from prompts import Prompts
from store import History, Item
from store.catalog import Field as SchemaField

N_QUERIES = 8
N_NAMED = 10
MAX_TOKENS = 420


def Line(most: int) -> Any:  # noqa: N802  reads as the type it returns
    """A one-line string of at most `most` characters."""
    return Annotated[str, StringConstraints(strip_whitespace=True, max_length=most)]


# A default serves an answer that broke off; the model is asked for every field all the same.
ASKED = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class WrittenInterest(BaseModel):
    """One interest as the model writes it; `evidence` are labels of history lines."""

    model_config = ASKED
    name: Line(60)  # type: ignore[valid-type]
    weight: float = Field(0.5, ge=0, le=1)
    evidence: list[int] = Field(default_factory=list, max_length=5)


class WrittenName(BaseModel):
    """One item the model believes fits."""

    model_config = ASKED
    title: Line(80)  # type: ignore[valid-type]
    year: int | None = None


def Lines(least: int, most: int) -> Any:  # noqa: N802  reads as the type's own field
    """A list bounded in length. The least is asked of the model, but an answer that falls short is still used."""
    return Field(default_factory=list, max_length=most, json_schema_extra={"minItems": least})


class WrittenProfile(BaseModel):
    """The part of the answer that describes the person."""

    model_config = ASKED
    summary: Line(300) = ""  # type: ignore[valid-type]
    interests: list[WrittenInterest] = Lines(1, 5)
    avoid: list[Line(60)] = Lines(0, 3)  # type: ignore[valid-type]


class WrittenQueries(BaseModel):
    """The part of the answer that searches the catalog."""

    model_config = ASKED
    queries: list[Line(100)] = Lines(MIN_QUERIES, N_QUERIES)  # type: ignore[valid-type]


class WrittenNamed(BaseModel):
    """The part of the answer that names items outright."""

    model_config = ASKED
    named: list[WrittenName] = Lines(0, N_NAMED)


class WrittenSearch(WrittenNamed, WrittenQueries):
    """Queries, then names."""


class Written(WrittenNamed, WrittenQueries, WrittenProfile):
    """The whole answer of the interests and refresh prompts: one stable schema, so that servers compile it once."""


PARTS = ("profile", "queries", "named")
FORMS: Mapping[tuple[str, ...], type[BaseModel]] = {
    PARTS: Written,
    ("queries",): WrittenQueries,
    ("named",): WrittenNamed,
    ("queries", "named"): WrittenSearch,
}
"""The parts that can be asked for together, and the form of the answer."""


async def interests(
    history: Sequence[Item],
    *,
    user: str | None,
    schema: Mapping[str, SchemaField],
    connect: Connect,
    prompts: Prompts,
    cache: History,
    deadline: Deadline,
    stage: Stage,
) -> Interests:
    """The interests behind `history` (liked items, oldest first): cached, refreshed or newly written.

    A model that fails leaves `stage.degraded` set and the interests built from the catalog's fields alone.
    """
    if not history:
        stage.notes.append("no history")
        return NOTHING
    ids = [item.id for item in history]
    stage.prompt = prompts.fingerprint("interests", "refresh")
    try:
        llm = await connect()
        stage.model = await llm.model_name(deadline)
        known = cache.profile(user, ids, llm.key, stage.prompt)
        if known and known.exact:
            stage.cached = True
            return Interests.from_json(known.profile)
        former = Interests.from_json(known.profile) if known else None
        written = await _write(history, former, known.history if known else [], llm, prompts, deadline, stage)
    except ModelError as error:
        stage.degraded = error.reason
        return topped_up(NOTHING, history, schema, stage)
    found = topped_up(checked(written, history, former, stage), history, schema, stage)
    if not stage.degraded:  # half an answer is not what the next request should go by
        cache.save_profile(user, ids, llm.key, stage.prompt, found.as_json())
    return found


def remembered(
    history: Sequence[Item],
    user: str | None,
    schema: Mapping[str, SchemaField],
    llm: LLM | None,
    prompts: Prompts,
    cache: History,
    stage: Stage,
) -> Interests:
    """The interests as far as they can be had at once: those kept of this history or its beginning, else the fields' alone.

    A conversation shows its items first; the profile is brought up to date by the next request outside of one.
    """
    if not history:
        stage.notes.append("no history")
        return NOTHING
    if llm and (
        known := cache.profile(user, [i.id for i in history], llm.key, prompts.fingerprint("interests", "refresh"))
    ):
        stage.cached = True
        return Interests.from_json(known.profile)
    return topped_up(NOTHING, history, schema, stage)


async def _write(
    history: Sequence[Item],
    former: Interests | None,
    former_ids: Sequence[str],
    llm: LLM,
    prompts: Prompts,
    deadline: Deadline,
    stage: Stage,
) -> Written:
    if former and former.profile:
        new = lines(history, start=len(former_ids))
        stage.notes.append(f"refreshed with {len(new)} new events")
        messages = prompts.render("refresh", profile=former.profile.as_json(), history=new, **_wanted(PARTS))
    else:
        messages = asked(history, prompts)
    reply = await llm.structured(messages, Written, max_tokens=MAX_TOKENS, deadline=deadline)
    stage.tokens_in += reply.usage.tokens_in
    stage.tokens_out += reply.usage.tokens_out
    if reply.broken:
        stage.degraded = reply.broken.reason
    if reply.partial:
        stage.notes.append("the answer was cut short; what was complete is used")
    return reply.value


def asked(history: Sequence[Item], prompts: Prompts, parts: Sequence[str] = PARTS) -> list[dict[str, str]]:
    """The messages that ask for these parts of what a history says (one of FORMS), nothing being known before."""
    return prompts.render("interests", history=lines(history), **_wanted(parts))


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
    return Interests(profile, queries[:N_QUERIES], named[:N_NAMED])
