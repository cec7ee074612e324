"""Explain: one sentence for each shown item, every name, year and genre in it traced to the item or to cited history.

A sentence that mentions what neither the item nor its evidence holds is replaced by one built from the evidence.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import ModelError
from agent.item_text import descriptive, line, lines, plain
from agent.llm.client import Connect, Deadline
from agent.ranking.fusion import Candidate
from agent.results import Profile, Stage
from prompts import Prompts
from prompts.cleaning import harmless
from prompts.themes import common
from store import Item
from store.catalog import Field
from store.snapshot import Snapshot

TOKENS_PER_ITEM = 35
PATIENCE = 3
"""Sentences in a row from the start that do not hold, after which the model is not asked on: it would not do better."""
RUN = 4
"""Words in a row that are no accident when another item has them too."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An item about to be shown, with the history items that speak for it."""

    item: Item
    candidate: Candidate
    evidence: list[Item]


async def explain(
    shown: Sequence[Shown],
    *,
    history: Sequence[Item],
    profile: Profile | None,
    text: str | None,
    vocabulary: Vocabulary,
    schema: Mapping[str, Field],
    connect: Connect,
    prompts: Prompts,
    deadline: Deadline,
    stage: Stage,
) -> AsyncGenerator[tuple[int, str], None]:
    """Yields (position, sentence) for every shown item, each once, as the model writes them.

    What the model leaves out, or gets wrong, is built from the evidence; `stage` counts it.
    """
    done: set[int] = set()
    refused = 0
    # With neither history nor request behind an item there is nothing a model could say of it.
    if not text and not any(s.evidence for s in shown):
        for position, one in enumerate(shown):
            yield position, from_evidence(one, text, schema)
        return
    try:
        llm = await connect()
        stage.model, stage.prompt = await llm.model_name(deadline), prompts.fingerprint("explain")
        told = lines(history)
        read = {i.id: _as_read(i) for i in (*(s.item for s in shown), *history[len(history) - len(told) :])}
        messages = prompts.render(
            "explain",
            profile=profile.summary if profile else "",
            history=told,
            request=text or "",
            items=[_told(i, s, told) for i, s in enumerate(shown, 1)],
        )
        stream = llm.stream(messages, max_tokens=TOKENS_PER_ITEM * len(shown), deadline=deadline)
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


def _told(label: int, shown: Shown, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The item as the prompt takes it, with the titles of its evidence: first the one it has most in common with, for the draft."""
    told = line(label, shown.item)
    titles = [item.title for item in shown.evidence]
    return told | {"evidence": sorted(titles, key=lambda title: -len(common(told | {"evidence": [title]}, history)))}


def borrowed(sentence: str, shown: Shown, read: Mapping[str, str]) -> str | None:
    """Words of the sentence that come from an item other than the shown one and its evidence, or the sentence itself if it says
    nothing of its own item. `read`: the words of all items that the model read, by id.

    So a text that talks the model into repeating it spoils no explanation but its own item's and those that it is evidence for,
    and one that only repeats the titles of the evidence explains nothing.
    """
    ours = {item.id: plain(_all_text(item)) for item in (shown.item, *shown.evidence)}
    cited = {word for item in shown.evidence for word in plain(item.title).split()}
    said = {w for w in plain(sentence).split() if len(w) > 3 and w not in _COMMON}
    if not said & (set(ours[shown.item.id].split()) - cited):
        return sentence
    words = plain(sentence).split()
    own, others = " ".join(ours.values()), " / ".join(said for id, said in read.items() if id not in ours)
    runs = (" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
    return next((run for run in runs if run in others and run not in own), None)


def _as_read(item: Item) -> str:
    """The words of the item as the prompt has them: text that is hidden between marks, or in letters of another kind, too."""
    told = line(0, item)
    return " / ".join(plain(harmless(part, 160)) for part in (item.title, *told["facts"].split(";"), told["text"]))


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
    """A plain sentence from what is known: shared fields, the history that speaks for it, the request's words, or popularity."""
    channels = shown.candidate.channels
    if shown.evidence:
        ours = descriptive(shown.item, schema)
        theirs = [set(descriptive(item, schema)) for item in shown.evidence]
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


class Vocabulary:
    """The names a catalog knows: its titles and the values of its fields. Decides whether a sentence is supported."""

    def __init__(self, snapshot: Snapshot, schema: Mapping[str, Field]) -> None:
        self._titles = {title for title in map(plain, snapshot.titles) if " " in title}
        self._values = {
            str(value).casefold()
            for field in schema.values()
            for value in (field.values if field.type in ("str", "list") else ())
        }
        names = (word for title in snapshot.titles for word in re.findall(r"[^\W\d_]{2,}", title))
        values = (word for value in self._values for word in value.split())
        self._name_words = {word.casefold() for word in (*names, *values)} - _COMMON

    def unsupported(self, sentence: str, shown: Shown) -> str | None:
        """The first item name, year, person or genre in the sentence that neither item nor evidence holds; else None."""
        allowed = " ".join(_all_text(item) for item in (shown.item, *shown.evidence)).casefold()
        words = set(re.findall(r"\w+", allowed))
        years = {int(w) for w in words if re.fullmatch(r"(1[89]|20)\d\d", w)}
        for number, decade in re.findall(r"(\d+)(s?)", sentence):
            if number not in words and not (decade and any(y // 10 * 10 == int(number) for y in years)):
                return number + decade
        if wrong := self._wrong_name(sentence, words) or _not_shared(sentence, shown):
            return wrong
        lower = sentence.casefold()
        for value in self._values:
            if value in lower and value not in allowed and re.search(rf"\b{re.escape(value)}\b", lower):
                return value
        tokens = plain(sentence).split()
        for n in range(2, 7):
            for i in range(len(tokens) - n + 1):
                name = " ".join(tokens[i : i + n])
                if name in self._titles and name not in plain(allowed):
                    return name
        return None

    def _wrong_name(self, sentence: str, words: set[str]) -> str | None:
        """A capitalised word that the allowed text lacks; at a sentence's start only if the catalog knows it as part of a name."""
        for found in re.finditer(r"[^\W\d_][\w]*", sentence):
            word = found.group()
            plain_word = word.casefold()
            if not word[0].isupper() or plain_word in words or plain_word in _COMMON:
                continue
            starts = not sentence[: found.start()].strip() or sentence[: found.start()].rstrip()[-1] in ".!?:"
            if not starts or plain_word in self._name_words:
                return word
        return None


def _not_shared(sentence: str, shown: Shown) -> str | None:
    """The first value in a sentence like "It shares Crime with Heat." that the item, or one of the evidence named there, lacks."""
    found = re.search(r"\bshares?\b(.+?)\bwith\b(.+)", sentence, re.IGNORECASE)
    if not found:
        return None
    said, rest = found.group(1).casefold(), f" {plain(found.group(2))}"
    # The draft cuts long titles.
    named = [item for item in shown.evidence if f" {plain(item.title)}"[:40] in rest]
    texts = [_all_text(item).casefold() for item in (shown.item, *named)]
    for value in (str(v).casefold() for item in (shown.item, *shown.evidence) for v in _values(item)):
        if re.search(rf"\b{re.escape(value)}\b", said) and not all(value in text for text in texts):
            return value
    return None


def _all_text(item: Item) -> str:
    return " ".join([item.title, item.text, *map(str, _values(item))])


def _values(item: Item) -> list[Any]:
    return [v for value in item.metadata.values() for v in (value if isinstance(value, list) else [value])]


_COMMON = frozenset(
    "a about all also an and another any as at because both but by can each every fans fits for from great has have he her his"
    " how i if in is it its like liked likes love loved loves more much no not of on one or our perfect same shares she similar"
    " since so some that the their them then there these they this those to too we what when where which while who why will"
    " with you your".split()
)
