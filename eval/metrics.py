"""Measures of ranked lists: recall, nDCG and others for each case, properties of the shown items, and what each channel adds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from eval.data.cases import Case
from store.errors import MissingExtra

KS = (1, 3, 5, 10, 20, 50, 100)
"""List lengths that recall, nDCG and hit rate are measured at."""

LENGTHS = ("0", "1-2", "3-5", "6-10", "11+")
THIRDS = ("tail", "middle", "head")

Ranked = Sequence[Sequence[str]]
"""The ranked item ids of each case."""


def check_extra() -> None:
    """Raise MissingExtra if a package of the extra `eval` is missing: before the work, not after it."""
    if not all(map(find_spec, ("ir_measures", "lightgbm", "matplotlib"))):
        raise MissingExtra("measuring", "eval")


def per_case(cases: Sequence[Case], ranked: Ranked, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """Return each measure for each case, (n_cases,) float64 in 0..1, worked out by `ir_measures`.

    "recall@k" is the share of the targets among the first k items, "ndcg@k" has binary gain, "hit@k" is 1 if any target is
    among the first k, and "mrr" is one over the rank of the first target in the whole list. Raises ValueError if there is not one
    list for each case or a list contains an id twice.
    """
    _check(cases, ranked)
    import ir_measures

    families = {"recall": ir_measures.R, "ndcg": ir_measures.nDCG, "hit": ir_measures.Success}
    names = {family @ k: f"{name}@{k}" for name, family in families.items() for k in ks}
    names[ir_measures.RR] = "mrr"
    values = {name: np.zeros(len(cases)) for name in names.values()}
    qrels = {str(row): dict.fromkeys(case.targets, 1) for row, case in enumerate(cases)}
    run = {str(row): {id: -float(rank) for rank, id in enumerate(ids)} for row, ids in enumerate(ranked) if ids}
    if run:
        for metric in ir_measures.iter_calc(list(names), qrels, run):
            values[names[metric.measure]][int(metric.query_id)] = metric.value
    return values


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of each measure; cases weigh equally."""
    return {name: float(column.mean()) for name, column in values.items()}


def _check(cases: Sequence[Case], ranked: Ranked) -> None:
    if len(cases) != len(ranked):
        raise ValueError(f"{len(ranked)} ranked lists for {len(cases)} cases")
    for row, ids in enumerate(ranked):
        if len(set(ids)) < len(ids):
            raise ValueError(f"the list of case {row} contains an id twice")


def measure_shown_items(
    ranked: Ranked,
    n_items: int,
    popularity: Mapping[str, float],
    vectors: Callable[[Sequence[str]], np.ndarray],
    k: int = 10,
) -> dict[str, float]:
    """Return measures of the items shown in the first k places, whether they are targets or not.

    "coverage@k" is the share of the catalog that is shown to any user. "novelty@k" is the mean self-information of the shown
    items in bits: -log2 of an item's share of all training events, with one added to each count. "diversity@k" is one minus the
    mean cosine between two items of a list. "gini@k" is the Gini coefficient of how often each item of the catalog is shown, from
    0 (all equally often) to 1. "popularity@k" is the mean number of training events of the shown items.

    Args:
        ranked: the ranked ids of each case.
        n_items: number of items in the catalog.
        popularity: number of training events by id; 0 for an id that is missing.
        vectors: function from ids to their unit vectors, (n, dim).
        k: number of places.
    """
    shown: dict[str, int] = {}
    lists = [[shown.setdefault(id, len(shown)) for id in ids[:k]] for ids in ranked]
    measures = dict.fromkeys(
        (f"{name}@{k}" for name in ("coverage", "novelty", "diversity", "gini", "popularity")), 0.0
    )
    if not shown:
        return measures
    flat = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in lists])
    counts = np.array([popularity.get(id, 0) for id in shown], dtype=np.float64)
    share = (counts + 1) / (sum(popularity.values()) + n_items)
    measures[f"coverage@{k}"] = len(shown) / n_items
    measures[f"novelty@{k}"] = float(-np.log2(share)[flat].mean())
    measures[f"diversity@{k}"] = _diversity(lists, vectors(list(shown)))
    measures[f"gini@{k}"] = _gini(np.bincount(flat, minlength=len(shown)), n_items)
    measures[f"popularity@{k}"] = float(counts[flat].mean())
    return measures


def _diversity(lists: Iterable[Sequence[int]], vectors: np.ndarray) -> float:
    # The squared length of a sum of n unit vectors is n plus twice the sum of the cosines of all pairs.
    values = []
    for rows in lists:
        if (n := len(rows)) > 1:
            total = vectors[list(rows)].sum(axis=0, dtype=np.float64)
            values.append(1.0 - (float(total @ total) - n) / (n * (n - 1)))
    return float(np.mean(values)) if values else 0.0


def _gini(times_shown: np.ndarray, n_items: int) -> float:
    """Return the Gini coefficient over all items; items that are never shown count as 0."""
    exposure = np.zeros(n_items)
    exposure[n_items - len(times_shown) :] = np.sort(times_shown)
    ranks = np.arange(1, n_items + 1)
    return float(((2 * ranks - n_items - 1) @ exposure) / (n_items * exposure.sum()))


def exclusive_recall(cases: Sequence[Case], ranked_by_channel: Mapping[str, Ranked], k: int = 100) -> dict[str, float]:
    """Return, for each channel, the share of targets that it alone has in its first k; the mean over cases."""
    found, shares = _find_targets(cases, ranked_by_channel, k)
    alone = found & (found.sum(axis=0) == 1)
    return dict(zip(ranked_by_channel, (alone @ shares).tolist(), strict=True))


def union_ceiling(cases: Sequence[Case], ranked_by_channel: Mapping[str, Ranked], k: int = 100) -> float:
    """Return the share of targets that any channel has in its first k: the upper bound for a fusion of these lists."""
    found, shares = _find_targets(cases, ranked_by_channel, k)
    return float(found.any(axis=0) @ shares)


def overlap(
    cases: Sequence[Case], ranked_by_channel: Mapping[str, Ranked], k: int = 100
) -> dict[str, dict[str, float | None]]:
    """Return, for each channel, the share of the targets it finds that each other channel finds too; None if it finds none."""
    found, _ = _find_targets(cases, ranked_by_channel, k)
    both = found.astype(np.int64) @ found.T
    return {
        name: {
            other: n / own.sum() if own.any() else None
            for other, n in zip(ranked_by_channel, row.tolist(), strict=True)
        }
        for name, own, row in zip(ranked_by_channel, found, both, strict=True)
    }


def _find_targets(
    cases: Sequence[Case], ranked_by_channel: Mapping[str, Ranked], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which targets each channel has in its first k, (channels, targets) bool, and what each target counts in a mean over
    cases, (targets,)."""
    found = []
    for ranked in ranked_by_channel.values():
        _check(cases, ranked)
        first = [set(ids[:k]) for ids in ranked]
        found.append([target in ids for case, ids in zip(cases, first, strict=True) for target in case.targets])
    return np.array(found), np.array([1 / len(case.targets) / len(cases) for case in cases for _ in case.targets])


def label_cases(
    cases: Sequence[Case], popularity: Mapping[str, float], known_items: Collection[str]
) -> dict[str, np.ndarray]:
    """Return labels (n_cases,) of each case in three groupings.

    "history": the number of items in the history. "popularity": "tail", "middle" or "head", the mean third of the case's targets,
    where items are ordered by popularity and each third has a third of the training events ("tail" also holds items without
    events). "item": "new" if any target is not among `known_items`, the items of the events fitted on, else "known".
    """
    third = _thirds(popularity)
    mean_third = [np.mean([third.get(target, 0) for target in case.targets]) for case in cases]
    new = [not all(target in known_items for target in case.targets) for case in cases]
    lengths = [len(case.history) for case in cases]
    return {
        "history": np.array(LENGTHS)[np.searchsorted([1, 3, 6, 11], lengths, side="right")],
        "popularity": np.array(THIRDS)[np.rint(mean_third).astype(int)],
        "item": np.where(new, "new", "known"),
    }


def _thirds(popularity: Mapping[str, float]) -> dict[str, int]:
    """Return the third of each item, 0 for the least popular."""
    ids = sorted(popularity, key=lambda id: (popularity[id], id))
    counts = np.array([popularity[id] for id in ids], dtype=np.float64)
    below, total = np.cumsum(counts) - counts, max(counts.sum(), 1.0)
    # Equally popular items stay together, in the third that contains the middle of their events.
    _, first, level, size = np.unique(counts, return_index=True, return_inverse=True, return_counts=True)
    last = first + size - 1
    middles = (below[first] + below[last] + counts[last]) / 2
    return {id: min(int(3 * middles[row] / total), 2) for id, row in zip(ids, level, strict=True)}


def means_by_stratum(
    strata: Mapping[str, np.ndarray],
    values_by_arm: Mapping[str, Mapping[str, np.ndarray]],
    measures: Sequence[str] = ("recall@10", "recall@100", "ndcg@10"),
) -> dict[str, dict[str, dict[str, object]]]:
    """Return the means of each arm within each group: {grouping: {label: {"cases": n, "arms": {arm: {measure: mean}}}}}."""
    order = [*LENGTHS, *THIRDS, "known", "new"]
    table: dict[str, dict[str, dict[str, object]]] = {}
    for kind, labels in strata.items():
        table[kind] = {}
        for label in sorted(set(labels.tolist()), key=order.index):
            inside = labels == label
            arms = {
                arm: {measure: float(values[measure][inside].mean()) for measure in measures}
                for arm, values in values_by_arm.items()
            }
            table[kind][label] = {"cases": int(inside.sum()), "arms": arms}
    return table
