"""Dialogue cases: what the turns and the items mentioned in them retrieve, before the next recommendation is known.

`dialogue` is the baseline: the nearest items to the text of the last turns. `base` is the recommender's recall with the
seeker's own words and the mentioned items as the history, and beside it the field values (genres, people) that the seeker
asks for or that the mentioned items share. Nothing in it is chosen on cases: a dataset of dialogues has none to spare.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent import event_loop
from agent.ranking.fusion import FILLING, channel_weights, fuse
from agent.results import Stage
from agent.retrieval.channels import CHANNELS, Request, Sources, recall
from eval.comparison.arms import Bench, Lists, parts
from eval.comparison.llm_cache import Progress
from eval.data.cases import Case, Cases
from store import Catalog, Hit
from store.lexical import Lexical

if TYPE_CHECKING:
    from agent.dialogue.nlu.lexicon import Lexicon

TEXT = 1000
"""Characters of a dialogue that are encoded, the last ones: encoders read a few hundred words, from the start."""
TURNS = 6
"""The seeker's turns that are looked for one by one, the last ones."""
FADING = 0.8
"""What a field value asked for a turn earlier weighs, beside one asked for now."""
FIELDS = 1.0
"""Weight of the values asked for or shared in fusion, the least that text has."""


@dataclass(frozen=True, slots=True)
class Talk:
    """Lists from dialogues by single arm, and what each case took; empty where no case holds a dialogue."""

    lists: dict[str, Lists]
    ms: dict[str, list[float]]

    def cost(self, plan: Sequence[str]) -> list[float] | None:
        """Milliseconds of each case for the single arms of a plan that are ranked here."""
        own = [self.ms[single] for single in plan if single in self.ms]
        return [sum(each) for each in zip(*own, strict=True)] if own else None


def talked(arms: Sequence[str], bench: Bench, catalog: Catalog, cases: Cases, k: int, progress: Progress) -> Talk:
    """The lists of the arms that read dialogues, for every case."""
    if not any(case.dialogue for case in cases.cases):
        return Talk({}, {})
    reader = _Reader(bench, catalog, k)
    ways = {"dialogue": reader.nearest, "base": reader.base}
    wanted = [single for single in ways if any(single in parts(arm, bench.on) for arm in arms)]
    talk = Talk({single: [] for single in wanted}, {single: [] for single in wanted})
    with progress("dialogues read") as advance:
        for row, case in enumerate(cases.cases, 1):
            for single in wanted:
                started = time.perf_counter()
                ids = ways[single](case)
                talk.ms[single].append((time.perf_counter() - started) * 1000)
                talk.lists[single].append([bench.snapshot.rows[id] for id in ids])
            advance(row, len(cases))
    return talk


class _Reader:
    """Ranks the catalog for dialogues; `k` items each."""

    def __init__(self, bench: Bench, catalog: Catalog, k: int) -> None:
        from agent.dialogue.nlu.lexicon import Lexicon

        self._bench, self._k = bench, k
        lexical = Lexical.of(catalog, bench.snapshot)
        self._sources = Sources(catalog, bench.snapshot, bench.signals.counts, lexical, bench.signals, bench.learned)
        self._lexicon = Lexicon.of(catalog)
        self._having: dict[tuple[str, str], list[int]] = {}
        for item in catalog.items():
            for name, value in item.metadata.items():
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, str):
                        self._having.setdefault((name, one), []).append(bench.snapshot.rows[item.id])
        catalog.embedder.encode_queries(["warm"])

    def nearest(self, case: Case) -> list[str]:
        """The nearest items to the text of the last turns."""
        text = " ".join(turn["content"] for turn in case.dialogue if turn["role"] != "system")[-TEXT:]
        if not text.strip():
            return []
        catalog, out = self._sources.catalog, self._left_out(case)
        (hits,) = catalog.query(catalog.embedder.encode_queries([text]), self._k + len(out), None)
        return [hit.id for hit in hits if hit.id not in out and self._bench.snapshot.shows(hit.id)][: self._k]

    def base(self, case: Case) -> list[str]:
        """Everything that a dialogue gives, fused."""
        said = [turn["content"] for turn in case.dialogue if turn["role"] == "user" and turn["content"].strip()]
        request = Request(
            history=case.known,
            text=" ".join(said)[-TEXT:] or None,
            queries=said[-TURNS:] if len(said) > 1 else [],
            exclude=self._left_out(case),
            k=self._k,
        )
        weights = self._weights(bool(said))
        lists, _ = event_loop.run(
            recall(self._sources, request, [c for c in CHANNELS if c in weights], Stage("recall"))
        )
        if base := self._sources.base(request):
            lists["base"] = base
            weights = {c: weights[c] for c in ("queries", "lexical") if said} | {"base": 1.0, "popular": FILLING}
        fused = fuse(lists, weights)
        # Very many items have the same values: among those the other lists decide.
        before = {candidate.id: place for place, candidate in enumerate(fused)}
        scores = self._by_fields(said, case)
        out = self._left_out(case)
        asked = [self._bench.snapshot.ids[row] for row in np.flatnonzero(scores > 0)]
        asked = [id for id in asked if id not in out and self._bench.snapshot.shows(id)]
        asked.sort(key=lambda id: (-scores[self._bench.snapshot.rows[id]], before.get(id, len(before))))
        lists["fields"] = [Hit(id, 0.0) for id in asked[: self._k]]
        return [candidate.id for candidate in fuse(lists, weights | {"fields": FIELDS})[: self._k]]

    def _by_fields(self, said: Sequence[str], case: Case) -> np.ndarray:
        """(n,) what the values asked for in each turn and those of the mentioned items say of every item, equally."""
        n = len(self._bench.snapshot)
        asked = np.zeros(n)
        for age, turn in enumerate(reversed(said)):
            for name, value, wanted in _values(turn, self._lexicon):
                rows = self._having.get((name, value), [])
                if rows:
                    asked[rows] += (1 if wanted else -1) * FADING**age * np.log(n / len(rows))
        shared = np.zeros(n)
        rows = [self._bench.snapshot.rows[id] for id in case.known]
        if rows:
            fields = self._bench.signals.content.fields
            shared = np.asarray(fields[rows].sum(axis=0) @ fields.T).ravel()
        return asked / max(np.abs(asked).max(), 1e-9) + shared / max(shared.max(), 1e-9)

    def _left_out(self, case: Case) -> frozenset[str]:
        return frozenset() if self._bench.repeats else frozenset(case.known)

    def _weights(self, in_words: bool) -> dict[str, float]:
        unnamed = {channel: weight for channel, weight in self._bench.weights.items() if channel != "named"}
        return channel_weights(unnamed, in_words, tuned=False)


def _values(turn: str, lexicon: Lexicon) -> Iterator[tuple[str, str, bool]]:
    """The field values that a turn asks for (True) or does not want."""
    from agent.dialogue.nlu.field_values import facets
    from agent.dialogue.nlu.message import Text

    conditions, _ = facets(Text(turn), lexicon)
    for condition in conditions:
        values = condition.value if isinstance(condition.value, list) else [condition.value]
        for value in values:
            if isinstance(value, str):
                yield condition.field, value, condition.op in ("$eq", "$in", "$contains")
