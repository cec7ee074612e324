"""Rank fusion: the channels' lists become one list, with a score between 0 and 1 and the part that each channel had in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from store import Hit

K = 30
"""How quickly a rank's worth falls: rank r is worth (K + 1) / (K + r)."""
TEXT_BOOST = {"queries": 4.0, "lexical": 3.0, "popular": 0.0}
"""Factors on the channel weights of a request with text: what the user asks for goes before what people usually like."""
TEXT_LEAST = {"queries": 1.2, "lexical": 0.6}
"""Least weights for a request with text where weights were tuned: tuning sees histories only, never requests with text."""
FILLING = 1e-6
"""Least weight of `popular`: enough to fill up a short list, too little to change an order."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A retrieved item.

    `score` is in 0..1. `channels` holds its rank (from 1) in each channel that had a part in its place, `contributions` the
    size of each part: a share of the score, or with learned fusion log-odds (see `agent.ranking.learned_fusion`).
    """

    id: str
    score: float
    channels: Mapping[str, int] = field(default_factory=dict)
    contributions: Mapping[str, float] = field(default_factory=dict)


def channel_weights(weights: Mapping[str, float], *, with_text: bool, tuned: bool) -> dict[str, float]:
    """Return the weight of each channel that is on.

    Args:
        weights: the weights of the settings.
        with_text: whether the request has a text.
        tuned: whether `evoke tune` found the weights.
    """
    boost = TEXT_BOOST if with_text else {}
    own = {channel: weight * boost.get(channel, 1.0) for channel, weight in weights.items()}
    if with_text and tuned:
        own |= {channel: max(own.get(channel, 0.0), least) for channel, least in TEXT_LEAST.items()}
    own["popular"] = max(own.get("popular", 0.0), FILLING)
    return {channel: weight for channel, weight in own.items() if weight > 0}


def fuse(lists: Mapping[str, Sequence[Hit]], weights: Mapping[str, float]) -> list[Candidate]:
    """Return the candidates of all lists, best first: weighted reciprocal ranks (Cormack, Clarke and Buettcher, SIGIR 2009).

        score(i) = sum over channels c of w_c (K + 1) / (K + rank_c(i))  /  sum of w_c over channels with a list

    A score of 1 is an item that every channel ranks first. Ties keep the order of the heaviest channel. A channel without
    weight has no part.
    """
    live = {
        channel: weights.get(channel, 0.0) for channel, hits in lists.items() if hits and weights.get(channel, 0.0) > 0
    }
    total = sum(live.values())
    parts: dict[str, dict[str, float]] = {}
    ranks: dict[str, dict[str, int]] = {}
    for channel in sorted(live, key=lambda c: -live[c]):
        for rank, hit in enumerate(lists[channel], 1):
            parts.setdefault(hit.id, {})[channel] = live[channel] * (K + 1) / (K + rank) / total
            ranks.setdefault(hit.id, {})[channel] = rank
    scores = {id: sum(own.values()) for id, own in parts.items()}
    return [Candidate(id, scores[id], ranks[id], parts[id]) for id in sorted(scores, key=lambda id: -scores[id])]
