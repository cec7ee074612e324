"""Arms: what their names mean, and what each ranks with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval.comparison.arms import Bench, asked_parts, parts
from eval.data.cases import Cases
from eval.data.read_cases import load_cases
from eval.errors import EvalError
from eval.fitting.ablation import without
from eval.fitting.signals import fit, histories
from store import Catalog
from tests.helpers.recommending import FILMS


@pytest.fixture(scope="module")
def cases() -> Cases:
    return load_cases(FILMS, "test")


@pytest.fixture(scope="module")
def bench(films_store: Path, cases: Cases) -> Iterator[Bench]:
    with Catalog.open(films_store, create=False) as catalog:
        yield Bench(fit(cases, catalog), weights={"dense": 0.6, "collaborative": 1.0, "lexical": 0.3, "popular": 0.1})


@pytest.mark.parametrize(
    ("arm", "on", "singles"),
    [
        ("dense", (), ("dense",)),
        ("dense+queries", (), ("dense", "queries")),
        ("full", ("queries", "named"), ("base", "queries", "named")),
        ("full", (), ("base",)),
        ("full-queries", ("queries", "named"), ("base", "named")),
        ("full-dense", ("named",), ("base-dense", "named")),
        ("base+queries+named", (), ("base", "queries", "named")),
        ("full+dense", ("queries",), ("base", "queries", "dense")),
        ("last-item+item-knn", (), ("last-item", "item-knn")),
        ("full", ("queries", "rank"), ("base", "queries", "rank")),
        ("full-rank", ("queries", "rank"), ("base", "queries")),
        ("full-dense+popular", ("rank",), ("base-dense", "popular", "rank")),
        ("base+rank", (), ("base", "rank")),
        ("full-queries-retriever", ("queries", "named"), ("base", "named")),
        ("dense+queries-adapter", (), ("dense", "queries")),
        ("queries-training", (), ("queries",)),
    ],
)
def test_an_arm_is_what_its_name_says(arm: str, on: tuple[str, ...], singles: tuple[str, ...]) -> None:
    assert parts(arm, on) == singles


@pytest.mark.parametrize(
    "arm", ["", "nonsense", "dense+", "full-", "full-base", "base-dense", "dense-full", "-adapter", "rank"]
)
def test_an_unknown_arm_is_refused_with_those_there_are(arm: str) -> None:
    with pytest.raises(EvalError, match="there are queries, named, dense"):
        parts(arm)


def test_a_model_is_asked_for_what_an_arm_uses_alone() -> None:
    assert asked_parts(parts("dense+queries")) == ("queries",)
    assert asked_parts(parts("named+queries")) == ("queries", "named")
    assert asked_parts(parts("base+ease")) == ()


def test_lists_hold_no_history_item_unless_repeats_are_allowed(bench: Bench, cases: Cases) -> None:
    read = histories(cases.cases, bench.snapshot)[:5]
    arms = [
        "base",
        "dense",
        "collaborative",
        "lexical",
        "popular",
        "mean-history",
        "item-knn",
        "ease",
        "star",
        "last-item",
    ]
    for lists in bench.rank(arms, read, 50).values():
        assert all(lists)
        for found, history in zip(lists, read, strict=True):
            assert len(set(found)) == len(found) <= 50
            assert not set(found) & set(history.tolist())
    again = Bench(bench.signals, repeats=True).rank(["popular"], read, 343)["popular"]
    assert all(set(history.tolist()) & set(found) for found, history in zip(again, read, strict=True))


def test_plus_fuses_equally_and_beside_base_by_weight(bench: Bench, cases: Cases) -> None:
    read = histories(cases.cases, bench.snapshot)[:3]
    both = bench.rank(["dense", "popular", "dense+popular"], read, 100)
    lists = {arm: both[arm] for arm in ("dense", "popular")}
    assert both["dense+popular"] == Bench.fused(lists, {"dense": 1.0, "popular": 1.0}, 100)
    base = bench.rank(["base"], read, 100)["base"]
    said = [list(range(340, 320, -1)) for _ in read]
    given = {("queries", ("queries",)): said}
    tuned = Bench(bench.signals, weights=dict(bench.weights) | {"queries": 0.05}, on=("queries",))
    ranked = tuned.rank(["full", "queries", "dense+queries"], read, 100, given)
    assert ranked["queries"] == said
    heard = {"dense": lists["dense"], "queries": said}
    assert ranked["dense+queries"] == Bench.fused(heard, {}, 100)
    found = Bench(bench.signals, baselines={"dense+queries": {"queries": 0.3}})
    assert found.rank(["dense+queries"], read, 100, given)["dense+queries"] == Bench.fused(heard, {"queries": 0.3}, 100)
    few = Bench(bench.signals, baselines={"dense+queries": {"queries": 0.3, "depth": 7}})
    heard["queries"] = [own[:7] for own in said]
    assert few.rank(["dense+queries"], read, 100, given)["dense+queries"] == Bench.fused(heard, {"queries": 0.3}, 100)
    assert few.shares(["dense", "queries"]) == {"dense": 1.0, "queries": 0.3}
    assert ranked["full"] == Bench.fused({"base": base, "queries": said}, {"base": 1.0, "queries": 0.05}, 100)


def test_leaving_a_channel_out_silences_its_signals(bench: Bench, cases: Cases) -> None:
    read = histories(cases.cases, bench.snapshot)[:3]
    ranked = bench.rank(["full-dense", "collaborative", "lexical", "popular"], read, 100)
    others = {arm: ranked[arm] for arm in ("collaborative", "lexical", "popular")}
    assert ranked["full-dense"] == Bench.fused(others, bench.weights, 100)
    silent = without(bench.signals, "collaborative").scores(read)
    assert not any(silent[name].any() for name in ("next", "later", "alike", "together"))
    assert np.array_equal(silent["near"], bench.signals.scores(read)["near"])
