"""From the channels' lists to ordered candidates: fusion, a conversation's wishes, diversity.

`AsyncRecommender` passes a batch of one, `evoke compare` and `evoke tune` many requests: the same code ranks both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.ranking.diversity import diversify
from agent.ranking.feedback import Wishes, demote, fill_up
from agent.ranking.fusion import FILLING, Candidate, channel_weights, fuse
from agent.ranking.learned_fusion import Learned, Part, Ranked
from agent.retrieval.channels import CANDIDATES, Batch
from store import Hit

BASE = "base"
"""The list of learned fusion among the lists that are fused."""
DEPTH = 20
"""First candidates that diversity and reranking look at, at least; diversity looks at three times the items asked for."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """How candidates are fused.

    Args:
        weights: the weight of each channel, as set.
        tuned: whether `evoke tune` found the weights.
        learned: learned fusion, where it is on; it then ranks by the history, and only channels that it does not read are
            fused with it by weight.
        diversity: see `agent.ranking.diversity`.
        without: a channel that learned fusion leaves out.
    """

    weights: Mapping[str, float]
    tuned: bool = False
    learned: Learned | None = None
    diversity: float = 0.0
    without: str = ""

    def weights_of(self, *, with_text: bool, with_history: bool) -> dict[str, float]:
        """Return the weight of each list that is fused for such a request; lists with weights are what must be retrieved."""
        weights = channel_weights(self.weights, with_text=with_text, tuned=self.tuned)
        if self.learned is None or not with_history:
            return weights
        others = ("queries", "named", "lexical") if with_text else ("queries", "named")
        return {c: weights[c] for c in others if c in weights} | {BASE: 1.0, "popular": FILLING}


@dataclass(frozen=True, slots=True)
class Fused:
    """Each request's candidates, best first, and the scores of learned fusion where it ranked (`ranked`, `case` by request)."""

    candidates: list[list[Candidate]]
    batch: Batch
    ranked: Ranked | None = None
    case: Mapping[int, int] = field(default_factory=dict)

    def explain(self, shown: Sequence[Candidate], request: int = 0) -> list[Candidate]:
        """Return the candidates with the channels that had a part in their place, those that learned fusion read among them."""
        signals = self.batch.sources.signals
        if self.ranked is None or signals is None or request not in self.case:
            return list(shown)
        rows = self.batch.sources.snapshot.rows
        parts = self.ranked.parts(self.case[request], (rows[c.id] for c in shown if BASE in c.channels), signals)
        return [_with_part(c, parts[rows[c.id]]) if BASE in c.channels else c for c in shown]


def with_learned(
    batch: Batch, lists: Mapping[str, Sequence[Sequence[Hit]]], fusion: Fusion
) -> tuple[list[dict[str, Sequence[Hit]]], Ranked | None, dict[int, int]]:
    """Return for each request of the batch its lists by channel, that of learned fusion (BASE) among them where it is on; its
    scores; and the place of each request among those that it ranked."""
    by_request: list[dict[str, Sequence[Hit]]] = [
        {channel: hits[row] for channel, hits in lists.items()} for row in range(len(batch.requests))
    ]
    rows = [row for row, history in enumerate(batch.histories) if len(history)]
    if fusion.learned is None or batch.sources.signals is None or not rows:
        return by_request, None, {}
    histories = [batch.histories[row] for row in rows]
    ranked = fusion.learned.rank(batch.sources.signals, histories, batch.allowed[rows], fusion.without)
    ids = batch.sources.snapshot.ids
    for row, best in zip(rows, ranked.best(len(rows), CANDIDATES), strict=True):
        by_request[row][BASE] = [Hit(ids[at], score) for at, score in best]
    return by_request, ranked, {row: place for place, row in enumerate(rows)}


def fuse_lists(
    batch: Batch, lists: Mapping[str, Sequence[Sequence[Hit]]], fusion: Fusion, n: int, wishes: Wishes | None = None
) -> Fused:
    """Return the candidates of each request of the batch, best first.

    Args:
        batch: the requests.
        lists: what `retrieve` found, by channel and request.
        fusion: how to fuse.
        n: how many items are wanted; diversity looks at three times as many.
        wishes: what a conversation adds; the batch then holds one request.
    """
    by_request, ranked, case = with_learned(batch, lists, fusion)
    found = []
    for request, history, own in zip(batch.requests, batch.histories, by_request, strict=True):
        candidates = fuse(own, fusion.weights_of(with_text=bool(request.text), with_history=len(history) > 0))
        if wishes:
            candidates = demote(fill_up(candidates, batch, n), batch, wishes)
        found.append(diversify(candidates, batch.sources.snapshot, fusion.diversity, max(3 * n, DEPTH)))
    return Fused(found, batch, ranked, case)


def _with_part(candidate: Candidate, part: Part) -> Candidate:
    """The candidate with what learned fusion read in the place of its list, and of the popular items that only fill up."""
    others = {c: rank for c, rank in candidate.channels.items() if c not in (BASE, "popular")}
    shares = {c: candidate.contributions[c] for c in others}
    return replace(candidate, channels=part.channels | others, contributions=part.contributions | shares)
