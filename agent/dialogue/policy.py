"""Acting on what was understood: the items of a turn from retrieval, at once, and then the words of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.dialogue import templates
from agent.dialogue.events import Constraint, Items, Understanding, Understood, Words
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.rule_parser import Reading
from agent.dialogue.state import State
from agent.dialogue.state_tracking import follow
from agent.profile.user_history import UserHistory
from agent.ranking.feedback import Wishes
from agent.results import Explained, Profile, Recommendation, Result, Trace
from store import Catalog

if TYPE_CHECKING:
    from agent.recommender import AsyncRecommender

LIKED = 5
"""Items liked in the conversation that stay beside those that others are to be like."""


@dataclass(slots=True)
class Reply:
    """The answer of one turn: what it answers, and how far it has come."""

    message: str
    said: Reading
    understood: Understood
    state: State
    lexicon: Lexicon
    recommender: AsyncRecommender
    user: str | None
    n: int
    trace: Trace
    stored: bool = True
    text: str = ""
    items: list[Recommendation] = field(default_factory=list)
    question: str | None = None
    profile: Profile | None = None

    def say(self, words: str) -> Words:
        """Add words to the answer; returns them as the event that tells of them."""
        self.text += words
        return Words(words)


async def talk(reply: Reply) -> AsyncGenerator[Items | Words, None]:
    """The answer to a question about items, or to a courtesy: from fields and trace alone."""
    catalog, state, understood, intent = reply.recommender.catalog, reply.state, reply.understood, reply.said.intent
    yield Items([])
    if intent == "chat":
        yield reply.say(templates.CHAT[reply.said.chat or "no"])
        return
    ids = understood.mentioned or ([state.focus] if state.focus else state.last)
    if intent == "compare" and len(ids) < 2:
        ids = state.last
    items = list(catalog.get(ids).values())
    if not items:
        yield reply.say("I do not know which one you mean; give its title, or its number in the list.")
    elif intent == "why":
        row = state.reasons.get(items[0].id)
        evidence = list(catalog.get(row["evidence"]).values()) if row else []
        fulfilled = await asyncio.to_thread(_fulfilled, items[0].id, understood.constraints, catalog)
        yield reply.say(templates.why(items[0], row, evidence, fulfilled))
    elif intent == "compare":
        yield reply.say(templates.compared(reply.message, items, reply.lexicon))
    else:
        yield reply.say("\n".join(templates.about(reply.message, item, reply.lexicon) for item in items[:3]))


async def recommend(
    reply: Reply, reading: asyncio.Task[Reading | None] | None
) -> AsyncGenerator[Understanding | Items | Words, None]:
    """Items that fulfil every condition and were not shown before, then why each; a question where one is due.

    `reading` is the model's: what it adds to the parser's is acted on before the first word.
    """
    state = reply.state
    if reply.said.again:
        async for event in _again(reply):
            yield event
        return
    asked, state.asked, state.offered = state.asked, None, None
    while True:
        excluded = {*state.shown, *state.seen, *state.disliked, *state.liked, *state.seeds}
        history = await asyncio.to_thread(_history, reply)
        async with aclosing(_retrieved(reply, history, excluded)) as events:
            result = await anext(events)
            assert isinstance(result, Result)  # noqa: S101  a stream begins with it
            reply.items, reply.profile = list(result.items), result.profile
            before = state.last, state.shown, state.focus, state.reasons
            _remember(reply)
            yield Items(list(reply.items))
            more, reading = (await reading if reading else None), None
            if more:
                state.last, state.shown, state.focus, state.reasons = before
                known, added = reply.understood, follow(state, more, reply.lexicon)
                reply.understood = replace(
                    added,
                    likes=[*known.likes, *added.likes],
                    dislikes=[*known.dislikes, *added.dislikes],
                    mentioned=[*known.mentioned, *added.mentioned],
                    dropped=known.dropped,
                )
                yield Understanding(reply.understood)
                continue
            reply.trace.stages += result.trace.stages
            if not reply.items:
                yield reply.say(_nothing(reply, excluded))
                return
            titles = {id: item.title for id, item in reply.recommender.catalog.get(state.seeds).items()}
            yield reply.say(templates.intro(len(reply.items), state, reply.understood, titles))
            async for piece in _explained(reply, events):
                yield piece
            break
    # One question is help, two are an interrogation.
    if not asked and not state.questioned and _wide_open(reply) and (best := templates.question(reply.lexicon)):
        state.asked, reply.question = best
        state.questioned.append(best[0])
        yield reply.say(f"\n{reply.question}")


def _history(reply: Reply) -> list[str] | None:
    """The history to go by, or None for the user's own as it is kept, which holds what was said in a conversation that is kept."""
    state, user = reply.state, reply.user
    if state.seeds:  # items to be like stand in for the whole history
        return [*state.liked[-LIKED:], *state.seeds]
    if user is None:
        return state.liked
    if reply.stored:
        return None
    known = UserHistory.of(reply.recommender.history, reply.lexicon.snapshot, user).liked
    return [*(id for id in known if id not in state.disliked), *state.liked]


def _retrieved(
    reply: Reply, history: Sequence[str] | None, excluded: Collection[str]
) -> AsyncGenerator[Result | Explained, None]:
    """The recommender's own stream for what the conversation has come to."""
    state = reply.state
    return reply.recommender.stream(
        ", ".join(state.topic) or None,
        user=reply.user,
        history=history,
        n=reply.n,
        where=filters(state),
        exclude=excluded,
        wishes=Wishes([*_wanted(state), *_as_seeds(reply)], state.disliked, state.avoid),
    )


def _remember(reply: Reply) -> None:
    """What is shown now will not be shown again, and "the second" speaks of it."""
    state, ids = reply.state, [r.item.id for r in reply.items]
    state.last = ids or state.last
    state.shown = [*state.shown, *(id for id in ids if id not in state.shown)]
    state.focus = ids[0] if len(ids) == 1 else None
    state.reasons = state.reasons | {r.item.id: _reason(r) for r in reply.items}


async def _explained(reply: Reply, events: AsyncGenerator[Result | Explained, None]) -> AsyncGenerator[Words, None]:
    """One line an item, in their order, each as soon as its explanation and those before it are there."""
    told = 0
    async for event in events:
        if not isinstance(event, Explained):
            continue
        reply.items[event.rank - 1] = replace(reply.items[event.rank - 1], explanation=event.text)
        while told < len(reply.items) and reply.items[told].explanation:
            yield reply.say(_line(reply.items[told]))
            reply.state.reasons[reply.items[told].item.id] = _reason(reply.items[told])
            told += 1
    for one in reply.items[told:]:
        yield reply.say(_line(one))


async def _again(reply: Reply) -> AsyncGenerator[Items | Words, None]:
    """The list shown last once more, without what has since been ruled out."""
    state, recommender = reply.state, reply.recommender
    allowed = recommender.catalog.matching(filters(state))
    ids = [id for id in state.last if (allowed is None or id in allowed) and id not in state.disliked]
    items = recommender.catalog.get(ids)
    rows = [(item, state.reasons.get(id, {})) for id, item in items.items() if not item.hidden]
    reply.items = [
        Recommendation(
            i, item, row.get("score", 0.0), row.get("channels", {}), row.get("explanation", ""), row.get("evidence", [])
        )
        for i, (item, row) in enumerate(rows, 1)
    ]
    yield Items(list(reply.items))
    yield reply.say("Once more:" if reply.items else "There is nothing to show again yet.")
    for one in reply.items:
        yield reply.say(_line(one))


def filters(state: State) -> dict[str, Any] | None:
    """The conditions in force as one filter, or None."""
    return {"$and": [c.where for c in state.constraints]} if state.constraints else None


def _fulfilled(id: str, constraints: Sequence[Constraint], catalog: Catalog) -> list[Constraint]:
    """The conditions that the item fulfils: what was asked for after it was shown need not hold for it."""
    matching = [catalog.matching(c.where) for c in constraints]
    return [c for c, ids in zip(constraints, matching, strict=True) if ids is None or id in ids]


def _wanted(state: State) -> list[str]:
    """The wanted values as a phrase to search by: among what passes the filter, what is most like it comes first."""
    wanted = [
        c.words for c in state.constraints if c.op in ("$contains", "$eq", "$in") and isinstance(c.value, str | list)
    ]
    return [" ".join(wanted)] if wanted else []


def _as_seeds(reply: Reply) -> list[str]:
    """What is looked for, said of things like the seeds: "funnier" alone would find comedies of any kind."""
    state, catalog = reply.state, reply.recommender.catalog
    if not state.topic:
        return []
    kinds = [reply.lexicon.kinds_of(seed) for seed in catalog.get(state.seeds[-2:]).values()]
    return [" ".join([*state.topic, *values]) for values in kinds]


def _wide_open(reply: Reply) -> bool:
    """Whether nothing at all is known of what is wanted."""
    state, user, history = reply.state, reply.user, reply.recommender.history
    if state.constraints or state.topic or state.seeds or state.liked or state.avoid:
        return False
    return user is None or not history.positive(history.of(user))


def _nothing(reply: Reply, excluded: Collection[str]) -> str:
    """Says that nothing (new) fulfils the conditions, and which one to drop."""
    state, catalog = reply.state, reply.recommender.catalog
    under = ", ".join(c.words for c in state.constraints)
    passing = catalog.matching(filters(state))
    if passing is None:
        return "There is nothing left to show that you have not seen; say “show those again”, or “start over”."
    head = (
        f"All that fulfils {under} has been shown or seen; say “show those again”."
        if passing
        else f"Nothing here fulfils all of: {under}."
    )
    if found := templates.relaxing(state.constraints, catalog, excluded):
        state.offered, state.asked = found[0], "relax"
        reply.question = f"Without “{found[0].words}” there would be {found[1]}: shall I drop it?"
        return f"{head} {reply.question}"
    return f"{head} Dropping one alone does not help; say “start over”, or drop several."


def _line(one: Recommendation) -> str:
    return f"\n{one.rank}. {templates.titled(one.item)}" + (f": {one.explanation}" if one.explanation else "")


def _reason(one: Recommendation) -> dict[str, Any]:
    row = one.as_json()
    return {name: row[name] for name in ("rank", "score", "channels", "explanation", "evidence")}
