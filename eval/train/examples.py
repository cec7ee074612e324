"""What samples for the language model are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.facts import descriptive
from agent.interests import asked_trained
from eval.arms import Bench
from eval.train.lora import Sample
from eval.train.pairs import AHEAD, Pair
from prompts import Prompts
from prompts.cleaning import harmless
from store import Catalog, Item
from store.catalog import Field
from store.snapshot import Snapshot

WORDS = 40
"""Characters of a search: long ones take time to write, and find no more."""
CHOSEN = 3
"""How many of an example's items are those chosen next."""
_BATCH = 256


@dataclass(frozen=True)
class Examples:
    """What samples are made of: the catalog, its prompts, and `base` fitted before the cut."""

    catalog: Catalog
    prompts: Prompts
    bench: Bench
    items: Mapping[str, Item]
    schema: Mapping[str, Field]

    @classmethod
    def of(cls, catalog: Catalog, prompts: Prompts, bench: Bench) -> Examples:
        """The examples of a whole catalog."""
        return cls(catalog, prompts, bench, catalog.get(catalog.snapshot().ids), catalog.schema())

    @property
    def snapshot(self) -> Snapshot:
        """The catalog's rows."""
        return self.catalog.snapshot()

    def item(self, row: int) -> Item:
        """The item of a snapshot row."""
        return self.items[self.snapshot.ids[row]]

    def asked(self, pair: Pair, part: str) -> list[dict[str, str]]:
        """The prompt for one part of what a trained model writes."""
        return asked_trained([self.item(row) for row in pair.history], self.prompts, part)

    def fused(self, pairs: Sequence[Pair], k: int) -> list[list[int]]:
        """The k rows that `base` brings for each history."""
        found: list[list[int]] = []
        for start in range(0, len(pairs), _BATCH):
            histories = [np.array(pair.history) for pair in pairs[start : start + _BATCH]]
            found += self.bench.rank(["base"], histories, k)["base"]
        return found

    def example(self, pair: Pair, fused: Sequence[int], part: str) -> Sample:
        """What was chosen next, filled up with what `base` brings for the history: what one person happened to choose is hardly to
        be foretold, and what people choose after such a history is."""
        chosen = [row for row in pair.chosen if row not in pair.history][:CHOSEN]
        near = [row for row in fused if row not in pair.history and row not in chosen]
        rows = [*chosen, *near][:AHEAD]
        return Sample(self.asked(pair, part), self.answer([self.item(row) for row in rows], part))

    def answer(self, chosen: Sequence[Item], part: str) -> str:
        """The answer that names or describes these items."""
        if part == "named":
            named = [{"title": harmless(item.title, 80), "year": _year(item)} for item in chosen]
            return json.dumps({"named": named}, ensure_ascii=False)
        return json.dumps({"queries": [described(item, self.schema) for item in chosen]}, ensure_ascii=False)


def described(item: Item, schema: Mapping[str, Field]) -> str:
    """The item as one would search for it: its title, and what else tells its kind where there is room."""
    words = harmless(item.title, 200)
    for value in descriptive(item, schema)[:3]:
        value = harmless(value, WORDS)
        if len(words) + len(value) + 2 <= WORDS and value.casefold() not in words.casefold():
            words += f", {value}"
    return words if len(words) <= WORDS else words[:WORDS].rsplit(" ", 1)[0]


def _year(item: Item) -> int | None:
    year = item.metadata.get("year")
    return int(year) if isinstance(year, int | float) and not isinstance(year, bool) else None
