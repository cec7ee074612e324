"""What samples for the language model are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from agent.item_text import described
from agent.profile.fallback import good_queries
from agent.profile.interests import asked_trained
from agent.profile.schemas import MOST_QUERIES
from agent.retrieval.channels import chosen_by_others
from eval.comparison.arms import Bench
from eval.data.cases import Cases
from eval.fitting.sequences import AHEAD, Pair, by_other_people
from eval.fitting.signals import fit
from eval.training.lora import Sample
from prompts import Prompts
from prompts.cleaning import harmless
from store import Catalog, Item
from store.catalog import Field
from store.cooccurrence import Cooccurrence
from store.history import interactions_of
from store.snapshot import Snapshot

SPELLED = 330
"""Characters of all searches of a list: what is longer takes too long to write."""
NEAR = 40
"""What `base` brings for a history that is learned from."""
_BATCH = 256

Brings = Callable[[Cases, Sequence[Pair]], list[list[int]]]
"""What is brought for these pairs' histories by the events of some cases."""


def near(cases: Cases, catalog: Catalog, pairs: Sequence[Pair], repeats: bool = False) -> list[list[int]]:
    """The NEAR rows that `base` brings for each pair's history by the events of other people before the cut. What the history holds
    is among them with `repeats` alone."""

    def brings(others: Cases, some: Sequence[Pair]) -> list[list[int]]:
        bench = Bench(fit(others, catalog), repeats=repeats)
        found: list[list[int]] = []
        for start in range(0, len(some), _BATCH):
            read = [np.array(pair.history) for pair in some[start : start + _BATCH]]
            found += bench.rank(["base"], read, NEAR)["base"]
        return found

    return _by_other_people(cases, pairs, brings)


def chosen_next(cases: Cases, catalog: Catalog, pairs: Sequence[Pair]) -> list[list[int]]:
    """What other people chose after each pair's history, as the recommender shows it to a trained model."""
    snapshot = catalog.snapshot()

    def brings(others: Cases, some: Sequence[Pair]) -> list[list[int]]:
        counts = Cooccurrence.fit(interactions_of(others.events), snapshot)
        return [chosen_by_others(counts, np.array(pair.history), ~snapshot.hidden) for pair in some]

    return _by_other_people(cases, pairs, brings)


def _by_other_people(cases: Cases, pairs: Sequence[Pair], brings: Brings) -> list[list[int]]:
    """What is brought for each pair by the events of other people: had it seen what this person chose next, it would bring that."""
    found: list[list[int]] = [[] for _ in pairs]
    for others, places in by_other_people(cases, pairs):
        for at, brought in zip(places, brings(others, [pairs[at] for at in places]), strict=True):
            found[at] = brought
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

    def asked(self, pair: Pair, others: Sequence[int], part: str) -> list[dict[str, str]]:
        """The prompt for one part of what a trained model writes, which shows it what `others` chose next."""
        shown = [self.item(row) for row in others]
        return asked_trained(self.history(pair), shown, self.prompts, self.schema, part)

    def example(self, pair: Pair, others: Sequence[int], part: str) -> Sample:
        """An answer of what `others` chose next, that first which this person chose, too: what is not shown can hardly be foretold,
        which of it fits can."""
        first = self.first_chosen(pair, others)
        if part == "queries":
            said = json.dumps({"queries": self.searches(pair, first)}, ensure_ascii=False)
        else:
            named = [
                {"title": harmless(i.title, 80), "year": _year(i)} for i in (self.item(row) for row in first[:AHEAD])
            ]
            said = json.dumps({"named": named}, ensure_ascii=False)
        return Sample(self.asked(pair, others, part), said)

    @staticmethod
    def first_chosen(pair: Pair, others: Sequence[int]) -> list[int]:
        """What others chose next, in their order, but what this person chose first; where nothing is known of others, what is new
        of what this person chose."""
        if not others:
            return [row for row in pair.chosen if row not in pair.history]
        return [row for row in pair.chosen if row in others] + [row for row in others if row not in pair.chosen]

    def searches(self, pair: Pair, rows: Sequence[int]) -> list[str]:
        """A search for each of these, at most MOST_QUERIES of SPELLED characters that pass the check."""
        good = good_queries([self.described(row) for row in rows], self.history(pair))[:MOST_QUERIES]
        return [query for query, end in zip(good, accumulate(map(len, good)), strict=True) if end <= SPELLED]

    def history(self, pair: Pair) -> list[Item]:
        """The items of a pair's history."""
        return [self.item(row) for row in pair.history]

    def described(self, row: int) -> str:
        """The item as one would search for it."""
        return described(self.item(row), self.schema)


def _year(item: Item) -> int | None:
    year = item.metadata.get("year")
    return int(year) if isinstance(year, int | float) and not isinstance(year, bool) else None
