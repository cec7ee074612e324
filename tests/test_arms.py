"""Arms: what their names mean, and what each ranks with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.ranking.candidates import Fusion
from agent.ranking.fusion import fuse
from agent.results import Interests
from eval.comparison.arms import MODEL_FREE, parts
from eval.comparison.baselines import BASELINES
from eval.comparison.bench import Bench
from eval.data.cases import Cases
from eval.data.read_cases import load_cases
from eval.errors import EvalError
from eval.fitting.signals import fit_sources
from store import Catalog, Hit
from tests.helpers.recommending import FILMS


@pytest.fixture(scope="module")
def cases() -> Cases:
    return load_cases(FILMS, "test")


@pytest.fixture(scope="module")
def bench(films_store: Path, cases: Cases) -> Iterator[Bench]:
    with Catalog.open(films_store, create=False) as catalog:
        weights = {"dense": 0.6, "collaborative": 1.0, "lexical": 0.3, "popular": 0.1}
        yield Bench(fit_sources(cases, catalog), Fusion(weights))


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
def test_an_unknown_arm_is_refused_with_a_list_of_arms(arm: str) -> None:
    with pytest.raises(EvalError, match="there are queries, named, dense"):
        parts(arm)


def test_lists_hold_no_seen_item_unless_repeats_are_allowed(bench: Bench, cases: Cases) -> None:
    few = cases.cases[:5]
    arms = ["base", *MODEL_FREE, *(name for name in BASELINES if name != "mentioned")]
    for lists in bench.rank(arms, few, k=50).values():
        assert all(lists)
        for found, case in zip(lists, few, strict=True):
            assert len(set(found)) == len(found) <= 50
            assert not set(found) & set(case.excluded)
    again = replace(bench, repeats=True).rank(["popular"], few, k=343)["popular"]
    assert all(set(case.known) & set(found) for case, found in zip(few, again, strict=True))


def test_plus_fuses_equally_or_as_tuned_and_with_base_by_weight(bench: Bench, cases: Cases) -> None:
    few = cases.cases[:3]
    both = bench.rank(["dense", "popular", "dense+popular"], few)
    lists = {arm: both[arm] for arm in ("dense", "popular")}
    assert both["dense+popular"] == fused(lists, {"dense": 1.0, "popular": 1.0})
    said = [Interests(queries=("a crew plans one last robbery",)) for _ in few]
    alone = bench.rank(["queries", "dense+queries"], few, said)
    heard = {"dense": lists["dense"], "queries": alone["queries"]}
    assert alone["dense+queries"] == fused(heard, {"dense": 1.0, "queries": 1.0})
    tuned = replace(bench, baselines={"dense+queries": {"queries": 0.3, "depth": 7}})
    assert tuned.shares(["dense", "queries"]) == {"dense": 1.0, "queries": 0.3}
    heard["queries"] = [own[:7] for own in heard["queries"]]
    assert tuned.rank(["dense+queries"], few, said)["dense+queries"] == fused(heard, {"dense": 1.0, "queries": 0.3})
    base = bench.rank(["base"], few)["base"]
    weights = dict(bench.fusion.weights)
    light, heavy = (
        replace(bench, fusion=replace(bench.fusion, weights=weights | {"queries": weight}), on=("queries",))
        for weight in (0.001, 100.0)
    )
    assert light.rank(["full"], few, said)["full"] != heavy.rank(["full"], few, said)["full"]
    assert [own[0] for own in light.rank(["full"], few, said)["full"]] == [own[0] for own in base]
    assert [own[0] for own in heavy.rank(["full"], few, said)["full"]] == [own[0] for own in alone["queries"]]


def fused(lists: dict[str, list[list[str]]], weights: dict[str, float]) -> list[list[str]]:
    found = []
    for row in range(len(next(iter(lists.values())))):
        hits = {name: [Hit(id, 0.0) for id in own[row]] for name, own in lists.items()}
        found.append([candidate.id for candidate in fuse(hits, weights)][:100])
    return found


def test_full_without_a_channel_is_base_of_the_others(bench: Bench, cases: Cases) -> None:
    few = cases.cases[:3]
    weights = dict(bench.fusion.weights) | {"dense": 0.0}
    others = replace(bench, fusion=replace(bench.fusion, weights=weights))
    ranked = bench.rank(["full-dense", "base"], few)
    assert ranked["full-dense"] == others.rank(["base"], few)["base"] != ranked["base"]
