"""`evoke train rank`: the model learns to pick, by a one-token label, the item chosen next among candidates.

The other candidates are hard negatives: the first of the list that `base` retrieves for the same history. They are drawn and
shuffled as in reranking, so that neither position nor label gives the answer away.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np

from agent.item_text import prompt_line, prompt_lines
from agent.ranking.rerank import WINDOW
from eval.fitting.sequences import Pair
from eval.training.examples import Examples
from eval.training.lora import Sample

HARD_NEGATIVES = 30
"""The first so many candidates of the list are used as negatives."""


def make_samples(
    examples: Examples, pairs: Sequence[Pair], candidates: Sequence[Sequence[int]], repeats: bool, seed: int
) -> list[Sample]:
    """Return one sample for each pair that has enough candidates.

    Args:
        examples: makes the prompts.
        pairs: the histories, each with the items chosen next.
        candidates: the rows that `base` retrieves for each history, best first.
        repeats: whether the right answer may be an item of the history; otherwise it is the first new item chosen next.
        seed: the seed of drawing and shuffling.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for pair, rows in zip(pairs, candidates, strict=True):
        excluded = set() if repeats else set(pair.history)
        chosen = next((row for row in pair.chosen if row not in excluded), None)
        others = [row for row in rows if row not in pair.chosen and row not in excluded][:HARD_NEGATIVES]
        if chosen is None or len(others) < WINDOW - 1:
            continue
        window = [chosen, *rng.choice(others, WINDOW - 1, replace=False).tolist()]
        rng.shuffle(window)
        samples.append(_sample(examples, pair, window, window.index(chosen)))
    return samples


def _sample(examples: Examples, pair: Pair, window: Sequence[int], right: int) -> Sample:
    history = prompt_lines([examples.item(row) for row in pair.history])
    shown = [prompt_line(label, examples.item(row)) for label, row in zip(ascii_uppercase, window, strict=False)]
    prompt = examples.prompts.render("rank", request="", history=history, candidates=shown)
    return Sample(prompt, ascii_uppercase[right])
