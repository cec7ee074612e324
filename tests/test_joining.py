"""Learned joining: what a model's channels bring beside learned fusion, switched on where it pays, used, and done without."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ranking.features import FAR, Candidates
from agent.ranking.learned_fusion import Learned
from agent.ranking.stacking import Joined, beside, falling, log_odds, stacked
from agent.ranking.tuned import Tuned
from eval import compare
from eval.data.read_cases import load_cases
from eval.fitting import cross_fitting
from eval.tuning import grid_search
from eval.tuning.tune import tune
from tests.helpers.faults import Labels, Text
from tests.helpers.recommending import FILMS, modelled

TINY = ({"num_leaves": 4, "rounds": 5, "min_data_in_leaf": 5},)


@pytest.fixture(autouse=True)
def learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned fusion is better than weighted ranks, whose one way is bad; and nothing is set from outside."""
    for name in ("EVOKE_BASE_URL", "OPENAI_BASE_URL", "EVOKE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(grid_search, "TREES", TINY)
    monkeypatch.setattr(cross_fitting, "LESSONS", 200)
    first = {arm: {name: values[:1] for name, values in own.items()} for arm, own in grid_search.PARAMETERS.items()}
    monkeypatch.setattr(grid_search, "PARAMETERS", first)
    monkeypatch.setattr(grid_search, "START", dict.fromkeys(grid_search.START, 0.0) | {"popular": 1.0})
    monkeypatch.setattr(grid_search, "WEIGHTS", (0.0,))


def knowing() -> Callable[[dict[str, Any]], Text | Labels]:
    """A model that has seen all cases: it names what whoever's last film is in the prompt chose next, behind films it likes."""
    items = {}
    for line in (FILMS / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        items[item["id"]] = {"title": item["title"], "year": item["metadata"]["year"]}
    always = [items[id] for id in list(items)[:4]]
    told = {
        items[case.history[-1]]["title"]: [*always, *(items[target] for target in case.targets)]
        for part in ("valid", "test")
        for case in load_cases(FILMS, part).cases
    }

    def behave(body: dict[str, Any]) -> Text | Labels:
        if body.get("logprobs"):
            return Labels(dict.fromkeys("ABCDEFGHIJ", -1.0))
        titles = re.findall(r'^\d+\. "([^"]*)"', body["messages"][-1]["content"], re.MULTILINE)
        named = next((told[title] for title in reversed(titles) if title in told), always)
        return Text(json.dumps({"queries": [], "named": named[:10]}))

    return behave


def test_a_model_that_knows_is_joined_by_learning(films: Path, model_server: Callable[..., Any], rec: Any) -> None:
    server = model_server(knowing())
    given: dict[str, Any] = {"store": films, "base_url": server.base_url, "concurrency": 2}
    said: list[str] = []
    tuned = tune(FILMS, **given, say=said.append)
    assert tuned.learned
    assert "named" in tuned.joined
    assert {c for c in ("queries", "named") if tuned.settings["weights"][c] > 0} == set(tuned.joined)
    assert any("learned joining" in line for line in said)
    found = tuned.evidence["model channels"]
    learned = found["learned joining"]
    assert learned["on"]
    assert learned["users"] == len({case.user for case in load_cases(FILMS, "valid").cases})
    goal = [row["ndcg@10"] + row["recall@100"] for row in (found["without"], found["with"], learned["with"])]
    assert goal == sorted(goal)
    assert Tuned.load(films) == tuned
    kept = {file.name: file.read_bytes() for file in (films / "tuned" / "joined").iterdir()}
    again = tune(FILMS, **given)
    assert (again.settings, again.joined) == (tuned.settings, tuned.joined)
    assert again.evidence["model channels"]["learned joining"] == learned
    assert {file.name: file.read_bytes() for file in (films / "tuned" / "joined").iterdir()} == kept

    joined = "+".join(["base", *tuned.joined])
    run = compare(FILMS, ["full", "base", joined, "full-named", "full-collaborative"], **given)
    by_weight = compare_by_weight(films, tuned, given)
    assert run.settings["joined"] == tuned.joined
    assert run.arms["full"]["ndcg@10"] == run.arms[joined]["ndcg@10"]
    assert run.arms["full-named"]["ndcg@10"] < run.arms["full"]["ndcg@10"]
    assert run.arms["full-collaborative"]["recall@10"] > by_weight["recall@10"]
    assert run.arms["full"]["recall@10"] > max(run.arms["base"]["recall@10"], by_weight["recall@10"])

    case = load_cases(FILMS, "test").cases[0]
    used = rec(knowing())
    result = used.recommend(history=case.history, n=10)
    assert any("joined by" in note for note in result.trace["fuse"].notes)
    assert {r.item.id for r in result} & set(case.targets)
    assert any("named" in r.channels for r in result)
    assert all(0 <= r.score <= 1 for r in result)
    in_words = used.recommend("a heist in Paris", history=case.history, n=5)
    assert not any("joined by" in note for note in in_words.trace["fuse"].notes)
    down = rec(Text("", 500), deadline=2)
    result = down.recommend(history=case.history, n=10)
    assert len(result) == 10
    assert result.trace["interests"].degraded
    assert "learned fusion" in result.trace["fuse"].notes

    useless = model_server(modelled({"queries": ["a b c d", "e f g h"], "named": [{"title": "No Such", "year": 1900}]}))
    off = tune(FILMS, store=films, base_url=useless.base_url, model="other", concurrency=2)
    assert (off.joined, off.settings["weights"]["named"]) == ([], 0)
    assert not (films / "tuned" / "joined").exists()


def compare_by_weight(films: Path, tuned: Tuned, given: dict[str, Any]) -> dict[str, float]:
    """The figures of `full` on the same store, were its channels joined by the best of the weights."""
    tried = max(tuned.evidence["model channels"]["tried"], key=lambda row: row["ndcg@10"] + row["recall@100"])
    weights = tuned.settings["weights"] | {c: tried[c] for c in ("queries", "named")}
    Tuned(tuned.settings | {"weights": weights}, tuned.baselines, True, tuned.evidence).save(films)
    run = compare(FILMS, ["full"], **given)
    tuned.save(films)
    assert run.settings["joined"] == []
    return run.arms["full"]


ROWS = st.lists(st.integers(0, 30), unique=True, max_size=12)


@given(ROWS.filter(bool), ROWS, ROWS)
def test_ranks_are_those_of_the_lists(rows: list[int], queries: list[int], named: list[int]) -> None:
    item = np.array(sorted({*rows, *queries, *named}))
    table = Candidates(np.zeros(len(item), int), item, np.ones((len(item), 1)), ["history length"])
    read = stacked(table, np.linspace(-3, 3, len(item)), {"queries": [queries], "named": [named]})
    for channel, own in (("queries", queries), ("named", named)):
        ranks = np.expm1(read.features[:, read.names.index(f"{channel} rank")]).round()
        assert ranks.tolist() == [own.index(i) if i in own else FAR for i in item]
    assert np.expm1(read.features[:, read.names.index("rank")]).round().tolist() == list(range(len(item)))[::-1]
    assert set(beside({"queries": [queries], "named": [named]})[0]) == {*queries, *named}


def test_a_second_stage_that_learned_nothing_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    case, item = np.repeat(np.arange(40), 30), np.tile(np.arange(30), 40)
    chosen = np.zeros(1200, dtype=bool)
    lists = [[int(i) for i in rng.permutation(30)[:5]] for _ in range(40)]
    chosen[[row * 30 + own[0] for row, own in enumerate(lists)]] = True
    start = rng.normal(-3, 1, 1200)
    table = stacked(Candidates(case, item, np.ones((1200, 1)), ["history length"]), start, {"named": lists})
    none = Learned.fit(table, chosen, start=start, rounds=1, min_data_in_leaf=1200)
    assert np.allclose(log_odds(none.scores(table, start)), start)
    some = Learned.fit(
        table, chosen, start=start, rounds=60, min_data_in_leaf=5, monotone_constraints=falling(table.names)
    )
    assert some.scores(table, start)[chosen].mean() > 3 * none.scores(table, start)[chosen].mean()
    some.save(tmp_path)
    kept = Joined.load(tmp_path, ["named"])
    assert np.array_equal(kept.second.scores(table, start), some.scores(table, start))
    assert kept.reads({"named": 1, "dense": 1})
    assert not kept.reads(["named", "queries"])
