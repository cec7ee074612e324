"""The report of a run: JSON, tables, HTML page, and the changes since another run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from eval.errors import EvalError
from eval.metrics import KS
from eval.report import plots
from eval.report.diff import Changes
from eval.report.html import summarize
from eval.report.report import Run
from eval.significance import Comparison, bootstrap_intervals, compare_all, correct_by_holm
from store import MissingExtra

HOSTILE = "<script>alert(1)</script>&\"'[red]"
MEASURES = ("ndcg@10", "recall@10", "recall@100")
VOID = {"meta", "link"}
OLD_RUN = {  # as version 0.1.0 wrote it, before runs kept the hash of their cases; with a key that is unknown now
    "dataset": "films", "on": "test", "cases": 2, "users": 2,
    "arms": {"base": {"ndcg@10": 0.4, "recall@100": 0.6}, "dense": {"ndcg@10": 0.1, "recall@100": 0.2}},
    "comparisons": [
        {"a": "base", "b": "dense", "measure": "ndcg@10", "difference": 0.3, "low": 0.2, "high": 0.4, "p": 0.01, "p_holm": 0.02}
    ],
    "union_ceiling@100": None, "data": "abc", "seed": 0, "model": None, "settings": {"weights": {"dense": 0.6}},
    "prompts": {}, "versions": {"numpy": "2.0"}, "date": "2026-10-01T00:00:00+00:00",
    "intervals": {"base": {"ndcg@10": [0.3, 0.5]}}, "overlap": {}, "strata": {}, "warnings": [], "arms_not_run": {},
    "changes": {
        "inputs": {"settings.weights.dense": [0.3, 0.6]},
        "measures": [
            {"arm": "base", "measure": "ndcg@10", "before": 0.3, "after": 0.4, "low": None, "high": None, "p": None}
        ],
        "arms_gone": ["popular"], "arms_new": [],
    },
    "removed since": 1,
}  # fmt: skip


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
        correct_by_holm(tests),
        union_ceiling=0.61,
        data="abc",
        asked="these",
        seed=3,
        model="tiny",
        settings={"weights": {"dense": 0.3}, "allow_repeats": False},
        prompts={"interests": "f00"},
        intervals={arm: bootstrap_intervals(own, users, rounds=500) for arm, own in values.items()},
        overlap={"dense": {"dense": 1.0, "popular": 0.2}, "popular": {"dense": None, "popular": None}},
        strata={"history": {"1-2": group}},
        warnings=["3 rows were left out"],
        arms_not_run={"star": "no ratings"},
        values=values,
        case_users=np.unique(users, return_inverse=True)[1],
    )


def test_json_has_documented_keys(run: Run) -> None:
    shown = json.loads(json.dumps(run.as_json(), allow_nan=False))
    assert list(shown)[:7] == ["dataset", "on", "cases", "users", "arms", "comparisons", "union_ceiling@100"]
    assert {"recall@1", "recall@100", "ndcg@10", "ms_p50", "ms_p90", "tokens"} <= set(shown["arms"]["base"])
    assert {"a", "b", "measure", "difference", "low", "high", "p"} <= set(shown["comparisons"][0])
    assert shown["union_ceiling@100"] == 0.61 and (shown["cases"], shown["users"]) == (60, 30)
    assert {"data", "seed", "model", "settings", "prompts", "versions", "date"} <= set(shown)
    assert "values" not in shown


def test_json_holds_null_for_nan_and_text_for_other_objects(run: Run) -> None:
    run.arms["base"]["mrr"] = np.float32("nan")
    run.settings = {"folder": Path("x"), "list": (1, np.int64(2))}
    shown = json.loads(json.dumps(run.as_json(), allow_nan=False))
    assert shown["arms"]["base"]["mrr"] is None and shown["settings"] == {"folder": "x", "list": [1, 2]}


def test_loaded_run_equals_saved_run(run: Run, tmp_path: Path) -> None:
    path = run.save(tmp_path / "runs" / "one")
    for place in (path, path.parent):
        loaded = Run.load(place)
        assert loaded == run
        np.testing.assert_allclose(loaded.values["base"]["ndcg@10"], run.values["base"]["ndcg@10"], atol=1e-6)
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "run.json", "values.npz"]


def test_unwritable_folder_and_damaged_values_raise_an_error_with_remedy(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvalError, match=r"file cannot be written .*; choose another folder"):
        run.save(tmp_path / "file")
    values = run.save(tmp_path / "one").with_name("values.npz")
    values.write_bytes(values.read_bytes()[:200])
    with pytest.raises(EvalError, match=r"values\.npz cannot be read .*; run compare again, or delete the file"):
        Run.load(values.parent)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"comparisons": [{"c": 1}], "union_ceiling@100": 1}'])
def test_file_that_is_not_a_run_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(EvalError, match=r"give the folder or run\.json"):
        Run.load(tmp_path)


def test_marks_name_best_arm_and_arms_not_significantly_below(run: Run) -> None:
    marks = run.mark_arms("recall@100")
    assert sorted(marks.values()) == ["best", "level"] and set(marks) == {"base", "full"}
    assert run.mark_arms("mrr") == {} and run.mark_arms("recall@5") == {}
    run.comparisons = [replace(each, p=0.2, p_holm=None) for each in run.comparisons]
    assert len(run.mark_arms("recall@100")) == 3


def test_comparison_is_swapped_if_arm_is_the_second_one(run: Run) -> None:
    run.comparisons = [Comparison("dense", "base", "ndcg@10", -0.4, -0.5, -0.3, 0.01)]
    assert run.comparisons_of("base", "ndcg@10") == {
        "dense": Comparison("base", "dense", "ndcg@10", 0.4, 0.3, 0.5, 0.01)
    }


def test_printed_run_shows_all_parts_in_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = str(run)
    assert max(map(len, text.splitlines())) <= 80
    first = next(line for line in text.splitlines() if line.startswith(run.rank_arms()[0]))
    assert "*" in first and "=" in next(line for line in text.splitlines() if line.startswith(run.rank_arms()[1]))
    for said in ("60 cases of 30 users", "2.4 s", "812", ".610", "star: no ratings", "3 rows were left out"):
        assert said in text
    assert "\x1b" not in text


def test_summary_claims_only_significant_differences(run: Run) -> None:
    assert "may be as good" in summarize(run)
    del run.arms["full"]
    run.comparisons = [each for each in run.comparisons if "full" not in (each.a, each.b)]
    assert summarize(run).endswith("significantly ahead of the other arm.")
    run.arms["popular"] = dict(run.arms["dense"])
    assert summarize(run).endswith("significantly ahead of dense; 1 were not compared with it.")
    run.comparisons = []
    assert re.fullmatch(r"base is best in nDCG@10 with \.\d{3}\.", summarize(run))
    run.arms = {}
    assert summarize(run) == "No arm was measured."


class _Page(HTMLParser):
    """Collects the tags of a page and the addresses it would load, and checks that each tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name.endswith(("src", "href", "data", "action"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_page_loads_nothing_and_has_four_labelled_plots(run: Run) -> None:
    html = run.html()
    page = _Page(html)
    assert page.open == [] and {each for each in page.loads if not each.startswith("#")} == {"data:,"}
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    assert page.tags.count("svg") == 4 and not {"script", "image", "metadata", "foreignobject"} & set(page.tags)
    assert len(re.findall(r'<svg viewBox="0 0 440 \d+" role="img" aria-label="[^"]{20,}">', html)) == 4
    assert 'name="viewport"' in html
    for text in ("films", "star", "no ratings", "3 rows were left out", "weights", "f00", "tiny"):
        assert text in html


def test_page_is_the_same_each_time_whatever_the_user_set_for_matplotlib(run: Run) -> None:
    first = run.html()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert run.html() == first


def test_plots_show_values_on_hover_and_follow_the_colours_of_the_page(run: Run) -> None:
    html = run.html()
    assert "<title>base: R@1 .005, R@3 .015" in html
    assert "<title>popular finds .200 of what dense finds</title>" in html
    assert all(f"var(--{name})" in html for name in ("c0", "c1", "c2", "ink", "soft", "line", "tint"))
    svg = re.findall("<svg.*?</svg>", html, re.DOTALL)
    assert not re.search("#[0-9a-f]{6};", "".join(svg)), "a colour that dark mode does not change"


def test_hostile_names_are_escaped_in_page_and_terminal(run: Run) -> None:
    text = json.dumps(run.as_json()).replace('"dense"', json.dumps(HOSTILE))
    run = Run.from_json(json.loads(text))
    run = replace(run, dataset=HOSTILE, model=HOSTILE, warnings=[HOSTILE], arms_not_run={HOSTILE: HOSTILE})
    run.settings = {HOSTILE: HOSTILE}
    page = _Page(run.html())
    assert "script" not in page.tags and page.open == []
    assert HOSTILE in str(run)


@pytest.mark.parametrize(
    "name", ["$x^{$", "\x00\x1b[31m\n\u202e", "电影", '" onmouseover="alert(1)', "]]>-->", "x" * 500]
)
def test_any_arm_name_can_be_drawn(run: Run, name: str) -> None:
    run = Run.from_json(json.loads(json.dumps(run.as_json()).replace('"dense"', json.dumps(name))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = run.html()
    assert _Page(html).open == []
    for svg in re.findall("<svg.*?</svg>", html, re.DOTALL):
        root = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
        assert not any(attribute.startswith("on") for element in root.iter() for attribute in element.attrib)


@pytest.mark.parametrize("arms", [{}, {"base": {}}, {"base": {"ndcg@10": 0.0, "recall@10": 0.0, "ms_p50": 0.0}}])
def test_run_with_few_or_no_measures_is_rendered(arms: dict[str, Any]) -> None:
    run = Run("films", "test", 0, 0, arms)
    assert _Page(run.html()).open == [] and str(run)
    assert Run.from_json(run.as_json()) == run


@pytest.mark.parametrize("draw", ["curves", "costs"])
def test_names_in_plots_do_not_overlap(draw: str) -> None:
    arms = {f"arm{n}": {f"recall@{k}": 0.2 for k in KS} | {"ndcg@10": 0.2, "ms_p50": 5.0} for n in range(20)}
    svg = plots.recall_curves(arms, KS) if draw == "curves" else plots.quality_and_cost(arms, "ndcg@10")
    found = dict(re.findall(r'y="([\d.]+)"[^>]*>(arm\d+)<', svg))
    places = sorted(map(float, found))
    assert len(places) == 20 and min(b - a for a, b in pairwise(places)) >= 12
    height = int(re.findall(r'viewBox="0 0 440 (\d+)"', svg)[0])
    assert places[0] > 8 and places[-1] < height


def test_missing_matplotlib_names_the_extra_and_keeps_the_data(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        MissingExtra, match=re.escape('the report page needs the extra "eval": pip install "evoke-rec[eval]"')
    ):
        run.save(tmp_path)
    assert Run.load(tmp_path) == run and str(run)


def test_matplotlib_is_loaded_only_for_a_page() -> None:
    code = (
        "from eval import Run, compare; import sys; str(Run('d', 'test', 0, 0, {})); print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_run_saved_by_an_older_version_is_loaded_and_rendered(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(OLD_RUN))
    run = Run.load(tmp_path)
    assert run.arms["base"]["ndcg@10"] == 0.4 and run.asked == "" and run.intervals["base"]["ndcg@10"] == (0.3, 0.5)
    assert "settings.weights.dense" in str(run) and "settings.weights.dense" in run.html()
    assert run.as_json()["comparisons"] == OLD_RUN["comparisons"]


def test_changes_between_runs_are_listed_with_significance(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    before = Run.load(tmp_path)
    assert run.changes_since(before).inputs == {}
    assert "No input changed." in str(run.changes_since(before))
    after = replace(
        run, settings={"weights": {"dense": 0.5}, "allow_repeats": False, "k": 100}, model="big", arms=dict(run.arms)
    )
    after.values = {**run.values, "base": {m: values + 0.1 for m, values in run.values["base"].items()}}
    after.arms["base"] = {**run.arms["base"], **{m: float(values.mean()) for m, values in after.values["base"].items()}}
    after.arms["new"] = after.arms.pop("full")
    changes = after.changes_since(before)
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
    text = str(changes)
    assert "settings.weights.dense" in text and "+.100" in text and "dense  nDCG" not in text
    assert "Arms of the earlier run only: full" in text and "Arms of this run only: new" in text
    saved = json.loads(json.dumps(changes.as_json()))
    assert saved["inputs"]["model"] == ["tiny", "big"] and Changes.from_json(saved) == changes


def test_page_and_terminal_show_the_same_changes(run: Run) -> None:
    after = replace(run, model="big", arms={"base": run.arms["base"] | {"ndcg@10": 0.9}})
    after.changes = after.changes_since(run).as_json()
    page, terminal = after.html(), str(after)
    changes = Changes.from_json(after.changes)
    cells = [text for table in changes.tables() for _, row in table.rows for cell in row for text in cell[:2] if text]
    assert "big" in cells and ".900" in cells
    for text in [*changes.notes(), *cells]:
        assert text in page and text in terminal


def test_runs_on_other_data_or_cases_are_not_tested_for_significance(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    other = replace(Run.load(tmp_path), data="other")
    changes = run.changes_since(other)
    assert changes.inputs == {"data": ("other", "abc")} and all(delta.p is None for delta in changes.measures)
    others = run.changes_since(replace(Run.load(tmp_path), asked="as many others"))
    assert all(delta.p is None for delta in others.measures)
