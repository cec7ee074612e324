"""Dialogue cases: what the turns and the items mentioned in them retrieve, before the next recommendation is known.

`dialogue` is the baseline: the nearest items to the text of the last turns. `base` is what a session shows without a model: the
seeker's own words, and the mentioned items as the history, through the recommender's recall and fusion.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from agent import bridge
from agent.fusion import fuse
from agent.recall import CHANNELS, Request, Sources, recall
from agent.recommender import FILLING, TEXT_BOOST
from agent.results import Stage
from eval.answers import Progress
from eval.arms import Bench, Lists, parts
from eval.records import Case, Cases
from store import Catalog
from store.lexical import Lexical

TEXT = 1000
"""Characters of a dialogue that are encoded, the last ones: encoders read a few hundred words, from the start."""


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
    snapshot = bench.signals.snapshot
    sources = Sources(
        catalog, snapshot, bench.signals.counts, Lexical.of(catalog, snapshot), bench.signals, bench.learned
    )
    catalog.embedder.encode_queries(["warm"])
    ways = {"dialogue": _dialogue, "base": _base}
    wanted = {single for arm in arms for single in parts(arm, bench.on)} & ways.keys()
    talk = Talk({single: [] for single in wanted}, {single: [] for single in wanted})
    with progress("dialogues read") as advance:
        for row, case in enumerate(cases.cases, 1):
            for single in wanted:
                started = time.perf_counter()
                ids = ways[single](case, sources, bench, k)
                talk.ms[single].append((time.perf_counter() - started) * 1000)
                talk.lists[single].append([snapshot.rows[id] for id in ids])
            advance(row, len(cases))
    return talk


def _dialogue(case: Case, sources: Sources, bench: Bench, k: int) -> list[str]:
    text = " ".join(turn["content"] for turn in case.dialogue if turn["role"] != "system")[-TEXT:]
    if not text.strip():
        return []
    exclude = frozenset() if bench.repeats else frozenset(case.known)
    (hits,) = sources.catalog.query(sources.catalog.embedder.encode_queries([text]), k + len(exclude), None)
    return [hit.id for hit in hits if hit.id not in exclude and sources.snapshot.shows(hit.id)][:k]


def _base(case: Case, sources: Sources, bench: Bench, k: int) -> list[str]:
    said = [turn["content"] for turn in case.dialogue if turn["role"] == "user" and turn["content"].strip()]
    request = Request(
        history=case.known,
        text=" ".join(said)[-TEXT:] or None,
        exclude=frozenset() if bench.repeats else frozenset(case.known),
        k=k,
    )
    channels = [channel for channel in CHANNELS if channel != "named"]
    lists, _ = bridge.run(recall(sources, request, channels, Stage("recall")))
    weights = {c: bench.weights.get(c, 0.0) * (TEXT_BOOST.get(c, 1.0) if said else 1.0) for c in channels}
    weights["popular"] = max(weights["popular"], FILLING)
    if base := sources.base(request):
        lists["base"] = base
        joining = {"queries", "lexical"} if said else set()
        weights = {c: w for c, w in weights.items() if c in joining} | {"base": 1.0, "popular": FILLING}
    return [candidate.id for candidate in fuse(lists, weights)[:k]]
