"""`evoke train rank`: the model learns to pick, by a one-token label, what was chosen next among the candidates it will be shown.

The others are hard negatives: the first of the list that recall and fusion bring for the same history. Windows are drawn and
shuffled as in ranking, so that neither place nor letter tells which is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np

from agent.item_text import line, lines
from agent.ranking.rerank import WINDOW
from eval.fitting.sequences import Pair
from eval.training.examples import Examples
from eval.training.lora import Sample

HARD = 30
"""Negatives come from so many first places of the fused list."""


def samples(
    examples: Examples, pairs: Sequence[Pair], near: Sequence[Sequence[int]], repeats: bool, seed: int
) -> list[Sample]:
    """One window a pair: its next item (where `repeats` are not recommended, the next that is new to the history) among what
    `base` brings `near` it."""
    rng = np.random.default_rng(seed)
    made = []
    for pair, best in zip(pairs, near, strict=True):
        out = set() if repeats else set(pair.history)
        chosen = next((row for row in pair.chosen if row not in out), None)
        others = [row for row in best if row not in pair.chosen and row not in out][:HARD]
        if chosen is None or len(others) < WINDOW - 1:
            continue
        window = [chosen, *rng.choice(others, WINDOW - 1, replace=False).tolist()]
        rng.shuffle(window)
        made.append(_sample(examples, pair, window, window.index(chosen)))
    return made


def _sample(examples: Examples, pair: Pair, window: Sequence[int], right: int) -> Sample:
    known: dict[str, Any] = {
        "request": "",
        "history": lines([examples.item(row) for row in pair.history]),
    }
    shown = [line(label, examples.item(row)) for label, row in zip(ascii_uppercase, window, strict=False)]
    return Sample(examples.prompts.render("rank", candidates=shown, **known), ascii_uppercase[right])
