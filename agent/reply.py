"""Acting on what was understood: the items of a turn from retrieval, at once, and then the words of the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent import answering
from agent.lexicon import Lexicon
from agent.parser import Reading
from agent.recall import Said
from agent.results import Explained, Recommendation, Result, Trace
from agent.state import State
from agent.turns import Items, Understood, Words

if TYPE_CHECKING:
    from agent.recommender import AsyncRecommender

LIKED = 5
"""Items liked in the conversation that stay beside those that others are to be like."""


@dataclass(slots=True)
class Reply:
    """The answer of one turn as far as it has come: its words, its items, and the question it ends with."""

    text: str = ""
    items: list[Recommendation] = field(default_factory=list)
    question: str | None = None
    trace: Trace = field(default_factory=Trace)

    def say(self, words: str) -> Words:
        """Add words to the answer; returns them as the event that tells of them."""
        self.text += words
        return Words(words)


async def talk(
    reply: Reply,
    message: str,
    said: Reading,
    understood: Understood,
    state: State,
    lexicon: Lexicon,
    recommender: AsyncRecommender,
) -> AsyncGenerator[Items | Words, None]:
    """The answer to a question about items, or to a courtesy: from fields and trace alone."""
    catalog = recommender.catalog
    yield Items([])
    if said.intent == "chat":
        yield reply.say(answering.CHAT[said.chat or "no"])
        return
    ids = understood.mentioned or ([state.focus] if state.focus else state.last)
    if said.intent == "compare" and len(ids) < 2:
        ids = state.last
    items = list(catalog.get(ids).values())
    if not items:
        yield reply.say("I do not know which one you mean; give its title, or its number in the list.")
    elif said.intent == "why":
        row = state.reasons.get(items[0].id)
        evidence = list(catalog.get(row["evidence"]).values()) if row else []
        yield reply.say(answering.why(items[0], row, evidence, understood))
    elif said.intent == "compare":
        yield reply.say(answering.compared(message, items, lexicon))
    else:
        yield reply.say("\n".join(answering.about(message, item, lexicon) for item in items[:3]))


async def recommend(
    reply: Reply,
    said: Reading,
    understood: Understood,
    state: State,
    lexicon: Lexicon,
    recommender: AsyncRecommender,
    user: str | None,
    n: int,
) -> AsyncGenerator[Items | Words, None]:
    """Items that fulfil every condition and were not shown before, then why each; a question where one is due."""
    if said.again:
        async for event in _again(reply, state, recommender):
            yield event
        return
    asked, state.asked, state.offered = state.asked, None, None
    # A profile that is nobody's costs a request of its own and tells nothing: only a known user has one.
    history = [*state.liked[-LIKED:], *state.seeds] if state.seeds else None if user else state.liked
    excluded = {*state.shown, *state.seen, *state.disliked, *state.liked, *state.seeds}
    events = recommender.stream(
        ", ".join(state.topic) or None,
        user=user,
        history=history,
        n=n,
        where=filters(state),
        exclude=excluded,
        said=Said(_wanted(state), state.disliked, state.avoid),
    )
    async with aclosing(events):
        result = await anext(events)
        assert isinstance(result, Result)  # noqa: S101  a stream begins with it
        reply.items = list(result.items)
        reply.trace.stages += result.trace.stages
        yield Items(list(reply.items))
        # Only now: who stops before this has seen nothing.
        state.last = [r.item.id for r in reply.items] or state.last
        state.shown += [r.item.id for r in reply.items if r.item.id not in state.shown]
        state.focus = reply.items[0].item.id if len(reply.items) == 1 else None
        state.reasons |= {r.item.id: _reason(r) for r in reply.items}
        if not reply.items:
            yield reply.say(_nothing(reply, state, recommender, excluded))
            return
        titles = {id: item.title for id, item in recommender.catalog.get(state.seeds).items()}
        yield reply.say(answering.intro(len(reply.items), state, understood, titles))
        async for piece in _explained(reply, events, state):
            yield piece
    if _wide_open(state, recommender, user) and not asked and (open_question := answering.question(lexicon)):
        state.asked, reply.question = open_question
        yield reply.say(f"\n{reply.question}")


async def _explained(
    reply: Reply, events: AsyncGenerator[Result | Explained, None], state: State
) -> AsyncGenerator[Words, None]:
    """One line an item, in their order, each as soon as its explanation and those before it are there."""
    told = 0
    async for event in events:
        if not isinstance(event, Explained):
            continue
        reply.items[event.rank - 1] = replace(reply.items[event.rank - 1], explanation=event.text)
        while told < len(reply.items) and reply.items[told].explanation:
            yield reply.say(_line(reply.items[told]))
            state.reasons[reply.items[told].item.id] = _reason(reply.items[told])
            told += 1
    for one in reply.items[told:]:
        yield reply.say(_line(one))


async def _again(reply: Reply, state: State, recommender: AsyncRecommender) -> AsyncGenerator[Items | Words, None]:
    """The list shown last once more, without what has since been ruled out."""
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


def _wanted(state: State) -> list[str]:
    """The wanted values as a phrase to search by: among what passes the filter, what is most like it comes first."""
    wanted = [
        c.words for c in state.constraints if c.op in ("$contains", "$eq", "$in") and isinstance(c.value, str | list)
    ]
    return [" ".join(wanted)] if wanted else []


def _wide_open(state: State, recommender: AsyncRecommender, user: str | None) -> bool:
    """Whether nothing at all is known of what is wanted."""
    if state.constraints or state.topic or state.seeds or state.liked or state.avoid:
        return False
    return user is None or not recommender.history.positive(recommender.history.of(user))


def _nothing(reply: Reply, state: State, recommender: AsyncRecommender, excluded: Sequence[str] | set[str]) -> str:
    """Says that nothing (new) fulfils the conditions, and which one to drop."""
    catalog = recommender.catalog
    under = ", ".join(c.words for c in state.constraints)
    passing = catalog.matching(filters(state))
    if passing is None:
        return "There is nothing left to show that you have not seen; say “show those again”, or “start over”."
    head = (
        f"All that fulfils {under} has been shown or seen; say “show those again”."
        if passing
        else f"Nothing here fulfils all of: {under}."
    )
    if found := answering.relaxing(state.constraints, catalog, excluded):
        state.offered, state.asked = found[0], "relax"
        reply.question = f"Without “{found[0].words}” there would be {found[1]}: shall I drop it?"
        return f"{head} {reply.question}"
    return f"{head} Dropping one alone does not help; say “start over”, or drop several."


def _line(one: Recommendation) -> str:
    return f"\n{one.rank}. {answering.titled(one.item)}" + (f": {one.explanation}" if one.explanation else "")


def _reason(one: Recommendation) -> dict[str, Any]:
    row = one.as_json()
    return {name: row[name] for name in ("rank", "score", "channels", "explanation", "evidence")}
