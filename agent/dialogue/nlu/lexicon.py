"""The words of a catalog: which field "under two hours" speaks of, which value "romantic" means, which item a title.

Nothing here knows what the catalog holds: fields are found by their names, values and titles by how they are written.
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
"""What a number can be about, and the names of fields that hold such numbers."""
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
"""Words for widespread values that are written altogether otherwise."""
FALSE_FRIENDS = frozenset({"fantastic", "familiar", "actual", "warm", "historic"})
PARTICLES = frozenset("de di da del der den van von la le du dos ter ten bin al st mac".split())
"""With these a last name of several words begins."""
FEW = 60
"""Distinct values up to which a field sorts items into kinds (genre, language), rather than naming what is their own."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value that the catalog has: in which field, exactly how written, in how many items."""

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
        """The words of the catalog as it stands now, read once for each of its versions."""
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
        """Whether conditions can compare this field: it holds single numbers only, and not in hidden items alone."""
        return name in self.schema and self.schema[name].type in ("int", "float") and name in self.values.quantiles

    def textual(self, name: str) -> bool:
        """Whether conditions can ask this field for a text; lists of numbers in some items and of texts in others cannot be."""
        return name in self.schema and "str" in (self.schema[name].type, self.schema[name].elements)

    def find(self, words: Sequence[str]) -> list[Value]:
        """The values that these words mean, the most frequent first: written so, or a form or a short form of it."""
        key = stems(" ".join(words))
        if found := self._by_words.get(key) or self._by_words.get(stems(ALIASES.get(" ".join(words), ""))):
            return found
        if len(words) == 1:
            return self._related(words[0]) or self._shortened(re.split(r"-", words[0]))
        return self._shortened(words) if all(len(w) <= 4 for w in words) else []

    def has(self, words: Sequence[str]) -> bool:
        """Whether a value is written just so."""
        return stems(" ".join(words)) in self._by_words

    def modifies(self, word: str) -> bool:
        """Whether the word is a form of a value (romantic, animated), which adds to what was asked for before."""
        return "-" not in word and word not in ALIASES and not self.has([word]) and bool(self._related(word))

    def _related(self, word: str) -> list[Value]:
        """Values of kinds that share most of their letters with the word, from the start: romantic, Romance."""
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
        """Values of kinds whose words begin with these parts: sci-fi, Science Fiction."""
        if len(parts) < 2 or any(len(part) < 2 for part in parts):
            return []
        return [
            value
            for key, value in self._kinds
            if len(key) == len(parts) and all(word.startswith(part) for word, part in zip(key, parts, strict=True))
        ]

    def kinds_of(self, item: Item, most: int = 2) -> list[str]:
        """What kinds of thing the item is, the most telling (least frequent) first."""
        held = {
            (name, v) for name, value in item.metadata.items() for v in (value if isinstance(value, list) else [value])
        }
        found = [value for _, value in self._kinds if (value.field, value.value) in held]
        return [value.value for value in sorted(found, key=lambda value: value.count)][:most]

    def named(self, last: str) -> list[Value]:
        """The values that end in these words: people by their last names."""
        return self._last_names.get(stems(last), [])

    def role(self, roles: Iterable[str]) -> set[str]:
        """The fields whose names say one of these roles."""
        return {name for name in self.schema if any(part.startswith(tuple(roles)) for part in words_of(name))}

    @cached_property
    def titles(self) -> dict[tuple[str, ...], list[int]]:
        """The rows of each title, by its words in lower case; hidden items are not there."""
        found: dict[tuple[str, ...], list[int]] = {}
        for row, title in enumerate(self.snapshot.titles):
            if not self.snapshot.hidden[row]:
                for key in {tokens(title), tokens(re.sub(r"^(the|an?) ", "", title.lower()))}:
                    if key:
                        found.setdefault(key, []).append(row)
        return found

    def titled(self, title: str, year: int | None = None) -> str | None:
        """The id of the item of this very title; of several, or with a year given, that of (about) this year."""
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
        """The id of the item of about this title."""
        return ground(Named(title), self.snapshot).id


_known: WeakKeyDictionary[Catalog, Lexicon] = WeakKeyDictionary()


def tokens(text: str) -> tuple[str, ...]:
    """The words of a text in lower case."""
    return tuple(re.findall(r"\w+", text.lower().replace("'", "").replace("’", "")))


def stems(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, plurals made singular the same way everywhere."""
    return tuple(
        word[:-3] + "y" if word.endswith("ies") and len(word) > 4
        else word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
        for word in re.findall(r"[^\W_]+", text.casefold())
    )  # fmt: skip
