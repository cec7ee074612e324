"""The words of a catalog: the field that "under two hours" refers to, the value that "romantic" means, the item of a title.

No field or value is built in: fields are found by their names, values and titles by their spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

from agent.dialogue.units import words_of
from agent.results import Named
from agent.retrieval.grounding import ground
from store import Catalog, Item
from store.catalog import Field
from store.field_values import Values
from store.snapshot import Snapshot

KINDS = {
    "time": "year date released release published publication vintage",
    "length": "runtime duration length minutes hours running playtime",
    "price": "price cost",
    "rating": "rating score stars grade",
    "pages": "pages pagecount",
    "weight": "weight",
    "size": "size",
}
"""Kinds of numbers, and words in the names of fields that hold them."""
MAKERS = (
    "director",
    "author",
    "writer",
    "artist",
    "creator",
    "maker",
    "brand",
    "publisher",
    "composer",
    "designer",
    "by",
)
PLAYERS = ("cast", "actor", "star", "performer", "player", "featur", "narrator")
ALIASES = {
    "american": "united states", "usa": "united states", "british": "united kingdom", "uk": "united kingdom",
    "scifi": "science fiction", "sf": "science fiction", "kids": "family", "kid": "family",
}  # fmt: skip
"""Common words for values of another spelling."""
FALSE_FRIENDS = frozenset({"fantastic", "familiar", "actual", "warm", "historic"})
PARTICLES = frozenset("de di da del der den van von la le du dos ter ten bin al st mac".split())
"""First words of last names that have several."""
FEW = 60
"""Most distinct values of a field that sorts items into kinds (genre, language)."""


@dataclass(frozen=True, slots=True)
class Value:
    """A field value of the catalog: the field, the exact spelling, the number of items that have it."""

    field: str
    value: str
    count: int


@dataclass(frozen=True)
class Lexicon:
    """The fields, values and titles of one version of a catalog."""

    version: str
    schema: Mapping[str, Field]
    values: Values
    snapshot: Snapshot
    fields: dict[str, str] = field(default_factory=dict)
    _by_words: dict[tuple[str, ...], list[Value]] = field(default_factory=dict)
    _kinds: list[tuple[tuple[str, ...], Value]] = field(default_factory=list)
    _single: dict[str, list[Value]] = field(default_factory=dict)
    _last_names: dict[tuple[str, ...], list[Value]] = field(default_factory=dict)

    @classmethod
    def of(cls, catalog: Catalog) -> Lexicon:
        """Return the words of the catalog's current version, read once for each version."""
        known = _known.get(catalog)
        if known is None or known.version != catalog.version:
            known = _known[catalog] = cls._read(catalog)
        return known

    @classmethod
    def _read(cls, catalog: Catalog) -> Lexicon:
        schema = catalog.schema()
        made = cls(catalog.version, schema, Values.of(catalog), catalog.snapshot())
        for kind, names in KINDS.items():
            fitting = [name for name in schema if made.numeric(name) and set(words_of(name)) & set(names.split())]
            if fitting:
                made.fields[kind] = max(fitting, key=lambda name: schema[name].count)
        for name, counts in made.values.strings.items():
            if made.textual(name):
                made._add(name, counts)
        for found in (*made._by_words.values(), *made._last_names.values()):
            found.sort(key=lambda value: -value.count)
        return made

    def _add(self, name: str, counts: Mapping[str, int]) -> None:
        for value, count in counts.items():
            key = stems(value)
            if not key or len(key) > 6 or len(value) > 60:
                continue
            one = Value(name, value, count)
            self._by_words.setdefault(key, []).append(one)
            if len(counts) <= FEW:
                self._kinds.append((key, one))
            if len(counts) <= FEW and len(key) == 1:
                self._single.setdefault(key[0], []).append(one)
            if len(counts) > FEW and len(key) > 1:
                particle = next((at for at, word in enumerate(key[1:], 1) if word in PARTICLES), len(key) - 1)
                for last in {key[-1:], key[particle:]}:
                    self._last_names.setdefault(last, []).append(one)

    def numeric(self, name: str) -> bool:
        """Return whether constraints can compare this field: it holds single numbers only, and not only in hidden items."""
        return name in self.schema and self.schema[name].type in ("int", "float") and name in self.values.quantiles

    def textual(self, name: str) -> bool:
        """Return whether constraints can ask this field for a text: it holds texts, or lists with a text in some item."""
        return name in self.schema and "str" in (self.schema[name].type, self.schema[name].elements)

    def find(self, words: Sequence[str]) -> list[Value]:
        """Return the values that these words mean, the most frequent first: spelled so, inflected or shortened."""
        key = stems(" ".join(words))
        if found := self._by_words.get(key) or self._by_words.get(stems(ALIASES.get(" ".join(words), ""))):
            return found
        if len(words) == 1:
            return self._related(words[0]) or self._shortened(re.split(r"-", words[0]))
        return self._shortened(words) if all(len(w) <= 4 for w in words) else []

    def has(self, words: Sequence[str]) -> bool:
        """Return whether a value has exactly these words, in the singular or the plural."""
        return stems(" ".join(words)) in self._by_words

    def modifies(self, word: str) -> bool:
        """Return whether the word is an inflected value (romantic, animated), which adds to earlier values."""
        return "-" not in word and word not in ALIASES and not self.has([word]) and bool(self._related(word))

    def _related(self, word: str) -> list[Value]:
        """Return the kinds that share most of their first letters with the word: Romance for romantic."""
        stem = "".join(stems(word))
        if "-" in word or len(stem) < 5 or stem in FALSE_FRIENDS:
            return []
        best: list[tuple[float, Value]] = []
        for other, values in self._single.items():
            shared = next(
                (i for i, (a, b) in enumerate(zip(stem, other, strict=False)) if a != b), min(len(stem), len(other))
            )
            if shared >= 5 and shared >= 0.6 * max(len(stem), len(other)):
                best += [(shared, value) for value in values]
        return [value for _, value in sorted(best, key=lambda entry: (-entry[0], -entry[1].count))]

    def _shortened(self, parts: Sequence[str]) -> list[Value]:
        """Return the kinds whose words begin with these parts: Science Fiction for sci-fi."""
        if len(parts) < 2 or any(len(part) < 2 for part in parts):
            return []
        return [
            value
            for key, value in self._kinds
            if len(key) == len(parts) and all(word.startswith(part) for word, part in zip(key, parts, strict=True))
        ]

    def kinds_of(self, item: Item, most: int = 2) -> list[str]:
        """Return the item's kinds, the most specific (least frequent) first, at most `most`."""
        held = {
            (name, v) for name, value in item.metadata.items() for v in (value if isinstance(value, list) else [value])
        }
        found = [value for _, value in self._kinds if (value.field, value.value) in held]
        return [value.value for value in sorted(found, key=lambda value: value.count)][:most]

    def find_by_last_name(self, last: str) -> list[Value]:
        """Return the values that end in these words: people by their last name."""
        return self._last_names.get(stems(last), [])

    def fields_of_role(self, roles: Iterable[str]) -> set[str]:
        """Return the fields whose names contain one of these roles."""
        return {name for name in self.schema if any(part.startswith(tuple(roles)) for part in words_of(name))}

    @cached_property
    def titles(self) -> dict[tuple[str, ...], list[int]]:
        """The rows of each title, by its words in lower case, without hidden items."""
        found: dict[tuple[str, ...], list[int]] = {}
        for row, title in enumerate(self.snapshot.titles):
            if not self.snapshot.hidden[row]:
                for key in {tokens(title), tokens(re.sub(r"^(the|an?) ", "", title.lower()))}:
                    if key:
                        found.setdefault(key, []).append(row)
        return found

    def find_title(self, title: str, year: int | None = None) -> str | None:
        """Return the id of the item with exactly this title, or None. A year, off by one at most, decides between several."""
        rows = self.titles.get(tokens(title), [])
        if year is not None:
            near = [
                row
                for row in rows
                if re.fullmatch(r"\d{4}", facet := self.snapshot.facets[row]) and abs(int(facet) - year) < 2
            ]
            rows = near or (rows if len(rows) == 1 else [])
        return self.snapshot.ids[rows[0]] if rows else None

    def ground(self, title: str) -> str | None:
        """Return the id of the item whose title is close to this one, or None."""
        return ground(Named(title), self.snapshot).id


_known: WeakKeyDictionary[Catalog, Lexicon] = WeakKeyDictionary()


def tokens(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case."""
    return tuple(re.findall(r"\w+", text.lower().replace("'", "").replace("’", "")))


def stems(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, with plurals made singular by one rule."""
    return tuple(
        word[:-3] + "y" if word.endswith("ies") and len(word) > 4
        else word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
        for word in re.findall(r"[^\W_]+", text.casefold())
    )  # fmt: skip
