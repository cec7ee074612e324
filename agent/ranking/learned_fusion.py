"""Learned fusion: gradient-boosted trees over the signals' features say how likely a candidate is to be chosen next."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import EvokeError
from agent.ranking.features import FAR, Candidates, candidates, channel_of
from agent.retrieval.signals import CHANNEL_OF, Signals
from store.errors import MissingExtra
from store.paths import write_atomically

TREES = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
ROUNDS = 200
FILE = "fusion.json"
NEGATIVES = 80
"""Candidates that were not chosen, drawn for each case to learn from."""
SEEDS = tuple(range(9))
"""One model each: three have .001 less nDCG@10, and answer in a third of the time (eval/log/2026-11-29e)."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of the channels in one item's place: its best rank (from 1) by the signals of each channel that spoke for it, and
    the log-odds that each channel's features add or take."""

    channels: dict[str, int]
    contributions: dict[str, float]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The candidates of many histories, and the score of each, (r,) in 0..1."""

    table: Candidates
    scores: np.ndarray
    model: Learned

    def best(self, n: int, k: int) -> list[list[tuple[int, float]]]:
        """Return for each of the n histories its k best (snapshot row, score), best first."""
        order = np.lexsort((self.table.item, -self.scores, self.table.case))
        starts = np.searchsorted(self.table.case, np.arange(n + 1))
        return [
            [(int(self.table.item[at]), float(self.scores[at])) for at in order[start : min(end, start + k)]]
            for start, end in pairwise(starts)
        ]

    def parts(self, case: int, rows: Iterable[int], signals: Signals) -> dict[int, Part]:
        """Return the part of each channel in the score of these snapshot rows, candidates of one history."""
        table, wanted = self.table, set(rows)
        at = [int(i) for i in np.flatnonzero(table.case == case) if int(table.item[i]) in wanted]
        return dict(zip((int(table.item[i]) for i in at), self.model.parts(table, at, signals), strict=True))


@dataclass(frozen=True, slots=True)
class Learned:
    """Trees (LightGBM) over the features `names`, one model a seed. A candidate's score is their mean probability, in 0..1.

    Features are read by name. If the catalog's numeric fields change, features that are gone are unknown (NaN) to the trees,
    and new ones are not read.
    """

    names: list[str]
    models: list[Any]

    @classmethod
    def fit(cls, table: Candidates, chosen: np.ndarray, seeds: Sequence[int] = SEEDS, **trees: Any) -> Learned:
        """Learn from candidates and which of them were chosen, (r,) bool. Deterministic by seed.

        Args:
            table: the candidates; cases none of whose targets is among them teach nothing.
            chosen: (r,) bool.
            seeds: one model for each.
            trees: parameters that override TREES and ROUNDS (as `rounds`).
        """
        lgb = _lightgbm()
        rounds = trees.pop("rounds", ROUNDS)
        models = []
        for seed in seeds:
            rows = training_rows(table.case, chosen, seed)
            data = lgb.Dataset(table.features[rows], chosen[rows].astype(np.int8), free_raw_data=True)
            models.append(lgb.train({**TREES, **trees, "seed": seed}, data, rounds))
        return cls(table.names, models)

    def scores(self, table: Candidates) -> np.ndarray:
        """(r,) the mean probability of each candidate."""
        if not len(table.case):
            return np.zeros(0)
        features = self._read(table)
        return np.mean([model.predict(features) for model in self.models], axis=0)

    def rank(self, signals: Signals, histories: Sequence[np.ndarray], allowed: np.ndarray, without: str = "") -> Ranked:
        """Return the scored candidates of these histories.

        Args:
            signals: the fitted signals.
            histories: b histories, snapshot rows, oldest first.
            allowed: (b, n) bool, the rows that may come back.
            without: a channel whose signals are to say nothing.
        """
        table = candidates(signals, histories, allowed, without)
        return Ranked(table, self.scores(table), self)

    def parts(self, table: Candidates, at: Sequence[int], signals: Signals) -> list[Part]:
        """Return the part of each channel in the score of these candidates (indexes into the table).

        Contributions are LightGBM's (Shapley values of trees: Lundberg et al., 2018), the mean of all models, summed by channel.
        """
        if not at:
            return []
        few = Candidates(table.case[at], table.item[at], table.features[at], table.names)
        features = self._read(few)
        by_feature = np.mean([model.predict(features, pred_contrib=True)[:, :-1] for model in self.models], axis=0)
        popularity = signals.counts.recent + 1e-3 * signals.counts.popularity
        found = []
        for row, item in enumerate(few.item):
            contributions: dict[str, float] = {}
            for name, value in zip(self.names, by_feature[row], strict=True):
                channel = channel_of(name)
                contributions[channel] = contributions.get(channel, 0.0) + float(value)
            ranks = _ranks(few, row) | {"popular": 1 + int((popularity > popularity[item]).sum())}
            spoke = {c: rank for c, rank in ranks.items() if contributions.get(c, 0.0) > 0}
            if not spoke:
                spoke = dict([max(ranks.items(), key=lambda entry: contributions.get(entry[0], 0.0))])
            found.append(Part(spoke, contributions))
        return found

    def _read(self, table: Candidates) -> np.ndarray:
        """(r, f) the columns that the trees learned from, in that order."""
        if table.names == self.names:
            return table.features
        place = {name: at for at, name in enumerate(table.names)}
        unknown = np.full(len(table.case), np.nan, dtype=np.float32)
        return np.stack([table.features[:, place[n]] if n in place else unknown for n in self.names], axis=1)

    def save(self, folder: Path) -> None:
        """Write the models into the folder, in one file, whole or not at all, as LightGBM's text."""
        folder.mkdir(parents=True, exist_ok=True)
        row = {"names": self.names, "models": [model.model_to_string() for model in self.models]}
        write_atomically(folder / FILE, json.dumps(row).encode())

    @classmethod
    def load(cls, folder: Path) -> Learned:
        """Read the models of the folder. Raises MissingExtra without LightGBM, EvokeError where they cannot be read."""
        lgb = _lightgbm()
        try:
            row = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(row["names"], [lgb.Booster(model_str=text) for text in row["models"]])
        except (OSError, ValueError, TypeError, KeyError, lgb.basic.LightGBMError) as error:
            raise EvokeError(f"{folder / FILE} cannot be read ({error}): run `evoke tune` again") from None


def training_rows(case: np.ndarray, chosen: np.ndarray, seed: int) -> np.ndarray:
    """(r,) bool: the chosen candidates, and about NEGATIVES others of each case in which any was chosen."""
    sizes = np.bincount(case)
    found = np.bincount(case, weights=chosen)
    rng = np.random.default_rng(seed)
    return (found[case] > 0) & (chosen | (rng.random(len(case)) < (NEGATIVES / np.maximum(sizes, 1))[case]))


def _ranks(table: Candidates, row: int) -> dict[str, int]:
    """The candidate's best rank, from 1, among the signals of each channel that ranks it."""
    ranks: dict[str, int] = {}
    for at, name in enumerate(table.names):
        signal = name.removesuffix(" rank")
        if name == f"{signal} rank" and signal in CHANNEL_OF:
            rank = round(float(np.expm1(table.features[row, at])))
            if rank < FAR:
                ranks[CHANNEL_OF[signal]] = min(rank + 1, ranks.get(CHANNEL_OF[signal], rank + 1))
    return ranks


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtra("learned fusion", "eval") from None
    return lightgbm
