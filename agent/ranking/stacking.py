"""Learned joining: what the ranks in the model's channels add to the odds that learned fusion gives a candidate.

A second stage over the first (stacking; Wolpert 1992). It starts from the first one's log-odds and learns what to add to them, so
that little data changes little. It reads no signal itself: nothing of the first stage is learned twice from the few cases that a
model was asked about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.ranking.features import FAR, Candidates, candidates
from agent.ranking.learned_fusion import Learned, best_of
from agent.retrieval.signals import Signals

MODEL_CHANNELS = ("queries", "named")
"""The channels that a language model writes."""
DEPTH = 100
"""Items of a channel's list that are read, the first ones: as many as it was learned on."""

Brought = Mapping[str, Sequence[Sequence[int]]]
"""Each channel's list of snapshot rows for each history, best first."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The second stage, and the channels that it was taught to read."""

    second: Learned
    channels: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path, channels: Sequence[str]) -> Joined:
        """The second stage that was saved in the folder. Raises MissingExtra without LightGBM."""
        return cls(Learned.load(folder), tuple(channels))

    def reads(self, channels: Collection[str]) -> bool:
        """Whether, of the model's channels, these are exactly those that it was taught to read."""
        return {channel for channel in MODEL_CHANNELS if channel in channels} == set(self.channels)

    def rank(
        self,
        first: Learned,
        signals: Signals,
        histories: Sequence[np.ndarray],
        brought: Brought,
        k: int,
        *,
        repeats: bool = False,
        allowed: np.ndarray | None = None,
    ) -> list[list[tuple[int, float]]]:
        """For each history the k best (snapshot row, score in 0..1), best first, of what the signals or these lists bring."""
        brought = {channel: brought[channel] for channel in self.channels}
        table = candidates(signals, histories, repeats=repeats, allowed=allowed, beside=beside(brought))
        start = log_odds(first.scores(table))
        return best_of(table, self.second.scores(stacked(table, start, brought), start), len(histories), k)


def beside(brought: Brought) -> list[np.ndarray]:
    """For each history the rows of all lists together."""
    return [
        np.array([row for rows in lists for row in rows[:DEPTH]], dtype=np.int64)
        for lists in zip(*brought.values(), strict=True)
    ]


def stacked(table: Candidates, start: np.ndarray, brought: Brought) -> Candidates:
    """The same candidates with what the second stage reads: log-odds of the first one, and ranks in each list."""
    order = np.lexsort((table.item, -start, table.case))
    first_of = np.searchsorted(table.case, table.case)
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order)) - first_of
    columns = {
        "log-odds": start,
        "behind the best": start[order][first_of] - start,
        "rank": np.log1p(rank),
        "history length": table.features[:, table.names.index("history length")],
    }
    columns |= {f"{channel} rank": np.log1p(_ranks(table, lists)) for channel, lists in brought.items()}
    return Candidates(table.case, table.item, np.stack(list(columns.values()), axis=1), list(columns))


def falling(names: Sequence[str]) -> list[int]:
    """LightGBM's constraint for each column of `stacked`: a worse rank in a channel never raises the odds."""
    return [-1 if name in {f"{channel} rank" for channel in MODEL_CHANNELS} else 0 for name in names]


def log_odds(probability: np.ndarray) -> np.ndarray:
    """The log-odds of probabilities, finite for 0 and 1, too."""
    bounded = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.log(bounded / (1 - bounded))


def _ranks(table: Candidates, lists: Sequence[Sequence[int]]) -> np.ndarray:
    """(r,) the place of each candidate in its history's list, FAR where it is not in it."""
    rows = [np.asarray(own[:DEPTH], dtype=np.int64) for own in lists]
    case = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    item, place = np.concatenate(rows), np.concatenate([np.arange(len(own)) for own in rows])
    n = 1 + max(item.max(initial=0), table.item.max(initial=0))
    keys, wanted = table.case * n + table.item, case * n + item
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    there = keys[at] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)
    found = np.full(len(keys), FAR)
    found[at[there]] = place[there]
    return found
