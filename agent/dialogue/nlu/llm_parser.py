"""The LLM parser of messages: it adds to the rule-based parser, and its output is checked against the message and the catalog.

The rules decide first and their constraints are final. The LLM is asked only about messages in which the rules left words
over, while retrieval already runs on the rules' result. So a weak or slow model delays the words of an answer a little, and the
items not at all. A constraint of the LLM counts if the catalog has its field and value and the message has its words; a title
counts if both have it; queries are taken as they are, because they can only search.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from rapidfuzz import fuzz

from agent.dialogue.events import Constraint
from agent.dialogue.nlu.comparison_words import SMALL, make_constraint
from agent.dialogue.nlu.field_values import value_constraint
from agent.dialogue.nlu.item_mentions import Mention
from agent.dialogue.nlu.lexicon import Lexicon, Value, stems
from agent.dialogue.nlu.message import Text
from agent.dialogue.nlu.rule_parser import ParsedMessage
from agent.dialogue.state import State
from agent.dialogue.units import time_unit
from agent.errors import ModelError
from agent.item_text import normalize_title
from agent.llm.client import Connect, Deadline
from agent.profile.fallback import good_queries
from agent.profile.schemas import Answer, Line, Lines
from agent.results import Stage
from prompts import Prompts
from store import Catalog

TURNS = 6
"""Latest messages in the prompt; the constraints and likes stand for earlier ones."""
TOKENS = 200
VALUES = 12
"""Most values of a field in the prompt."""
FIELDS = 8


class ParserCondition(Answer):
    """One condition as the model writes it."""

    field: Line(40)  # type: ignore[valid-type]
    op: Literal["at least", "at most", "is", "is not"] = "is"
    value: Line(60)  # type: ignore[valid-type]


class ParserOutput(Answer):
    """The model's answer to the prompt `request`."""

    intent: Literal["recommend", "refine", "critique", "ask", "compare", "why", "feedback", "chat"] = "recommend"
    constraints: list[ParserCondition] = Field(default_factory=list, max_length=5)
    queries: list[Line(100)] = Lines(0, 3)  # type: ignore[valid-type]
    likes: list[Line(80)] = Lines(0, 3)  # type: ignore[valid-type]
    dislikes: list[Line(80)] = Lines(0, 3)  # type: ignore[valid-type]


def needs_llm(parsed: ParsedMessage) -> bool:
    """Return whether the rules left words over that an LLM may understand better."""
    return bool(parsed.queries) and parsed.intent in ("recommend", "refine", "critique")


async def parse_with_llm(
    message: str,
    parsed: ParsedMessage,
    state: State,
    catalog: Catalog,
    lexicon: Lexicon,
    *,
    connect: Connect,
    prompts: Prompts,
    deadline: Deadline,
    stage: Stage,
) -> ParsedMessage | None:
    """Return what the LLM adds to the rule-based result, checked; None if that is nothing or the model failed.

    Args:
        message: the user's words.
        parsed: the rule-based result.
        state: the state of the conversation.
        catalog: the items, for the titles of liked ones.
        lexicon: the catalog's words.
        connect: returns the client of the model.
        prompts: the prompt templates.
        deadline: the time limit.
        stage: the trace's stage; it gets the tokens, the notes, and the reason of a failure.
    """
    titles = [item.title for item in catalog.get([*state.liked[-5:], *state.seeds]).values()]
    try:
        llm = await connect()
        stage.model, stage.prompt = await llm.model_name(deadline), prompts.fingerprint("request")
        messages = prompts.render(
            "request",
            fields=_describe_fields(lexicon),
            turns=[
                {"speaker": "Person" if m["role"] == "user" else "You", "text": m["content"]}
                for m in state.messages[:-1][-TURNS:]
            ],
            conditions=", ".join(c.words for c in state.constraints) or "none",
            liked=titles or "nothing yet",
            message=message,
            draft=", ".join(parsed.queries),
        )
        reply = await llm.structured(messages, ParserOutput, max_tokens=TOKENS, deadline=deadline)
    except ModelError as error:
        stage.degraded = error.reason
        return None
    stage.tokens_in += reply.usage.tokens_in
    stage.tokens_out += reply.usage.tokens_out
    return _check(reply.value, message, parsed, lexicon, stage)


def _describe_fields(lexicon: Lexicon) -> list[dict[str, Any]]:
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


def _check(
    written: ParserOutput, message: str, parsed: ParsedMessage, lexicon: Lexicon, stage: Stage
) -> ParsedMessage | None:
    added = ParsedMessage(parsed.intent, also=True)
    taken = {c.field for c in parsed.constraints}
    for one in written.constraints:
        found = check_condition(one, Text(message), lexicon)
        if found is None:
            stage.notes.append(
                f"ignored a condition of the model that the message or the catalog does not support: {one.field}"
            )
        elif found.field not in taken:
            added.constraints.append(found)
    known = {m.id for m in parsed.mentions}
    for titles, stance in ((written.likes, "seed"), (written.dislikes, "away")):
        for title in titles:
            id = lexicon.ground(title)
            if (
                id
                and id not in known
                and fuzz.partial_ratio(normalize_title(title), normalize_title(message)) >= 90
                and len(normalize_title(title)) > 3
            ):
                added.mentions.append(Mention(id, 0, 0, stance, "title"))  # type: ignore[arg-type]
    draft = {normalize_title(q) for q in parsed.queries}
    added.queries = [q for q in good_queries(written.queries, []) if normalize_title(q) not in draft]
    return added if added.constraints or added.mentions or added.queries else None


def check_condition(one: ParserCondition, text: Text, lexicon: Lexicon) -> Constraint | None:
    """Return the model's condition as a constraint, if the catalog has its field and value and the message its words; else None."""
    if lexicon.numeric(one.field):
        return _check_number(one, text, lexicon)
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
    # Whether the value is wanted is read from the message, not from the model.
    unwanted = one.op == "is not" or text.negated(places[0].start())
    return value_constraint(Value(one.field, value, counts[value]), unwanted, lexicon)


def _check_number(one: ParserCondition, text: Text, lexicon: Lexicon) -> Constraint | None:
    try:
        value = float(one.value)
    except ValueError:
        return None
    numbers = {float(n) for n in re.findall(r"\d+(?:\.\d+)?", text.lower)}
    numbers |= {float(n) for word, n in SMALL.items() if re.search(rf"\b{word}\b", text.lower) and len(word) > 2}
    kind = next((kind for kind, name in lexicon.fields.items() if name == one.field), one.field)
    if kind == "length":  # the message may give minutes or hours, and the model writes the field's unit
        per_minute = time_unit(one.field).per_minute
        numbers |= {round(n * minutes * per_minute, 4) for n in numbers for minutes in (1, 60)}
    if round(value, 4) not in numbers or not value < float("inf"):
        return None
    op = {"at least": "$gte", "at most": "$lte", "is": "$eq", "is not": "$ne"}[one.op]
    return make_constraint(kind, (op, value), lexicon)
