"""Measures: equal to values worked out by hand, and on random lists equal to their definitions."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval import metrics
from eval.comparison.runner import compare
from eval.data.cases import Case
from eval.training import retriever
from eval.tuning.prompts.prompt_search import tune_prompts
from eval.tuning.tune import tune
from store import MissingExtra

CASES = [
    Case("u", ("x",), ("a", "b")),
    Case("u", (), ("c",)),
    Case("v", ("x",) * 4, ("d",)),
    Case("w", ("x",) * 12, ("e",)),
]
RANKED = [["x", "a", "y", "b"], ["c"], ["x", "y"], []]


def test_measures_of_each_case_equal_values_worked_out_by_hand() -> None:
    values = metrics.per_case(CASES, RANKED)
    assert set(values) == {f"{name}@{k}" for name in ("recall", "ndcg", "hit") for k in metrics.KS} | {"mrr"}
    ideal = 1 + 1 / math.log2(3)
    expected = {
        "recall@1": [0, 1, 0, 0],
        "recall@3": [0.5, 1, 0, 0],
        "recall@100": [1, 1, 0, 0],
        "hit@3": [1, 1, 0, 0],
        "mrr": [0.5, 1, 0, 0],
        "ndcg@3": [1 / math.log2(3) / ideal, 1, 0, 0],
        "ndcg@10": [(1 / math.log2(3) + 1 / math.log2(5)) / ideal, 1, 0, 0],
    }
    for name, column in expected.items():
        np.testing.assert_allclose(values[name], column, err_msg=name)
    assert metrics.means(values)["recall@3"] == pytest.approx(0.375)


def test_measures_of_random_lists_equal_their_definitions() -> None:
    random = np.random.default_rng(0)
    ids = [f"i{n}" for n in range(150)]
    cases = [
        Case(str(n), (), tuple(random.choice(ids, random.integers(1, 12), replace=False).tolist())) for n in range(50)
    ]
    ranked = [random.choice(ids, 100, replace=False).tolist() for _ in cases]
    values = metrics.per_case(cases, ranked)
    for row, (case, list_) in enumerate(zip(cases, ranked, strict=True)):
        right = np.array([id in case.targets for id in list_], dtype=float)
        discount = 1 / np.log2(np.arange(2, 102))
        for k in metrics.KS:
            assert values[f"recall@{k}"][row] == pytest.approx(right[:k].sum() / len(case.targets))
            ideal = discount[: min(k, len(case.targets))].sum()
            assert values[f"ndcg@{k}"][row] == pytest.approx((right * discount)[:k].sum() / ideal)
        assert values["mrr"][row] == pytest.approx(1 / (right.argmax() + 1) if right.any() else 0)


def test_lists_of_wrong_number_or_with_duplicates_are_refused() -> None:
    with pytest.raises(ValueError, match="2 ranked lists for 4 cases"):
        metrics.per_case(CASES, RANKED[:2])
    with pytest.raises(ValueError, match="contains an id twice"):
        metrics.per_case(CASES, [["a", "a"], [], [], []])
    assert not any(column.any() for column in metrics.per_case(CASES, [[], [], [], []]).values())


def test_measures_of_shown_items_equal_values_worked_out_by_hand() -> None:
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 0.0]}
    popularity = {"a": 3, "b": 1}
    measured = metrics.measure_shown_items(
        [["a", "b"], ["a", "c"], ["a"]], 4, popularity, lambda ids: np.array([vectors[id] for id in ids]), k=2
    )
    assert measured["coverage@2"] == 0.75
    assert measured["popularity@2"] == pytest.approx((3 + 1 + 3 + 0 + 3) / 5)
    assert measured["novelty@2"] == pytest.approx((3 * -math.log2(4 / 8) - math.log2(2 / 8) - math.log2(1 / 8)) / 5)
    assert measured["diversity@2"] == pytest.approx((1 - 0 + 1 - 1) / 2)
    assert measured["gini@2"] == pytest.approx((-1 * 1 + 1 * 1 + 3 * 3) / (4 * 5))
    assert metrics.measure_shown_items([[], []], 4, popularity, lambda ids: np.zeros((0, 2)), k=2)["coverage@2"] == 0


def test_gini_is_zero_if_all_items_are_shown_equally_often() -> None:
    shown = metrics.measure_shown_items([["a"], ["b"]], 2, {}, lambda ids: np.eye(len(ids)))
    assert shown["gini@10"] == pytest.approx(0) and shown["diversity@10"] == 0


def test_exclusive_recall_union_ceiling_and_overlap_of_channels() -> None:
    cases = [Case("u", (), ("a", "b")), Case("v", (), ("c",))]
    channels = {"one": [["a", "b"], []], "two": [["b"], ["c"]], "none": [["x"], ["y"]]}
    assert metrics.exclusive_recall(cases, channels) == {"one": 0.25, "two": 0.5, "none": 0.0}
    assert metrics.union_ceiling(cases, channels) == 1.0
    assert metrics.union_ceiling(cases, channels, k=1) == pytest.approx(1.0)
    assert metrics.exclusive_recall(cases, channels, k=1)["one"] == 0.25
    shares = metrics.overlap(cases, channels)
    assert shares["one"] == {"one": 1.0, "two": 0.5, "none": 0.0} and shares["none"]["one"] is None


def test_cases_are_grouped_by_history_popularity_and_new_items() -> None:
    popularity = {"a": 6, "b": 3, "c": 1, "d": 1, "x": 1}
    labels = metrics.label_cases(CASES, popularity, {"a", "b", "c", "d"})
    assert labels["history"].tolist() == ["1-2", "0", "3-5", "11+"]
    assert labels["popularity"].tolist() == ["head", "tail", "tail", "tail"]
    assert labels["item"].tolist() == ["known", "known", "known", "new"]
    table = metrics.means_by_stratum(labels, {"arm": metrics.per_case(CASES, RANKED)}, ["recall@100"])
    assert list(table["history"]) == ["0", "1-2", "3-5", "11+"]
    assert table["item"]["new"] == {"cases": 1, "arms": {"arm": {"recall@100": 0.0}}}
    assert table["item"]["known"]["arms"] == {"arm": {"recall@100": pytest.approx(2 / 3)}}


@pytest.mark.parametrize("package", ["ir_measures", "lightgbm", "matplotlib"])
@pytest.mark.parametrize("work", [compare, tune, tune_prompts, retriever.train])
def test_missing_extra_is_reported_before_any_work(
    work: Callable[..., object], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=re.escape('needs the extra "eval": pip install "evoke-rec[eval]"')):
        work(tmp_path / "missing")
