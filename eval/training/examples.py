"""Training samples for the language model: prompts and answers made from pairs of a history and the items chosen next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from agent.item_text import item_query
from agent.profile.fallback import good_queries
from agent.profile.interests import messages_for_trained
from agent.profile.schemas import MOST_QUERIES
from agent.ranking.candidates import Fusion
from agent.retrieval.channels import chosen_by_others
from agent.settings import Settings
from eval.comparison.bench import Bench
from eval.data.cases import Case, Cases
from eval.fitting.sequences import AHEAD, Pair, by_other_people
from eval.fitting.signals import fit_sources
from eval.training.lora import Sample
from prompts import Prompts
from prompts.cleaning import harmless
from store import Catalog, Item
from store.catalog import Field
from store.cooccurrence import Cooccurrence
from store.history import positive_interactions
from store.snapshot import Snapshot

QUERY_CHARACTERS = 330
"""The most characters of all queries of an answer; longer answers take too long to generate."""
CANDIDATES = 40
"""The candidates that `base` retrieves for a history."""

Retrieve = Callable[[Cases, Sequence[Pair]], list[list[int]]]
"""Returns rows for the histories of these pairs, by the events of these cases."""


def retrieve_candidates(
    cases: Cases, catalog: Catalog, pairs: Sequence[Pair], repeats: bool = False
) -> list[list[int]]:
    """Return the first CANDIDATES rows of `base` for each pair's history, fitted on other users' events before the cut.

    Items of the history are among them only with `repeats`.
    """

    snapshot = catalog.snapshot()
    weights = Settings.model_fields["weights"].get_default(call_default_factory=True)

    def retrieve(others: Cases, some: Sequence[Pair]) -> list[list[int]]:
        bench = Bench(fit_sources(others, catalog), Fusion(weights), repeats=repeats)
        asked = [Case(pair.user, tuple(snapshot.ids[row] for row in pair.history), ()) for pair in some]
        lists = bench.rank(["base"], asked, k=CANDIDATES)["base"]
        return [[snapshot.rows[id] for id in own] for own in lists]

    return _retrieve_from_other_users(cases, pairs, retrieve)


def retrieve_chosen_next(cases: Cases, catalog: Catalog, pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the rows that other users chose after a history like each pair's, as the recommender shows them to a trained model."""
    snapshot = catalog.snapshot()

    def retrieve(others: Cases, some: Sequence[Pair]) -> list[list[int]]:
        counts = Cooccurrence.fit(positive_interactions(others.events), snapshot)
        return [chosen_by_others(counts, np.array(pair.history), ~snapshot.hidden) for pair in some]

    return _retrieve_from_other_users(cases, pairs, retrieve)


def _retrieve_from_other_users(cases: Cases, pairs: Sequence[Pair], retrieve: Retrieve) -> list[list[int]]:
    """Return rows for each pair by events of other users only, because the pair's own user chose the items to be predicted."""
    found: list[list[int]] = [[] for _ in pairs]
    for others, positions in by_other_people(cases, pairs):
        for at, rows in zip(positions, retrieve(others, [pairs[at] for at in positions]), strict=True):
            found[at] = rows
    return found


@dataclass(frozen=True)
class Examples:
    """Makes prompts and samples from pairs, with the catalog's items and the prompt templates."""

    catalog: Catalog
    prompts: Prompts
    items: Mapping[str, Item]
    schema: Mapping[str, Field]

    @classmethod
    def of(cls, catalog: Catalog, prompts: Prompts) -> Examples:
        """Load all items of a catalog."""
        return cls(catalog, prompts, catalog.get(catalog.snapshot().ids), catalog.schema())

    @property
    def snapshot(self) -> Snapshot:
        """The catalog's snapshot."""
        return self.catalog.snapshot()

    def item(self, row: int) -> Item:
        """Return the item of a snapshot row."""
        return self.items[self.snapshot.ids[row]]

    def prompt(self, pair: Pair, others: Sequence[int], part: str) -> list[dict[str, str]]:
        """Return the prompt for one part of a trained model's answer ("queries" or "named").

        It shows the pair's history and `others`, the rows that other users chose next.
        """
        shown = [self.item(row) for row in others]
        return messages_for_trained(self.history(pair), shown, self.prompts, self.schema, part)

    def sample(self, pair: Pair, others: Sequence[int], part: str) -> Sample:
        """Return the prompt with an answer made of `others`, beginning with those that this user chose, too.

        The answer uses only items that the prompt shows: a model can learn to choose among them, but hardly to guess others.
        """
        rows = self.order_by_choice(pair, others)
        if part == "queries":
            answer = json.dumps({"queries": self.queries(pair, rows)}, ensure_ascii=False)
        else:
            items = [self.item(row) for row in rows[:AHEAD]]
            named = [{"title": harmless(item.title, 80), "year": _year(item)} for item in items]
            answer = json.dumps({"named": named}, ensure_ascii=False)
        return Sample(self.prompt(pair, others, part), answer)

    @staticmethod
    def order_by_choice(pair: Pair, others: Sequence[int]) -> list[int]:
        """Return `others` with the rows first that this user chose. Without `others`, return the new items that this user chose."""
        if not others:
            return [row for row in pair.chosen if row not in pair.history]
        return [row for row in pair.chosen if row in others] + [row for row in others if row not in pair.chosen]

    def queries(self, pair: Pair, rows: Sequence[int]) -> list[str]:
        """Return a valid query for each of these rows, up to MOST_QUERIES and QUERY_CHARACTERS in all."""
        good = good_queries([self.describe(row) for row in rows], self.history(pair))[:MOST_QUERIES]
        return [query for query, end in zip(good, accumulate(map(len, good)), strict=True) if end <= QUERY_CHARACTERS]

    def history(self, pair: Pair) -> list[Item]:
        """Return the items of a pair's history."""
        return [self.item(row) for row in pair.history]

    def describe(self, row: int) -> str:
        """Return a query that describes the item."""
        return item_query(self.item(row), self.schema)


def _year(item: Item) -> int | None:
    year = item.metadata.get("year")
    return int(year) if isinstance(year, int | float) and not isinstance(year, bool) else None
