"""Explanations: one sentence for each shown item, written by the model, checked by `agent.explanation.verify`.

A sentence with a claim that neither the item nor its evidence bears out is replaced by one built from the evidence.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import ModelError
from agent.explanation.evidence import Shown
from agent.explanation.verify import Vocabulary, as_read, borrowed
from agent.item_text import descriptive_values, prompt_line, prompt_lines
from agent.llm.call import ModelCall
from prompts.themes import common
from store import Item
from store.catalog import Field

TOKENS_PER_ITEM = 35
PATIENCE = 3
"""Sentences in a row from the start that do not hold, after which the rest of the answer is not awaited."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """The person the explanations are for.

    Args:
        history: liked items, oldest first.
        summary: the profile's summary, or "".
        text: the user's own words, if any.
    """

    history: Sequence[Item]
    summary: str = ""
    text: str | None = None


async def explain(
    call: ModelCall, shown: Sequence[Shown], recipient: Recipient, vocabulary: Vocabulary, schema: Mapping[str, Field]
) -> AsyncGenerator[tuple[int, str], None]:
    """Yield (position, sentence) for every shown item, each once, as the model writes them.

    A sentence that is missing or does not hold is built from the evidence; `call.stage` counts those.

    Args:
        call: how to reach the model.
        shown: the items, in the order shown.
        recipient: the person they are shown to.
        vocabulary: the names of the catalog, which claims are checked against.
        schema: the catalog's fields.
    """
    stage, text, history = call.stage, recipient.text, recipient.history
    done: set[int] = set()
    refused = 0
    # Without history and request there is nothing that a model could say of an item.
    if not text and not any(s.evidence for s in shown):
        for position, one in enumerate(shown):
            yield position, from_evidence(one, text, schema)
        return
    try:
        llm = await call.connect()
        stage.model, stage.prompt = await llm.model_name(call.deadline), call.prompts.fingerprint("explain")
        shown_history = prompt_lines(history)
        read = {i.id: as_read(i) for i in (*(s.item for s in shown), *history[len(history) - len(shown_history) :])}
        messages = call.prompts.render(
            "explain",
            profile=recipient.summary,
            history=shown_history,
            request=text or "",
            items=[_item_line(i, s, shown_history) for i, s in enumerate(shown, 1)],
        )
        stream = llm.stream(messages, max_tokens=TOKENS_PER_ITEM * len(shown), deadline=call.deadline)
        try:
            async for label, sentence in _lines(stream):
                position = label - 1
                if position in done or not 0 <= position < len(shown):
                    continue
                one = shown[position]
                if wrong := vocabulary.unsupported(sentence, one) or borrowed(sentence, one, read):
                    stage.notes.append(f"item {label}: a sentence with {wrong!r} was replaced")
                    refused += 1
                    if refused == PATIENCE and not done:
                        break
                    continue
                done.add(position)
                yield position, sentence
                if len(done) == len(shown):
                    break
        finally:
            await stream.aclose()
            stage.tokens_in += stream.usage.tokens_in
            stage.tokens_out += stream.usage.tokens_out
    except ModelError as error:
        stage.degraded = error.reason
    left = [i for i in range(len(shown)) if i not in done]
    if left and not stage.degraded:
        stage.notes.append(f"{len(left)} of {len(shown)} explanations built from the evidence")
    for position in left:
        yield position, from_evidence(shown[position], text, schema)


def _item_line(label: int, shown: Shown, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The item as the prompt shows it, with the titles of its evidence, the one that it has most in common with first."""
    row = prompt_line(label, shown.item)
    titles = [item.title for item in shown.evidence]
    return row | {"evidence": sorted(titles, key=lambda title: -len(common(row | {"evidence": [title]}, history)))}


async def _lines(stream: AsyncIterable[str]) -> AsyncGenerator[tuple[int, str], None]:
    """The finished lines "LABEL: sentence" of a stream of text, as (label, sentence)."""
    rest = ""
    async for piece in stream:
        rest += piece
        *whole, rest = rest.split("\n")
        for text in whole:
            if parsed := _parsed(text):
                yield parsed
    if rest.rstrip().endswith((".", "!", "?", '"')) and (parsed := _parsed(rest)):
        yield parsed


def _parsed(line: str) -> tuple[int, str] | None:
    found = re.match(r"\W{0,3}(\d{1,2})\s*[:.)\-*]+\s*(\S.*)", line)
    if not found:
        return None
    sentence = " ".join(found.group(2).split())
    return (int(found.group(1)), sentence) if 12 <= len(sentence) <= 300 else None


def from_evidence(shown: Shown, text: str | None, schema: Mapping[str, Field]) -> str:
    """Return a sentence from the records: shared fields, cited history items, the user's own words, or popularity."""
    channels = shown.candidate.channels
    if shown.evidence:
        ours = descriptive_values(shown.item, schema)
        theirs = [set(descriptive_values(item, schema)) for item in shown.evidence]
        # What it shares with the one that it shares most with; another is cited only if it has all of that, too.
        shared = max(([value for value in ours if value in values] for values in theirs), key=len)[:3]
        cited = [item.title for item, values in zip(shown.evidence, theirs, strict=True) if values.issuperset(shared)]
        if shared:
            return f"Shares {_and(shared)} with {_and(cited)}."
        # Each is the one or the other, or both (`agent.retrieval.channels.evidence`).
        return f"Goes with {_and(cited)}: close in content, or chosen by the same people."
    if not channels:  # only a conversation adds such items, where too few others fulfil its conditions
        return "Fulfils what you asked for; nothing else speaks for it yet."
    if text and {"queries", "lexical"} & set(channels):
        return "Close to what you asked for."
    if set(channels) - {"popular"}:
        return "Close to what your profile describes."
    return "Popular with others; nothing you did speaks for it yet."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
