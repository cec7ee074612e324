"""What samples for the language model are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from agent.facts import described
from agent.interests import asked_trained
from agent.topup import good_queries
from agent.written import MOST_QUERIES
from eval.arms import Bench
from eval.fitting import fit
from eval.records import Cases
from eval.train.lora import Sample
from eval.train.pairs import AHEAD, Pair
from prompts import Prompts
from prompts.cleaning import harmless
from store import Catalog, Item
from store.catalog import Field
from store.snapshot import Snapshot

SPELLED = 330
"""Characters of all searches of a list: what is longer takes too long to write."""
NEAR = 40
"""What `base` brings for a history that is learned from."""
FOLDS = 3
_BATCH = 256


def near(cases: Cases, catalog: Catalog, pairs: Sequence[Pair], seed: int, repeats: bool = False) -> list[list[int]]:
    """The NEAR rows that `base` brings for each pair's history, fitted on the events of other people before the cut: what it would
    bring had it not seen what this person chose next. What the history holds is among them with `repeats` alone."""
    users = sorted({event.user for event in cases.events})
    fold = dict(zip(users, np.random.default_rng(seed).permutation(len(users)) % FOLDS, strict=True))
    found: list[list[int]] = [[] for _ in pairs]
    for own in range(FOLDS):
        rows = [row for row, pair in enumerate(pairs) if fold[pair.user] == own]
        others = replace(cases, events=tuple(event for event in cases.events if fold[event.user] != own))
        bench = Bench(fit(others, catalog), repeats=repeats)
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            lists = bench.rank(["base"], [np.array(pairs[row].history) for row in some], NEAR)["base"]
            for row, brought in zip(some, lists, strict=True):
                found[row] = brought
    return found


@dataclass(frozen=True)
class Examples:
    """What samples are made of: the catalog and its prompts."""

    catalog: Catalog
    prompts: Prompts
    items: Mapping[str, Item]
    schema: Mapping[str, Field]

    @classmethod
    def of(cls, catalog: Catalog, prompts: Prompts) -> Examples:
        """The examples of a whole catalog."""
        return cls(catalog, prompts, catalog.get(catalog.snapshot().ids), catalog.schema())

    @property
    def snapshot(self) -> Snapshot:
        """The catalog's rows."""
        return self.catalog.snapshot()

    def item(self, row: int) -> Item:
        """The item of a snapshot row."""
        return self.items[self.snapshot.ids[row]]

    def asked(self, pair: Pair, part: str) -> list[dict[str, str]]:
        """The prompt for one part of what a trained model writes."""
        return asked_trained(self.history(pair), self.prompts, self.schema, part)

    def example(self, pair: Pair, near: Sequence[int], part: str) -> Sample:
        """An answer of what was chosen next, then what `base` brings `near`: what one person happened to choose is hardly to be
        foretold, and what people choose after such a history is."""
        if part == "queries":
            said = json.dumps({"queries": self.searches(pair, near, 1)}, ensure_ascii=False)
        else:
            named = [
                {"title": harmless(i.title, 80), "year": _year(i)}
                for i in map(self.item, self.following(pair, near, 1)[:AHEAD])
            ]
            said = json.dumps({"named": named}, ensure_ascii=False)
        return Sample(self.asked(pair, part), said)

    def searches(self, pair: Pair, near: Sequence[int], chosen: int = 0) -> list[str]:
        """At most MOST_QUERIES of SPELLED characters that pass the check: for as many of the `chosen` things, and for what is
        `near`."""
        new = [self.described(row) for row in self.following(pair, near, chosen)]
        good = good_queries(new, self.history(pair))[:MOST_QUERIES]
        return [query for query, end in zip(good, accumulate(map(len, good)), strict=True) if end <= SPELLED]

    @staticmethod
    def following(pair: Pair, near: Sequence[int], chosen: int) -> list[int]:
        """As many of the items `chosen` that are new to the history, then those `near` it."""
        new = [row for row in pair.chosen if row not in pair.history][:chosen]
        return [row for row in dict.fromkeys([*new, *near]) if row not in pair.history]

    def history(self, pair: Pair) -> list[Item]:
        """The items of a pair's history."""
        return [self.item(row) for row in pair.history]

    def described(self, row: int) -> str:
        """The item as one would search for it."""
        return described(self.item(row), self.schema)


def _year(item: Item) -> int | None:
    year = item.metadata.get("year")
    return int(year) if isinstance(year, int | float) and not isinstance(year, bool) else None
