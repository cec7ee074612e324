"""The report of a run: its JSON, its tables, its page, and what changed since another."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.errors import EvalError
from eval.metrics import KS
from eval.report import plots
from eval.report.html import headline
from eval.report.run import Run, in_text
from eval.significance import Comparison, compare_all, holm, intervals

HOSTILE = "<script>alert(1)</script>&\"'[red]"
MEASURES = ("ndcg@10", "recall@10", "recall@100")
VOID = {"meta", "link", "path", "rect", "circle", "polyline"}


@pytest.fixture
def run() -> Run:
    """Three arms on 60 cases of 30 users: base well ahead of dense, full about as good as base."""
    random = np.random.default_rng(0)
    users = [f"u{n // 2}" for n in range(60)]
    luck = random.random(60) * 0.2
    level = {"base": 0.5, "full": 0.5, "dense": 0.1}
    values = {arm: {m: luck + mean + random.normal(0, 0.05, 60) for m in MEASURES} for arm, mean in level.items()}
    tests = [
        test
        for m in MEASURES
        for test in compare_all({arm: values[arm][m] for arm in values}, users, measure=m, rounds=2000)
    ]
    arms: dict[str, Any] = {
        arm: {f"recall@{k}": mean * k / 100 for k in KS} | {m: float(values[arm][m].mean()) for m in MEASURES}
        for arm, mean in level.items()
    }
    arms["base"] |= {"ms_p50": 4.2, "ms_p90": 11.0, "calls": 0, "tokens": 0, "coverage@10": 0.4}
    arms["full"] |= {
        "ms_p50": 2400.0,
        "ms_p90": 5100.0,
        "calls": 1,
        "tokens_in": 812.0,
        "tokens_out": 140.0,
        "tokens": 952.0,
    }
    arms["dense"] |= {"ms_p50": 3.0, "ms_p90": 5.0, "exclusive@100": 0.06}
    group = {"cases": 60, "arms": {arm: {"recall@100": own["recall@100"]} for arm, own in arms.items()}}
    return Run(
        "films",
        "test",
        60,
        30,
        arms,
        holm(tests),
        union_ceiling=0.61,
        data="abc",
        asked="these",
        seed=3,
        model="tiny",
        settings={"weights": {"dense": 0.3}, "allow_repeats": False},
        prompts={"interests": "f00"},
        intervals={arm: intervals(own, users, rounds=500) for arm, own in values.items()},
        overlap={"dense": {"dense": 1.0, "popular": 0.2}, "popular": {"dense": None, "popular": None}},
        strata={"history": {"1-2": group}},
        warnings=["3 rows were left out"],
        arms_not_run={"star": "no ratings"},
        values=values,
        case_users=np.unique(users, return_inverse=True)[1],
    )


def test_the_json_has_the_promised_keys(run: Run) -> None:
    shown = json.loads(json.dumps(run.as_json(), allow_nan=False))
    assert list(shown)[:7] == ["dataset", "on", "cases", "users", "arms", "comparisons", "union_ceiling@100"]
    assert {"recall@1", "recall@100", "ndcg@10", "ms_p50", "ms_p90", "tokens"} <= set(shown["arms"]["base"])
    assert {"a", "b", "measure", "difference", "low", "high", "p"} <= set(shown["comparisons"][0])
    assert shown["union_ceiling@100"] == 0.61 and (shown["cases"], shown["users"]) == (60, 30)
    assert {"data", "seed", "model", "settings", "prompts", "versions", "date"} <= set(shown)
    assert "values" not in shown


def test_what_json_cannot_hold_becomes_null_or_text(run: Run) -> None:
    run.arms["base"]["mrr"] = np.float32("nan")
    run.settings = {"folder": Path("x"), "list": (1, np.int64(2))}
    shown = json.loads(json.dumps(run.as_json(), allow_nan=False))
    assert shown["arms"]["base"]["mrr"] is None and shown["settings"] == {"folder": "x", "list": [1, 2]}


def test_a_saved_run_is_the_same_when_loaded(run: Run, tmp_path: Path) -> None:
    path = run.save(tmp_path / "runs" / "one")
    for place in (path, path.parent):
        loaded = Run.load(place)
        assert loaded == run
        np.testing.assert_allclose(loaded.values["base"]["ndcg@10"], run.values["base"]["ndcg@10"], atol=1e-6)
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "run.json", "values.npz"]


def test_a_run_that_cannot_be_saved_or_read_whole_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvalError, match=r"file cannot be written .*; choose another folder"):
        run.save(tmp_path / "file")
    values = run.save(tmp_path / "one").with_name("values.npz")
    values.write_bytes(values.read_bytes()[:200])
    with pytest.raises(EvalError, match=r"values\.npz cannot be read .*; run compare again, or take it away"):
        Run.load(values.parent)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"comparisons": [{"c": 1}], "union_ceiling@100": 1}'])
def test_what_is_no_run_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(EvalError, match=r"give the folder or run\.json"):
        Run.load(tmp_path)


def test_marks_tell_the_best_and_those_that_may_be_as_good(run: Run) -> None:
    marks = run.marks("recall@100")
    assert sorted(marks.values()) == ["best", "level"] and set(marks) == {"base", "full"}
    assert run.marks("mrr") == {} and run.marks("recall@5") == {}
    run.comparisons = [replace(each, p=0.2, p_holm=None) for each in run.comparisons]
    assert len(run.marks("recall@100")) == 3


def test_a_comparison_can_be_read_from_either_side(run: Run) -> None:
    run.comparisons = [Comparison("dense", "base", "ndcg@10", -0.4, -0.5, -0.3, 0.01)]
    assert run.compared("base", "ndcg@10") == {"dense": Comparison("base", "dense", "ndcg@10", 0.4, 0.3, 0.5, 0.01)}


def test_the_terminal_shows_it_all_in_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = str(run)
    assert max(map(len, text.splitlines())) <= 80
    first = next(line for line in text.splitlines() if line.startswith(run.ordered()[0]))
    assert "*" in first and "=" in next(line for line in text.splitlines() if line.startswith(run.ordered()[1]))
    for said in ("60 cases of 30 users", "2.4 s", "812", ".610", "star: no ratings", "3 rows were left out"):
        assert said in text
    assert "\x1b" not in text


def test_the_headline_does_not_claim_more_than_was_shown(run: Run) -> None:
    assert "may be as good" in headline(run)
    del run.arms["full"]
    run.comparisons = [each for each in run.comparisons if "full" not in (each.a, each.b)]
    assert headline(run).endswith("significantly ahead of the other arm.")
    run.arms["popular"] = dict(run.arms["dense"])
    assert headline(run).endswith("significantly ahead of dense; 1 were not compared with it.")
    run.comparisons = []
    assert re.fullmatch(r"base is best in nDCG@10 with \.\d{3}\.", headline(run))
    run.arms = {}
    assert headline(run) == "No arm was measured."


class _Page(HTMLParser):
    """Notes tags, what they would load, and whether each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone(run: Run) -> None:
    html = run.html()
    page = _Page(html)
    assert page.open == [] and page.loads == ["data:,"]
    assert not re.search(r"https?:|@import|url\(", html)
    assert page.tags.count("svg") == 4 and "script" not in page.tags
    assert 'name="viewport"' in html
    for said in ("films", "star", "no ratings", "3 rows were left out", "weights", "f00", "tiny"):
        assert said in html


def test_hostile_names_stay_text(run: Run) -> None:
    text = json.dumps(run.as_json()).replace('"dense"', json.dumps(HOSTILE))
    run = Run.from_json(json.loads(text))
    run = replace(run, dataset=HOSTILE, model=HOSTILE, warnings=[HOSTILE], arms_not_run={HOSTILE: HOSTILE})
    run.settings = {HOSTILE: HOSTILE}
    page = _Page(run.html())
    assert "script" not in page.tags and page.open == []
    assert HOSTILE in str(run)


@pytest.mark.parametrize("arms", [{}, {"base": {}}, {"base": {"ndcg@10": 0.0, "recall@10": 0.0, "ms_p50": 0.0}}])
def test_a_run_with_little_in_it_is_still_shown(arms: dict[str, Any]) -> None:
    run = Run("films", "test", 0, 0, arms)
    assert _Page(run.html()).open == [] and str(run)
    assert Run.from_json(run.as_json()) == run


def test_labels_beside_lines_do_not_cover_each_other() -> None:
    arms = {f"arm{n}": {f"recall@{k}": 0.2 for k in KS} for n in range(20)}
    places = [float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', plots.recall_curves(arms, KS))]
    assert len(places) == 20 and min(b - a for a, b in pairwise(places)) >= 12


def test_what_changed_is_said_with_its_significance(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    before = Run.load(tmp_path)
    assert run.against(before).inputs == {}
    assert "Nothing that went in has changed." in str(run.against(before))
    after = replace(
        run, settings={"weights": {"dense": 0.5}, "allow_repeats": False, "k": 100}, model="big", arms=dict(run.arms)
    )
    after.values = {**run.values, "base": {m: values + 0.1 for m, values in run.values["base"].items()}}
    after.arms["base"] = {**run.arms["base"], **{m: float(values.mean()) for m, values in after.values["base"].items()}}
    after.arms["new"] = after.arms.pop("full")
    changes = after.against(before)
    assert changes.inputs == {
        "model": ("tiny", "big"),
        "settings.weights.dense": (0.3, 0.5),
        "settings.k": (None, 100),
    }
    assert (changes.arms_gone, changes.arms_new) == (["full"], ["new"])
    by_arm = {(delta.arm, delta.measure): delta for delta in changes.measures}
    moved, still = by_arm["base", "ndcg@10"], by_arm["dense", "ndcg@10"]
    assert moved.p is not None and moved.p < 0.05 and moved.after - moved.before == pytest.approx(0.1)
    assert still.p == 1.0 and still.after == still.before
    text = in_text(changes)
    assert "settings.weights.dense" in text and "+.100" in text and "dense  nDCG" not in text
    assert json.loads(json.dumps(changes.as_json()))["inputs"]["model"] == ["tiny", "big"]


def test_other_data_is_not_tested_as_if_it_were_the_same(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    other = replace(Run.load(tmp_path), data="other")
    changes = run.against(other)
    assert changes.inputs == {"data": ("other", "abc")} and all(delta.p is None for delta in changes.measures)
    others = run.against(replace(Run.load(tmp_path), asked="as many others"))
    assert all(delta.p is None for delta in others.measures)
