"""Dialogue policy: act on a parsed message. Items come first, straight from retrieval, then the words of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from agent.dialogue import templates
from agent.dialogue.backend import Backend
from agent.dialogue.events import Constraint, Interpretation, Items, Understanding, Words
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.rule_parser import ParsedMessage
from agent.dialogue.state import State
from agent.dialogue.state_tracking import update_state
from agent.profile.user_history import UserHistory
from agent.ranking.feedback import Wishes
from agent.results import Explained, Profile, Recommendation, Result, Trace
from store import Catalog

RECENT_LIKES = 5
"""Items liked in the conversation that join the seeds in the history to search by."""


@dataclass(slots=True)
class TurnDraft:
    """The answer of one turn while it is made.

    message, parsed, understood: the message, as the parser reads it, and its interpretation.
    state, lexicon, backend: the state of the conversation, the catalog's words, the recommender.
    user, n, stored: whose conversation it is, how many items to show, and whether the conversation is stored.
    trace, text, items, question, profile: the answer so far.
    """

    message: str
    parsed: ParsedMessage
    understood: Interpretation
    state: State
    lexicon: Lexicon
    backend: Backend
    user: str | None
    n: int
    trace: Trace
    stored: bool = True
    text: str = ""
    items: list[Recommendation] = field(default_factory=list)
    question: str | None = None
    profile: Profile | None = None

    def say(self, words: str) -> Words:
        """Append words to the answer and return them as an event."""
        self.text += words
        return Words(words)


async def answer_question(draft: TurnDraft) -> AsyncGenerator[Items | Words, None]:
    """Answer a question about items, or small talk, from the catalog's fields and the state alone."""
    catalog, state, understood, intent = draft.backend.catalog, draft.state, draft.understood, draft.parsed.intent
    yield Items([])
    if intent == "chat":
        yield draft.say(templates.CHAT[draft.parsed.chat or "no"])
        return
    ids = understood.mentioned or ([state.focus] if state.focus else state.last)
    if intent == "compare" and len(ids) < 2:
        ids = state.last
    items = list(catalog.get(ids).values())
    if not items:
        yield draft.say("I do not know which one you mean; give its title, or its number in the list.")
    elif intent == "why":
        reason = state.reasons.get(items[0].id)
        evidence = list(catalog.get(reason["evidence"]).values()) if reason else []
        fulfilled = await asyncio.to_thread(_select_fulfilled, items[0].id, understood.constraints, catalog)
        yield draft.say(templates.explain_why(items[0], reason, evidence, fulfilled))
    elif intent == "compare":
        yield draft.say(templates.compare(draft.message, items, draft.lexicon))
    else:
        yield draft.say("\n".join(templates.describe(draft.message, item, draft.lexicon) for item in items[:3]))


async def recommend(
    draft: TurnDraft, llm_parsed: asyncio.Task[ParsedMessage | None] | None
) -> AsyncGenerator[Understanding | Items | Words, None]:
    """Show new items that fulfil every constraint, explain each, and ask a question if nothing is known of the user.

    `llm_parsed` is the running LLM parser, if any. If it adds to the message, retrieval runs again before the first word.
    """
    state = draft.state
    if draft.parsed.again:
        async for event in _show_again(draft):
            yield event
        return
    asked, state.asked, state.offered = state.asked, None, None
    while True:
        excluded = {*state.shown, *state.seen, *state.disliked, *state.liked, *state.seeds}
        history = await asyncio.to_thread(_choose_history, draft)
        async with aclosing(_retrieve(draft, history, excluded)) as events:
            result = await anext(events)
            assert isinstance(result, Result)  # noqa: S101  a stream begins with it
            draft.items, draft.profile = list(result.items), result.profile
            before = state.last, state.shown, state.focus, state.reasons
            _remember_shown(draft)
            yield Items(list(draft.items))
            more, llm_parsed = (await llm_parsed if llm_parsed else None), None
            if more:
                state.last, state.shown, state.focus, state.reasons = before
                first, added = draft.understood, update_state(state, more, draft.lexicon)
                draft.understood = replace(
                    added,
                    likes=[*first.likes, *added.likes],
                    dislikes=[*first.dislikes, *added.dislikes],
                    mentioned=[*first.mentioned, *added.mentioned],
                    dropped=first.dropped,
                )
                yield Understanding(draft.understood)
                continue
            draft.trace.stages += result.trace.stages
            if not draft.items:
                yield draft.say(_explain_empty_list(draft, excluded))
                return
            titles = {id: item.title for id, item in draft.backend.catalog.get(state.seeds).items()}
            yield draft.say(templates.introduce(len(draft.items), state, draft.understood, titles))
            async for piece in _list_items(draft, events):
                yield piece
            break
    # One question helps; a second would be an interrogation.
    if (
        not asked
        and not state.questioned
        and _knows_nothing(draft)
        and (best := templates.choose_question(draft.lexicon))
    ):
        state.asked, draft.question = best
        state.questioned.append(best[0])
        yield draft.say(f"\n{draft.question}")


def _choose_history(draft: TurnDraft) -> list[str] | None:
    """Return the item ids to retrieve by, or None for the user's stored history.

    A stored conversation writes its likes to that history, so None covers them.
    """
    state, user = draft.state, draft.user
    if state.seeds:  # the user asks for items similar to these, so the rest of the history does not count
        return [*state.liked[-RECENT_LIKES:], *state.seeds]
    if user is None:
        return state.liked
    if draft.stored:
        return None
    liked = UserHistory.of(draft.backend.history, draft.lexicon.snapshot, user).liked
    return [*(id for id in liked if id not in state.disliked), *state.liked]


def _retrieve(
    draft: TurnDraft, history: Sequence[str] | None, excluded: Collection[str]
) -> AsyncGenerator[Result | Explained, None]:
    """Return the recommender's stream for the state of the conversation."""
    state = draft.state
    return draft.backend.stream(
        ", ".join(state.topic) or None,
        user=draft.user,
        history=history,
        n=draft.n,
        where=build_filter(state),
        exclude=excluded,
        wishes=Wishes([*_value_queries(state), *_topic_queries(draft)], state.disliked, state.avoid),
    )


def _remember_shown(draft: TurnDraft) -> None:
    """Note the items as shown: they are not shown again, and "the second" refers to this list."""
    state, ids = draft.state, [r.item.id for r in draft.items]
    state.last = ids or state.last
    state.shown = [*state.shown, *(id for id in ids if id not in state.shown)]
    state.focus = ids[0] if len(ids) == 1 else None
    state.reasons = state.reasons | {r.item.id: _provenance(r) for r in draft.items}


async def _list_items(
    draft: TurnDraft, events: AsyncGenerator[Result | Explained, None]
) -> AsyncGenerator[Words, None]:
    """Write one line for each item in order, each as soon as its explanation and all earlier ones are there."""
    written = 0
    async for event in events:
        if not isinstance(event, Explained):
            continue
        draft.items[event.rank - 1] = replace(draft.items[event.rank - 1], explanation=event.text)
        while written < len(draft.items) and draft.items[written].explanation:
            yield draft.say(_format_line(draft.items[written]))
            draft.state.reasons[draft.items[written].item.id] = _provenance(draft.items[written])
            written += 1
    for one in draft.items[written:]:
        yield draft.say(_format_line(one))


async def _show_again(draft: TurnDraft) -> AsyncGenerator[Items | Words, None]:
    """Show the last list again, without items that were disliked or excluded by a constraint since."""
    state, catalog = draft.state, draft.backend.catalog
    allowed = catalog.matching(build_filter(state))
    ids = [id for id in state.last if (allowed is None or id in allowed) and id not in state.disliked]
    rows = [(item, state.reasons.get(id, {})) for id, item in catalog.get(ids).items() if not item.hidden]
    draft.items = [
        Recommendation(
            i,
            item,
            row.get("score", 0.0),
            row.get("channels", {}),
            row.get("explanation", ""),
            tuple(row.get("evidence", ())),
            row.get("contributions", {}),
        )
        for i, (item, row) in enumerate(rows, 1)
    ]
    yield Items(list(draft.items))
    yield draft.say("Once more:" if draft.items else "There is nothing to show again yet.")
    for one in draft.items:
        yield draft.say(_format_line(one))


def build_filter(state: State) -> dict[str, Any] | None:
    """Return the active constraints as one filter, or None if there are none."""
    return {"$and": [c.where for c in state.constraints]} if state.constraints else None


def _select_fulfilled(id: str, constraints: Sequence[Constraint], catalog: Catalog) -> list[Constraint]:
    """Return the constraints that the item fulfils: those added after it was shown need not hold for it."""
    matching = [catalog.matching(c.where) for c in constraints]
    return [c for c, ids in zip(constraints, matching, strict=True) if ids is None or id in ids]


def _value_queries(state: State) -> list[str]:
    """Return the wanted field values as a query, so that of the items that pass the filter the most typical rank first."""
    wanted = [
        c.words for c in state.constraints if c.op in ("$contains", "$eq", "$in") and isinstance(c.value, str | list)
    ]
    return [" ".join(wanted)] if wanted else []


def _topic_queries(draft: TurnDraft) -> list[str]:
    """Return the topic joined with the kinds of the last seeds: "funnier" alone would find comedies of any kind."""
    state, catalog = draft.state, draft.backend.catalog
    if not state.topic:
        return []
    kinds = [draft.lexicon.kinds_of(seed) for seed in catalog.get(state.seeds[-2:]).values()]
    return [" ".join([*state.topic, *values]) for values in kinds]


def _knows_nothing(draft: TurnDraft) -> bool:
    """Return whether neither the conversation nor a history tells anything of the user's taste."""
    state, user, history = draft.state, draft.user, draft.backend.history
    if state.constraints or state.topic or state.seeds or state.liked or state.avoid:
        return False
    return user is None or not history.positive(history.of(user))


def _explain_empty_list(draft: TurnDraft, excluded: Collection[str]) -> str:
    """Return why no item is left to show, and offer to drop the constraint whose removal frees the most items."""
    state, catalog = draft.state, draft.backend.catalog
    under = ", ".join(c.words for c in state.constraints)
    passing = catalog.matching(build_filter(state))
    if passing is None:
        return "Everything here was already shown or seen; say “show those again”, or “start over”."
    head = (
        f"Everything that fulfils {under} was already shown or seen; say “show those again”."
        if passing
        else f"Nothing here fulfils all of: {under}."
    )
    if found := templates.find_constraint_to_drop(state.constraints, catalog, excluded):
        state.offered, state.asked = found[0], "relax"
        # `agent.dialogue.from_messages` finds the offer by these words.
        draft.question = f"Without “{found[0].words}” there would be {found[1]}: shall I drop it?"
        return f"{head} {draft.question}"
    return f"{head} Dropping one of them is not enough; say “start over”, or drop several."


def _format_line(one: Recommendation) -> str:
    return f"\n{one.rank}. {templates.title_with_year(one.item)}" + (f": {one.explanation}" if one.explanation else "")


def _provenance(one: Recommendation) -> dict[str, Any]:
    row = one.as_json()
    return {name: row[name] for name in ("rank", "score", "channels", "contributions", "explanation", "evidence")}
