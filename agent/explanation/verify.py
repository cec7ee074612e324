"""The check of explanations: every name, number, year and value in a sentence must stand in the item or in its evidence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agent.explanation.evidence import Shown
from agent.item_text import normalize_title, prompt_line
from prompts.cleaning import harmless
from store import Item
from store.catalog import Field
from store.snapshot import Snapshot

RUN = 4
"""Words in a row that are no accident when another item has them too."""


class Vocabulary:
    """The names that a catalog knows: its titles and the values of its fields. Decides whether a sentence is supported."""

    def __init__(self, snapshot: Snapshot, schema: Mapping[str, Field]) -> None:
        self._titles = {title for title in map(normalize_title, snapshot.titles) if " " in title}
        self._values = {
            str(value).casefold()
            for field in schema.values()
            for value in (field.values if field.type in ("str", "list") else ())
        }
        names = (word for title in snapshot.titles for word in re.findall(r"[^\W\d_]{2,}", title))
        values = (word for value in self._values for word in value.split())
        self._name_words = {word.casefold() for word in (*names, *values)} - _COMMON

    def unsupported(self, sentence: str, shown: Shown) -> str | None:
        """Return the first title, number, name or field value in the sentence that neither item nor evidence holds, or None."""
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
        tokens = normalize_title(sentence).split()
        for n in range(2, 7):
            for i in range(len(tokens) - n + 1):
                name = " ".join(tokens[i : i + n])
                if name in self._titles and name not in normalize_title(allowed):
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
    said, rest = found.group(1).casefold(), f" {normalize_title(found.group(2))}"
    # The draft cuts long titles.
    named = [item for item in shown.evidence if f" {normalize_title(item.title)}"[:40] in rest]
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


def borrowed(sentence: str, shown: Shown, read: Mapping[str, str]) -> str | None:
    """Return words of the sentence that come from an item other than the shown one and its evidence, the sentence itself if it
    says nothing about its own item, or None.

    So a hostile text that the model repeats reaches no explanation but its own item's and those that cite it, and a sentence
    that only repeats the titles of the evidence explains nothing.

    Args:
        sentence: the model's sentence.
        shown: the item it is about, with its evidence.
        read: the words of all items that the model read, by id.
    """
    ours = {item.id: normalize_title(_all_text(item)) for item in (shown.item, *shown.evidence)}
    cited = {word for item in shown.evidence for word in normalize_title(item.title).split()}
    said = {w for w in normalize_title(sentence).split() if len(w) > 3 and w not in _COMMON}
    if not said & (set(ours[shown.item.id].split()) - cited):
        return sentence
    words = normalize_title(sentence).split()
    own, others = " ".join(ours.values()), " / ".join(said for id, said in read.items() if id not in ours)
    runs = (" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
    return next((run for run in runs if run in others and run not in own), None)


def as_read(item: Item) -> str:
    """Return the words of the item as the prompt shows them, with text that is hidden between marks or in look-alike letters."""
    row = prompt_line(0, item)
    return " / ".join(
        normalize_title(harmless(part, 160)) for part in (item.title, *row["facts"].split(";"), row["text"])
    )
