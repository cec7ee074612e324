"""`evoke tune`: on validation cases alone, find what a store should use, and write it there with the evidence."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.features import Candidates
from agent.learned import Learned
from agent.signals import Signals
from agent.tuned import Tuned
from eval import metrics
from eval.arms import FUSED, PARAMETERS, Bench
from eval.cases import data_hash, load_cases
from eval.errors import EvalError
from eval.fitting import batches, fit, histories, table
from eval.records import Cases
from eval.runner import BUDGET
from store import Catalog, History
from store.place import write_atomically

FOLDS = 3
MOST_CASES = 6000
"""Cases that learned fusion is trained on: memory grows with them, and more teach little."""
SEARCH_CASES = 1500
"""Cases that weights and the comparison's baselines are searched on."""
REPEATS = 0.005
"""Share of targets that repeat a history item from which on repeats are learned."""
TREES: Sequence[dict[str, Any]] = (
    {"num_leaves": 15, "rounds": 200},
    {"num_leaves": 31, "rounds": 120},
    {"num_leaves": 7, "rounds": 300},
)
WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0)

Say = Callable[[str], None]


class Steps:
    """Results of finished steps, kept beside the store so that a run that was killed goes on where it stopped."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._done: dict[str, Any] = kept.get("steps", {}) if kept.get("key") == key else {}

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """The step's result: kept from an earlier run of the same key, or worked out and kept."""
        if name not in self._done:
            self._done[name] = work()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({"key": self._key, "steps": self._done}).encode())
        return self._done[name]

    def finish(self) -> None:
        """All is done: nothing is left to resume."""
        self._file.unlink(missing_ok=True)


def tune(dataset: str | Path, *, store: str | Path | None = None, seed: int = 0, say: Say = lambda _: None) -> Tuned:
    """Tune the store of this dataset on its validation cases; returns what was found and written.

    Raises EvalError where there are no validation cases or no events to fit on. `say` is told each step.
    """
    from store.index import index
    from store.place import default_store

    dataset = Path(dataset)
    cases = load_cases(dataset, "valid")
    if not cases.events:
        raise EvalError(f"{dataset}: there are no events before the validation cases; add events.csv to tune on")
    folder = Path(store) if store else default_store(dataset)
    say("indexing")
    index(dataset, folder)
    cases = cases.sample(MOST_CASES, seed)
    steps = Steps(folder / "tuned" / "unfinished.json", f"{data_hash(dataset)} {seed}")
    with Catalog.open(folder, create=False) as catalog, History.open(folder) as history:
        say(f"fitting on {len(cases.events)} events before the cut")
        signals = fit(cases, catalog)
        repeats = _repeats(cases)
        bench = Bench(signals, repeats=repeats)
        few = cases.sample(SEARCH_CASES, seed)
        baselines = steps.step("baselines", lambda: {arm: _search(bench, arm, few, say) for arm in PARAMETERS})
        bench = Bench(signals, baselines=baselines, repeats=repeats)
        weights, fused = steps.step("weights", lambda: _weights(bench, few, say))
        say(f"features of {len(cases)} cases")
        candidates, chosen = table(cases, signals, repeats=repeats)
        trees, learned = steps.step("fusion", lambda: _cross_validated(candidates, chosen, cases, say))
        pays = learned["ndcg@10"] >= fused["ndcg@10"]
        if pays:
            say("training learned fusion on all validation cases")
            Learned.fit(candidates, chosen, **trees).save(folder / "tuned")
        tuned = Tuned(
            settings={} if pays else {"weights": weights},
            baselines=baselines,
            learned=pays,
            evidence={
                "data": data_hash(dataset), "seed": seed, "cases": len(cases), "users": cases.users, "repeats": repeats,
                "weighted ranks": fused, "learned fusion": learned, "trees": trees,
            },
        )  # fmt: skip
        tuned.save(folder)
        if pays:
            Signals.of(catalog, history, refit=True)
    steps.finish()
    return tuned


def _repeats(cases: Cases) -> bool:
    again = sum(target in case.history for case in cases.cases for target in case.targets)
    return again >= REPEATS * sum(len(case.targets) for case in cases.cases)


def _quality(cases: Cases, lists: list[list[int]], ids: Sequence[str]) -> dict[str, float]:
    ranked = [[ids[row] for row in rows] for rows in lists]
    values = metrics.means(metrics.per_case(cases.cases, ranked, ks=(10, 100)))
    return {measure: values[measure] for measure in ("ndcg@10", "recall@10", "recall@100")}


def _search(bench: Bench, arm: str, cases: Cases, say: Say) -> dict[str, float]:
    """The parameters of one baseline with the best nDCG@10, of all combinations."""
    names = list(PARAMETERS[arm])
    read, ids = histories(cases, bench.signals.snapshot), bench.signals.snapshot.ids
    tried = []
    for values in itertools.product(*PARAMETERS[arm].values()):
        given = dict(zip(names, values, strict=True))
        one = Bench(bench.signals, baselines={arm: given}, repeats=bench.repeats)
        lists = [rows for at in batches(len(read)) for rows in one.rank([arm], read[at], BUDGET)[arm]]
        tried.append((_quality(cases, lists, ids)["ndcg@10"], given))
    best = max(tried, key=lambda entry: entry[0])
    say(f"{arm}: {', '.join(f'{k} {v:g}' for k, v in best[1].items())} (nDCG@10 {best[0]:.4f})")
    return best[1]


def _weights(bench: Bench, cases: Cases, say: Say) -> tuple[dict[str, float], dict[str, float]]:
    """Weights of the channels in reciprocal rank fusion, one at a time, by recall@100; and the quality they give."""
    read, ids = histories(cases, bench.signals.snapshot), bench.signals.snapshot.ids
    lists: dict[str, list[list[int]]] = {channel: [] for channel in FUSED}
    for at in batches(len(read)):
        for channel, rows in bench.rank(FUSED, read[at], BUDGET).items():
            lists[channel] += rows

    def quality(weights: dict[str, float]) -> dict[str, float]:
        fused = Bench(bench.signals, weights=weights).fused(FUSED, lists, BUDGET)
        return _quality(cases, fused, ids)

    weights = {"dense": 0.6, "collaborative": 1.0, "lexical": 0.3, "popular": 0.1}
    best = quality(weights)
    for channel in ("dense", "lexical", "popular"):
        for weight in WEIGHTS:
            found = quality(tried := weights | {channel: weight})
            if found["recall@100"] + found["ndcg@10"] > best["recall@100"] + best["ndcg@10"]:
                weights, best = tried, found
    say(f"weights {weights}: recall@100 {best['recall@100']:.4f}, nDCG@10 {best['ndcg@10']:.4f}")
    return {"queries": 0.1, "named": 0.1} | weights, best


def _cross_validated(
    candidates: Candidates, chosen: np.ndarray, cases: Cases, say: Say
) -> tuple[dict[str, Any], dict[str, float]]:
    """The trees with the best nDCG@10 over folds of users, and their quality."""
    users = sorted({case.user for case in cases.cases})
    fold_of = dict(zip(users, np.random.default_rng(0).permutation(len(users)) % FOLDS, strict=True))
    folds = np.array([fold_of[case.user] for case in cases.cases])[candidates.case]
    tried = []
    for trees in TREES:
        scores = np.zeros(len(candidates.case))
        for fold in range(FOLDS):
            inside = folds != fold
            model = Learned.fit(_some(candidates, inside), chosen[inside], seeds=(0,), **trees)
            scores[~inside] = model.scores(_some(candidates, ~inside))
        quality = _of_scores(candidates, chosen, scores, cases)
        say(f"learned fusion {trees}: recall@100 {quality['recall@100']:.4f}, nDCG@10 {quality['ndcg@10']:.4f}")
        tried.append((quality["ndcg@10"], dict(trees), quality))
    _, trees, quality = max(tried, key=lambda entry: entry[0])
    return dict(trees), quality


def _some(table: Candidates, rows: np.ndarray) -> Candidates:
    return Candidates(table.case[rows], table.item[rows], table.features[rows], table.names)


def _of_scores(table: Candidates, chosen: np.ndarray, scores: np.ndarray, cases: Cases) -> dict[str, float]:
    """Measures of candidates ordered by score, without writing out lists; each case against all its targets."""
    n = len(cases)
    order = np.lexsort((table.item, -scores, table.case))
    case, hit = table.case[order], chosen[order]
    place = np.arange(len(case)) - np.searchsorted(case, np.arange(n))[case]
    targets = np.array([len(c.targets) for c in cases.cases])
    gain = np.where(place < 10, 1 / np.log2(place + 2), 0) * hit
    ideal = np.cumsum(1 / np.log2(np.arange(2, 12)))[np.minimum(targets, 10) - 1]
    found = {f"recall@{k}": np.bincount(case, weights=hit * (place < k), minlength=n) / targets for k in (10, 100)}
    values = {"ndcg@10": np.bincount(case, weights=gain, minlength=n) / ideal} | found
    return {measure: float(value.mean()) for measure, value in values.items()}
