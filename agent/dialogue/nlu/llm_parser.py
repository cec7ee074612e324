"""The model's reading of a message, beside the parser's: what it adds counts only as far as message and catalog bear it out.

The parser decides at once and its conditions stand. The model is asked only about messages that leave words over, while
retrieval already runs on the parser's reading: a weak or slow model then delays the words of an answer a little, and the items
not at all. A condition of the model's needs a field and a value of the catalog and must be found in the words of the message;
a title must be in both; phrases to search by are taken as they are, for they can only search.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field
from rapidfuzz import fuzz

from agent.dialogue.events import Constraint
from agent.dialogue.nlu.comparison_words import SMALL, made
from agent.dialogue.nlu.field_values import condition
from agent.dialogue.nlu.item_mentions import Mention
from agent.dialogue.nlu.lexicon import Lexicon, Value, stems
from agent.dialogue.nlu.message import Text
from agent.dialogue.nlu.rule_parser import Reading
from agent.dialogue.state import State
from agent.errors import ModelError
from agent.item_text import plain
from agent.llm.client import Connect, Deadline
from agent.profile.fallback import good_queries
from agent.profile.schemas import ASKED, Line, Lines
from agent.results import Stage
from prompts import Prompts
from store import Catalog

TURNS = 6
"""Messages that the model is shown word by word; what came before is in the conditions and likes."""
TOKENS = 200
VALUES = 12
"""Values of a field that the model is shown."""
FIELDS = 8


class ReadCondition(BaseModel):
    """One condition as the model writes it."""

    model_config = ASKED
    field: Line(40)  # type: ignore[valid-type]
    op: Literal["at least", "at most", "is", "is not"] = "is"
    value: Line(60)  # type: ignore[valid-type]


class Read(BaseModel):
    """The whole answer of the request prompt."""

    model_config = ASKED
    intent: Literal["recommend", "refine", "critique", "ask", "compare", "why", "feedback", "chat"] = "recommend"
    constraints: list[ReadCondition] = Field(default_factory=list, max_length=5)
    queries: list[Line(100)] = Lines(0, 3)  # type: ignore[valid-type]
    likes: list[Line(80)] = Lines(0, 3)  # type: ignore[valid-type]
    dislikes: list[Line(80)] = Lines(0, 3)  # type: ignore[valid-type]


def worth_reading(said: Reading) -> bool:
    """Whether the parser left words over that a model might make more of."""
    return bool(said.queries) and said.intent in ("recommend", "refine", "critique")


async def read(
    message: str,
    said: Reading,
    state: State,
    catalog: Catalog,
    lexicon: Lexicon,
    *,
    connect: Connect,
    prompts: Prompts,
    deadline: Deadline,
    stage: Stage,
) -> Reading | None:
    """What the model's reading adds to the parser's, checked; None where that is nothing, or the model failed (`stage` says so)."""
    titles = [item.title for item in catalog.get([*state.liked[-5:], *state.seeds]).values()]
    try:
        llm = await connect()
        stage.model, stage.prompt = await llm.model_name(deadline), prompts.fingerprint("request")
        messages = prompts.render(
            "request",
            fields=_fields(lexicon),
            turns=[
                {"speaker": "Person" if m["role"] == "user" else "You", "text": m["content"]}
                for m in state.messages[:-1][-TURNS:]
            ],
            conditions=", ".join(c.words for c in state.constraints) or "none",
            liked=titles or "nothing yet",
            message=message,
            draft=", ".join(said.queries),
        )
        reply = await llm.structured(messages, Read, max_tokens=TOKENS, deadline=deadline)
    except ModelError as error:
        stage.degraded = error.reason
        return None
    stage.tokens_in += reply.usage.tokens_in
    stage.tokens_out += reply.usage.tokens_out
    return _checked(reply.value, message, said, lexicon, stage)


def _fields(lexicon: Lexicon) -> list[dict[str, Any]]:
    rows = []
    for name, field in list(lexicon.schema.items())[:FIELDS]:
        values: Sequence[str] = list(field.values)[:VALUES]
        rows.append(
            {
                "name": name,
                "holds": values or [f"{field.low:g} to {field.high:g}" if field.low is not None else "yes or no"],
            }
        )
    return rows


def _checked(written: Read, message: str, said: Reading, lexicon: Lexicon, stage: Stage) -> Reading | None:
    added = Reading(said.intent, also=True)
    taken = {c.field for c in said.constraints}
    for one in written.constraints:
        found = _condition(one, Text(message), lexicon)
        if found is None:
            stage.notes.append(
                f"a condition of the model's that the message or the catalog does not bear out: {one.field}"
            )
        elif found.field not in taken:
            added.constraints.append(found)
    known = {m.id for m in said.mentions}
    for titles, stance in ((written.likes, "seed"), (written.dislikes, "away")):
        for title in titles:
            id = lexicon.ground(title)
            if (
                id
                and id not in known
                and fuzz.partial_ratio(plain(title), plain(message)) >= 90
                and len(plain(title)) > 3
            ):
                added.mentions.append(Mention(id, 0, 0, stance, "title"))  # type: ignore[arg-type]
    draft = {plain(q) for q in said.queries}
    added.queries = [q for q in good_queries(written.queries, []) if plain(q) not in draft]
    return added if added.constraints or added.mentions or added.queries else None


def _condition(one: ReadCondition, text: Text, lexicon: Lexicon) -> Constraint | None:
    """The condition, where the catalog has its field and value and the message its words."""
    if lexicon.numeric(one.field):
        return _number(one, text, lexicon)
    if not lexicon.textual(one.field):
        return None
    counts: Mapping[str, int] = lexicon.values.strings.get(one.field, {})
    value = next((v for v in counts if v.casefold() == one.value.casefold()), None)
    if value is None or one.op not in ("is", "is not"):
        return None
    words = set(stems(value))
    places = [m for m in re.finditer(r"[^\W_]+", text.lower) if words & set(stems(m.group()))]
    if not places:
        return None
    # The message, not the model, says whether it is wanted.
    unwanted = one.op == "is not" or text.negated(places[0].start())
    return condition(Value(one.field, value, counts[value]), unwanted, lexicon)


def _number(one: ReadCondition, text: Text, lexicon: Lexicon) -> Constraint | None:
    try:
        value = float(one.value)
    except ValueError:
        return None
    said = {float(n) for n in re.findall(r"\d+(?:\.\d+)?", text.lower)}
    said |= {float(n) for word, n in SMALL.items() if re.search(rf"\b{word}\b", text.lower) and len(word) > 2}
    if not ({value, value / 60} & said) or not value < float("inf"):
        return None
    op = {"at least": "$gte", "at most": "$lte", "is": "$eq", "is not": "$ne"}[one.op]
    kind = next((kind for kind, name in lexicon.fields.items() if name == one.field), one.field)
    return made(kind, (op, value), lexicon)
