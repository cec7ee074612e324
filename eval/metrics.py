"""How good ranked lists are: recall and its kin for each case, what is shown to people, and what each channel adds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from eval.data.cases import Case
from store.errors import MissingExtra

KS = (1, 3, 5, 10, 20, 50, 100)

Ranked = Sequence[Sequence[str]]


def per_case(cases: Sequence[Case], ranked: Ranked, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """Each measure for each case, (n_cases,) float64 in 0..1, from `ir_measures`.

    "recall@k": the share of the targets among the first k. "ndcg@k": binary gain. "hit@k": whether any target is among
    them. "mrr": one over the rank of the first target, over the whole list. Raises ValueError where the lists are not one for
    each case, or one names an id twice; MissingExtra without the library.
    """
    _check(cases, ranked)
    try:
        import ir_measures
    except ModuleNotFoundError as error:
        raise MissingExtra("measuring", "eval") from error
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
    """The mean of each measure: cases weigh equally."""
    return {name: float(column.mean()) for name, column in values.items()}


def _check(cases: Sequence[Case], ranked: Ranked) -> None:
    if len(cases) != len(ranked):
        raise ValueError(f"{len(ranked)} ranked lists for {len(cases)} cases")
    for row, ids in enumerate(ranked):
        if len(set(ids)) < len(ids):
            raise ValueError(f"the list of case {row} names an id twice")


def beyond_accuracy(
    ranked: Ranked,
    n_items: int,
    popularity: Mapping[str, float],
    vectors: Callable[[Sequence[str]], np.ndarray],
    k: int = 10,
) -> dict[str, float]:
    """What is shown in the first k places, whether right or not.

    "coverage": the share of the `n_items` shown to anybody. "novelty": mean self-information of what is shown, in bits:
    -log2 of the item's share of all training events, one added to each count. "diversity": one minus the mean cosine
    between two items of a list. "gini": how unequally the catalog's items are shown, from 0 (all alike) to 1. "popularity":
    mean count of training events. `popularity` holds those counts by id (absent: 0); `vectors` gives the unit rows (n, dim)
    of ids.
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
    # Of unit rows, the squared length of their sum is n plus twice the cosines of all pairs.
    spreads = []
    for rows in lists:
        if (n := len(rows)) > 1:
            total = vectors[list(rows)].sum(axis=0, dtype=np.float64)
            spreads.append(1.0 - (float(total @ total) - n) / (n * (n - 1)))
    return float(np.mean(spreads)) if spreads else 0.0


def _gini(times_shown: np.ndarray, n_items: int) -> float:
    """The Gini coefficient over all items, those never shown with 0."""
    exposure = np.zeros(n_items)
    exposure[n_items - len(times_shown) :] = np.sort(times_shown)
    ranks = np.arange(1, n_items + 1)
    return float(((2 * ranks - n_items - 1) @ exposure) / (n_items * exposure.sum()))


def exclusive(cases: Sequence[Case], ranked_by_channel: Mapping[str, Ranked], k: int = 100) -> dict[str, float]:
    """The share of targets that only this one of the channels has in its first k; mean over cases, as recall is."""
    found = {name: _found(cases, ranked, k) for name, ranked in ranked_by_channel.items()}
    alone = {}
    for name, own in found.items():
        others = [other for key, other in found.items() if key != name]
        shares = [
            len(hits.difference(*(other[row] for other in others))) / len(case.targets)
            for row, (case, hits) in enumerate(zip(cases, own, strict=True))
        ]
        alone[name] = float(np.mean(shares))
    return alone


def union_ceiling(cases: Sequence[Case], ranked_by_channel: Mapping[str, Ranked], k: int = 100) -> float:
    """The share of targets that any of the channels has in its first k: what no fusion of these lists can pass."""
    found = [_found(cases, ranked, k) for ranked in ranked_by_channel.values()]
    shares = [len(set().union(*(own[row] for own in found))) / len(case.targets) for row, case in enumerate(cases)]
    return float(np.mean(shares))


def overlap(
    cases: Sequence[Case], ranked_by_channel: Mapping[str, Ranked], k: int = 100
) -> dict[str, dict[str, float | None]]:
    """For each channel, the share of the targets it finds that each other finds too; None where it finds nothing."""
    found = {name: _found(cases, ranked, k) for name, ranked in ranked_by_channel.items()}
    totals = {name: sum(map(len, own)) for name, own in found.items()}
    return {
        name: {other: _shared(own, theirs) / totals[name] if totals[name] else None for other, theirs in found.items()}
        for name, own in found.items()
    }


def _shared(own: Sequence[set[str]], theirs: Sequence[set[str]]) -> int:
    return sum(len(ours & others) for ours, others in zip(own, theirs, strict=True))


def _found(cases: Sequence[Case], ranked: Ranked, k: int) -> list[set[str]]:
    _check(cases, ranked)
    return [set(case.targets).intersection(ids[:k]) for case, ids in zip(cases, ranked, strict=True)]


def strata(
    cases: Sequence[Case], popularity: Mapping[str, float], known_items: Collection[str]
) -> dict[str, np.ndarray]:
    """Labels (n_cases,) that cut the cases into groups.

    "history": how many items are known of the user. "popularity": where the targets lie (their mean) when the training
    events are cut into thirds by the popularity of their items: "tail" the least popular third and items without events,
    "middle", "head". "item": "new" where a target is not among `known_items`, those of any event fitted on, else "known".
    """
    third = _thirds(popularity)
    mean_third = [np.mean([third.get(target, 0) for target in case.targets]) for case in cases]
    names = np.array(["tail", "middle", "head"])
    return {
        "history": np.array([_length(len(case.history)) for case in cases]),
        "popularity": names[np.rint(mean_third).astype(int)],
        "item": np.array(
            ["known" if all(target in known_items for target in case.targets) else "new" for case in cases]
        ),
    }


def _thirds(popularity: Mapping[str, float]) -> dict[str, int]:
    ids = sorted(popularity, key=lambda id: (popularity[id], id))
    counts = np.array([popularity[id] for id in ids], dtype=np.float64)
    below, total = np.cumsum(counts) - counts, max(counts.sum(), 1.0)
    # Items equally popular stay together, in the third that the middle of their events falls into.
    _, first, level, size = np.unique(counts, return_index=True, return_inverse=True, return_counts=True)
    last = first + size - 1
    middles = (below[first] + below[last] + counts[last]) / 2
    return {id: min(int(3 * middles[row] / total), 2) for id, row in zip(ids, level, strict=True)}


def _length(items: int) -> str:
    return "0" if items == 0 else "1-2" if items <= 2 else "3-5" if items <= 5 else "6-10" if items <= 10 else "11+"


def within(
    strata: Mapping[str, np.ndarray],
    values_by_arm: Mapping[str, Mapping[str, np.ndarray]],
    measures: Sequence[str] = ("recall@10", "recall@100", "ndcg@10"),
) -> dict[str, dict[str, dict[str, object]]]:
    """The means of each arm within each stratum: {kind: {label: {"cases": n, "arms": {arm: {measure: mean}}}}}."""
    order = ["0", "1-2", "3-5", "6-10", "11+", "tail", "middle", "head", "known", "new"]
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
