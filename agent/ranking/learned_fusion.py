"""Learned fusion: gradient-boosted trees over the signals' features say how likely a candidate is what comes next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import EvokeError
from agent.ranking.features import Candidates, candidates
from agent.retrieval.signals import Signals
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
"""One model each: three find .001 less of nDCG@10, and answer in a third of the time (eval/log/2026-11-29e)."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Trees (LightGBM) over the features `names`, one model a seed; a candidate's score is their mean probability, in 0..1.

    A catalog whose numeric fields have changed since has features under other names: those that are gone are unknown (NaN) to
    the trees, and new ones are not read.
    """

    names: list[str]
    models: list[Any]

    @classmethod
    def fit(
        cls,
        table: Candidates,
        chosen: np.ndarray,
        seeds: Sequence[int] = SEEDS,
        start: np.ndarray | None = None,
        **trees: Any,
    ) -> Learned:
        """Learn from candidates and which of them were chosen, (r,) bool. Cases none of whose targets was found teach nothing.

        With `start`, (r,), it is learned what to add to these log-odds. `trees` override TREES and ROUNDS (`rounds=`).
        Deterministic by seed.
        """
        lgb = _lightgbm()
        rounds = trees.pop("rounds", ROUNDS)
        models = []
        for seed in seeds:
            rows = rows_taught(table.case, chosen, seed)
            data = lgb.Dataset(
                table.features[rows],
                chosen[rows].astype(np.int8),
                init_score=None if start is None else start[rows],
                free_raw_data=True,
            )
            models.append(lgb.train({**TREES, **trees, "seed": seed}, data, rounds))
        return cls(table.names, models)

    def scores(self, table: Candidates, start: np.ndarray | None = None) -> np.ndarray:
        """(r,) the mean probability of each candidate; `start` as it was fitted with."""
        if not len(table.case):
            return np.zeros(0)
        features = self._read(table)
        if start is None:
            return np.mean([model.predict(features) for model in self.models], axis=0)
        added = np.mean([model.predict(features, raw_score=True) for model in self.models], axis=0)
        return 1 / (1 + np.exp(-(start + added)))

    def rank(
        self,
        signals: Signals,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        repeats: bool = False,
        allowed: np.ndarray | None = None,
        scores: dict[str, np.ndarray] | None = None,
    ) -> list[list[tuple[int, float]]]:
        """For each history the k best (snapshot row, score), best first. See `candidates` for the rest."""
        table = candidates(signals, histories, repeats=repeats, allowed=allowed, scores=scores)
        return best_of(table, self.scores(table), len(histories), k)

    def _read(self, table: Candidates) -> np.ndarray:
        """(r, f) the columns that the trees were taught with, in that order."""
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
        """The models of the folder. Raises MissingExtra without LightGBM, EvokeError where they cannot be read."""
        lgb = _lightgbm()
        try:
            row = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(row["names"], [lgb.Booster(model_str=text) for text in row["models"]])
        except (OSError, ValueError, TypeError, KeyError, lgb.basic.LightGBMError) as error:
            raise EvokeError(f"{folder / FILE} cannot be read ({error}): run `evoke tune` again") from None


def best_of(table: Candidates, scores: np.ndarray, n: int, k: int) -> list[list[tuple[int, float]]]:
    """For each of the n histories its k best (snapshot row, score), best first."""
    order = np.lexsort((table.item, -scores, table.case))
    starts = np.searchsorted(table.case, np.arange(n + 1))
    return [
        [(int(table.item[at]), float(scores[at])) for at in order[start : min(end, start + k)]]
        for start, end in pairwise(starts)
    ]


def rows_taught(case: np.ndarray, chosen: np.ndarray, seed: int) -> np.ndarray:
    """All that was chosen and about NEGATIVES others of each case in which anything was."""
    sizes = np.bincount(case)
    found = np.bincount(case, weights=chosen)
    rng = np.random.default_rng(seed)
    return (found[case] > 0) & (chosen | (rng.random(len(case)) < (NEGATIVES / np.maximum(sizes, 1))[case]))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtra("learned fusion", "eval") from None
    return lightgbm
