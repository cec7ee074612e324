"""Comparisons: the contract of `evoke compare`, leaks planted where one could be, arms that call a model, dialogues."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.forgetting import drop_derived
from agent.ranking.tuned import Tuned
from eval import compare
from eval.comparison.llm_cache import FAILURES
from eval.data.leakage import seen_hash
from eval.data.read_cases import load_cases
from eval.errors import EvalError
from eval.report.report import Run
from store import Event, History
from tests.helpers.faults import Labels, Status, Text
from tests.helpers.recommending import FILMS, GOOD, modelled

COUNTED = ("calls", "tokens_in", "tokens_out", "tokens")
CASES = 27
"""The test cases that the demo data make."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in ("EVOKE_BASE_URL", "OPENAI_BASE_URL", "EVOKE_STORE"):
        monkeypatch.delenv(name, raising=False)


def evoke(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)


def quality(run: Run) -> dict[str, dict[str, Any]]:
    """The measures of each arm without its times."""
    return {arm: {m: v for m, v in own.items() if not m.startswith("ms_")} for arm, own in run.arms.items()}


def test_the_command_prints_the_documented_json_and_the_changes_since_a_run(films: Path, tmp_path: Path) -> None:
    common = ("compare", str(FILMS), "--store", str(films), "--json")
    first = evoke(*common, "--arms", "base,dense,popular", "--out", str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    run = json.loads(first.stdout)
    assert (run["dataset"], run["on"], run["cases"], run["users"]) == ("films", "test", CASES, 25)
    assert set(run["arms"]) == {"base", "dense", "popular"}
    wanted = {*(f"recall@{k}" for k in (1, 5, 10, 20, 50, 100)), "ndcg@10", "mrr", "ms_p50", "ms_p90", "tokens"}
    assert all(wanted <= own.keys() for own in run["arms"].values())
    assert "exclusive@100" in run["arms"]["dense"]
    assert {f"recall@{k}" for k in (1, 5, 10, 50)} <= run["intervals"]["base"].keys()
    assert run["union_ceiling@100"] >= run["arms"]["dense"]["recall@100"]
    assert all({"a", "b", "measure", "difference", "low", "high", "p"} <= each.keys() for each in run["comparisons"])
    assert {each["a"] for each in run["comparisons"]} == {"base"}
    assert run["changes"] is None
    later = evoke(
        *common, "--arms", "base,dense,lexical", "--allow-repeats", "--against", str(tmp_path / "first"), "--out",
        str(tmp_path / "later"),
    )  # fmt: skip
    changes = json.loads(later.stdout)["changes"]
    assert changes["inputs"]["settings.allow_repeats"] == [False, True]
    assert (changes["arms_gone"], changes["arms_new"]) == (["popular"], ["lexical"])
    page = (tmp_path / "later" / "report.html").read_text()
    assert "What changed since the earlier run" in page
    assert "settings.allow_repeats" in page


def test_a_comparison_prints_itself_and_is_the_same_again(films: Path) -> None:
    first, again = (compare(FILMS, ["base", "star", "ease"], store=films, cases=12, seed=3) for _ in range(2))
    assert re.search(r"^base .*\.\d{3}", str(first), re.MULTILINE)
    assert quality(first) == quality(again)
    assert first.cases < CASES
    other = compare(FILMS, ["base"], store=films, cases=12, seed=4)
    assert other.case_users is not None and quality(other) != quality(first)
    assert other.asked != first.asked == again.asked
    assert all(delta.p is None for delta in other.changes_since(first).measures)
    again = compare(FILMS, ["base"], store=films, cases=12, seed=3, weights={"dense": 1.0}, how="last-out")
    assert again.settings["in use"]["weights"] == {"dense": 1.0}
    assert again.changes_since(first).inputs["settings.split"] == ("as given", "last-out")


def test_impossible_requests_are_refused_before_the_work(films: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no arm is named; name some"):
        compare(FILMS, [], store=films)
    (tmp_path / "file").touch()
    told = evoke("compare", str(FILMS), "--store", str(films), "--arms", "popular", "--out", str(tmp_path / "file"))
    assert (told.returncode, told.stdout) == (1, "")
    assert re.fullmatch(r"evoke: \S+file cannot be written \(.*\); choose another --out\n", told.stderr)


def test_targets_that_no_arm_can_find_are_counted(films: Path, tmp_path: Path) -> None:
    data = shutil.copytree(FILMS, tmp_path / "films")
    (data / "test.jsonl").write_text(
        json.dumps({"user": "nobody yet", "history": ["heat-1995"], "targets": ["heat-1995", "ronin-1998"]}) + "\n"
    )
    run = compare(data, ["popular"], store=films)
    assert any(line.startswith("1 targets stand in their case's own history") for line in run.warnings)
    assert not any(
        "own history" in line for line in compare(data, ["popular"], store=films, allow_repeats=True).warnings
    )
    (data / "test.jsonl").rename(data / "test.csv")
    with pytest.raises(EvalError, match=r"test\.csv: cases contain lists.*give test\.jsonl or \.parquet"):
        compare(data, ["popular"], store=films)


def test_nothing_in_the_store_from_after_the_cut_has_an_effect(films: Path, model_server: Callable[..., Any]) -> None:
    """The store's history, its counts, a profile of the case's user, and a tuning done on the test cases."""
    arms = ["base", "collaborative", "popular", "ease", "star", "queries"]
    server = model_server(modelled())
    clean = compare(FILMS, arms, store=films, base_url=server.base_url, concurrency=2)
    cases = load_cases(FILMS, "test")
    with History.open(films) as history:
        told = [Event(c.user, t, 3e9 + n) for c in cases.cases for n, t in enumerate(c.targets)]
        told += [Event(f"crowd {n}", cases.cases[0].targets[0], 3e9 + n) for n in range(300)]
        history.add(told)
        for case in cases.cases:
            targets = {"profile": None, "queries": list(case.targets), "named": []}
            for model in (f"{server.base_url} scripted", "embedded"):
                history.save_profile(case.user, list(case.history), model, "any", targets)
    Tuned({"weights": {"popular": 9.0}}, {"ease": {"decay": 0.1}}, False, {"on": "test", "cases": 1}).save(films)
    planted = compare(FILMS, arms, store=films, base_url=server.base_url, concurrency=2)
    assert quality(planted) == quality(clean)
    assert any("it saw other data" in warning for warning in planted.warnings)


def test_tuning_that_could_have_seen_the_cases_is_not_used(films: Path) -> None:
    evidence = {"on": "valid", "seen": seen_hash(FILMS), "cases": 1}
    Tuned({"weights": {"popular": 9.0}}, {}, False, evidence).save(films)
    used = compare(FILMS, ["base"], store=films)
    assert used.settings["tuned"] == {"weights": {"popular": 9.0}}
    for asked in ({"on": "valid"}, {"how": "last-out"}):
        run = compare(FILMS, ["base"], store=films, **asked)
        assert run.settings["tuned"] == {}
        assert any("not used here" in warning for warning in run.warnings)


def test_a_model_is_asked_once_a_case_as_the_recommender_asks_and_its_cost_is_told(
    films: Path, model_server: Callable[..., Any]
) -> None:
    def behave(body: dict[str, Any]) -> Any:
        time.sleep(0.1)
        return modelled()(body)

    server = model_server(behave)
    few: dict[str, Any] = {"store": films, "base_url": server.base_url, "concurrency": 2}
    run = compare(FILMS, ["base", "queries", "base+queries", "named"], **few)
    asked = [sorted(body["response_format"]["json_schema"]["schema"]["properties"]) for body in server.requests]
    assert asked == [["avoid", "interests", "named", "queries", "summary"]] * CASES
    for arm in ("queries", "base+queries", "named"):
        assert {name: run.arms[arm][name] for name in COUNTED} == dict(zip(COUNTED, (1, 7, 3, 10), strict=True))
    assert run.arms["base"]["calls"] == 0
    assert run.arms["base+queries"]["ms_p50"] > run.arms["base"]["ms_p50"]
    assert (run.model or "").endswith("scripted")
    said = run.settings["model"]
    assert said["requests at once"] == 2
    # Of eight queries one is an address, one a title that some have in their history, one repeats another.
    assert 5 / 8 <= said["queries kept"] <= 6 / 8
    assert said["named grounded"] == pytest.approx(2 / 3, abs=0.1)
    assert any("pass the checks" in warning for warning in run.warnings)
    again = compare(FILMS, ["base", "queries", "base+queries", "named"], **few)
    assert len(server.requests) == CASES
    assert quality(again) == quality(run)


def test_reranking_is_measured_as_it_is_served(films: Path, model_server: Callable[..., Any]) -> None:
    weights = {"queries": 0.0, "named": 0.0, "dense": 0.6, "collaborative": 1.0, "lexical": 0.3, "popular": 0.1}
    Tuned({"rank_weight": 0.4, "weights": weights}, {}, False, {"on": "valid", "seen": seen_hash(FILMS)}).save(films)
    server = model_server(modelled())
    given: dict[str, Any] = {"store": films, "base_url": server.base_url, "cases": 5}
    arms = ["base+rank", "base"]
    run = compare(FILMS, arms, **given)
    assert {r["logprobs"] for r in server.requests} == {True}
    assert len(server.requests) == 2 * run.cases  # two windows of ten
    assert run.arms["base+rank"]["calls"] == 2 and run.arms["base+rank"]["tokens_in"] > 0
    assert run.arms["base+rank"]["mrr"] != run.arms["base"]["mrr"]
    assert run.arms["base+rank"]["recall@20"] == run.arms["base"]["recall@20"]
    assert (run.model or "").endswith("scripted") and "rank" in run.prompts
    compare(FILMS, arms, **given)
    assert len(server.requests) == 2 * run.cases
    full = compare(FILMS, ["full", "full-rank", "base"], **given)
    assert len(server.requests) == 2 * run.cases
    assert full.arms["full"]["mrr"] == run.arms["base+rank"]["mrr"] != full.arms["full-rank"]["mrr"]
    assert full.settings["full"] == {"base": 1.0, "rank": 0.4}
    weights["queries"] = 0.3
    Tuned({"rank_weight": 0.4, "weights": weights}, {}, False, {"on": "valid", "seen": seen_hash(FILMS)}).save(films)
    both = compare(FILMS, ["full-dense", "full-dense-adapter", "full-rank"], **given)
    assert both.arms["full-dense"]["calls"] == 3 and both.arms["full-rank"]["calls"] == 1
    assert both.arms["full-dense"]["mrr"] != both.arms["full-rank"]["mrr"]
    assert "run `evoke train queries` first" in both.arms_not_run["full-dense-adapter"]
    alone = compare(FILMS, arms, **given | {"base_url": "http://127.0.0.1:9/v1"})
    assert list(alone.arms) == ["base"] and "no model answers" in alone.arms_not_run["base+rank"]


def test_queries_that_fail_the_checks_are_filled_up_and_counted(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(Text(json.dumps({"queries": ["http://example.org/a", "x"]})), Text("no JSON at all"))
    run = compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1)
    said = run.settings["model"]
    assert said["queries kept"] == 0
    assert said["filled up"] == 1
    assert said["queries added"] > 3
    assert said["failed"] == pytest.approx((CASES - 1) / CASES)
    assert run.arms["queries"]["recall@100"] > 0
    # What came and is of no use took time, too, and the same would come again.
    with closing(sqlite3.connect(films / "measured" / "answers.db")) as kept:
        replies = [json.loads(reply) for (reply,) in kept.execute("SELECT reply FROM answers")]
    assert len(replies) == CASES and all(reply["ms"] > 0 for reply in replies)


def test_a_refused_request_is_made_again_in_the_next_run(films: Path, model_server: Callable[..., Any]) -> None:
    fits = [False, True]

    def behave(body: dict[str, Any]) -> Text | Status:
        return Text(json.dumps(GOOD)) if fits[len(server.requests) % len(fits)] else Status(413)

    server = model_server(behave)
    run = compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1)
    refused = round(run.settings["model"]["failed"] * CASES)
    assert FAILURES < refused < CASES
    fits[:] = [False]  # what is refused is refused again, and costs nothing that was answered
    again = compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1)
    assert quality(again) == quality(run)
    fits[:] = [True]
    run = compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1)
    assert run.settings["model"]["failed"] == 0


def test_a_model_that_cannot_rerank_is_named(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(lambda _: Labels({"none of them": -0.1}))
    run = compare(FILMS, ["base", "base+rank"], store=films, base_url=server.base_url, cases=5)
    assert any(re.search(r"base\+rank: .* reranks, .*; 100% of them it cannot rerank", line) for line in run.warnings)
    assert run.arms["base+rank"]["mrr"] == run.arms["base"]["mrr"]


def test_a_dead_model_leaves_the_other_arms(films: Path) -> None:
    dead = "http://127.0.0.1:9/v1"
    run = compare(FILMS, ["base", "queries"], store=films, base_url=dead)
    assert list(run.arms) == ["base"]
    assert "no model answers" in run.arms_not_run["queries"]
    with pytest.raises(EvalError, match='"queries" cannot run'):
        compare(FILMS, ["queries"], store=films, base_url=dead)


def test_a_model_that_answers_nothing_leaves_the_other_arms(films: Path, model_server: Callable[..., Any]) -> None:
    """A server without log-probabilities, and one that refuses every request: running it again would help neither."""
    for answer, reason in ((Text("A"), "no log-probabilities"), (Status(400), "refused the request")):
        server = model_server(answer)
        run = compare(FILMS, ["base", "base+rank", "queries"], store=films, base_url=server.base_url)
        assert "base" in run.arms and reason in run.arms_not_run["base+rank"]


def test_forgetting_a_user_ends_a_run_in_one_line(films: Path, model_server: Callable[..., Any]) -> None:
    def behave(body: dict[str, Any]) -> Text:
        if len(server.requests) == 10:
            drop_derived(films)
        return Text(json.dumps(GOOD))

    server = model_server(behave)
    with pytest.raises(EvalError, match=r"a user was deleted during this run.*run the same command again"):
        compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1)
    assert "queries" in compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1).arms


def test_a_model_that_stops_answering_ends_the_run_and_the_next_continues(
    films: Path, model_server: Callable[..., Any]
) -> None:
    down: list[bool] = []

    def behave(body: dict[str, Any]) -> Text | Status:
        return Status(500) if len(server.requests) > 10 and not down else Text(json.dumps(GOOD))

    server = model_server(behave)
    with pytest.raises(EvalError, match=r"stopped answering \(the server failed \(500\)\) .* go on from there"):
        compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1)
    down.append(True)
    before = len(server.requests)
    compare(FILMS, ["queries"], store=films, base_url=server.base_url, concurrency=1)
    assert len(server.requests) - before == CASES - 10


def test_a_killed_run_continues_where_it_stopped(films: Path, model_server: Callable[..., Any]) -> None:
    def behave(body: dict[str, Any]) -> Text:
        time.sleep(0.1)
        return Text(json.dumps(GOOD))

    server = model_server(behave)
    arguments = ("compare", str(FILMS), "--store", str(films), "--arms", "queries", "--json")
    env = {"EVOKE_BASE_URL": server.base_url, "EVOKE_CONCURRENCY": "1"}
    killed = subprocess.Popen(
        [sys.executable, "-m", "eval.cli", *arguments],
        env=os.environ | env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        while len(server.requests) < 6 and killed.poll() is None:
            time.sleep(0.02)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    begun = len(server.requests)
    assert 6 <= begun < CASES
    done = evoke(*arguments, **env)
    assert done.returncode == 0, done.stderr
    # The last one begun may not have been written down.
    assert len(server.requests) - begun in (CASES - begun, CASES - begun + 1)


def test_full_without_a_model_channel_is_base(films: Path) -> None:
    off = {"queries": 0.0, "named": 0.0, "dense": 0.6, "collaborative": 1.0, "lexical": 0.3, "popular": 0.1}
    Tuned({"weights": off}, {}, False, {"on": "valid", "seen": seen_hash(FILMS)}).save(films)
    run = compare(FILMS, ["base", "full", "full-dense"], store=films, base_url="http://127.0.0.1:9/v1")
    assert quality(run)["base"] == quality(run)["full"] != quality(run)["full-dense"]
    assert any("full is base" in warning for warning in run.warnings)


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    """Dialogues about the demo films, without any event."""
    folder = tmp_path / "talk"
    folder.mkdir()
    (folder / "items.jsonl").write_bytes((FILMS / "items.jsonl").read_bytes())
    said = [
        ("I loved Heat, something with robbers please", ["heat-1995"], "thief-1981"),
        ("a quiet Japanese animation with hand-painted skies", [], "princess-mononoke-1997"),
        ("a western with Clint Eastwood", [], "unforgiven-1992"),
    ]
    rows = [
        {
            "dialogue": [{"role": "assistant", "content": "What would you like?"}, {"role": "user", "content": text}],
            "mentioned": mentioned,
            "targets": [target],
        }
        for text, mentioned, target in said
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_dialogues_are_answered_by_the_session_that_users_talk_to(dialogues: Path, films: Path) -> None:
    run = compare(dialogues, ["base", "dialogue", "mentioned", "collaborative", "last-item"], store=films)
    assert list(run.arms) == ["base", "dialogue", "mentioned", "last-item"]
    assert "no events" in run.arms_not_run["collaborative"]
    assert run.arms["base"]["recall@50"] == 1
    assert run.arms["mentioned"]["recall@100"] <= 1 / 3
    assert run.arms["base"]["ms_p50"] > 0
    done = evoke("tune", str(dialogues), "--store", str(films))
    assert done.returncode == 1
    assert re.fullmatch(r"evoke: .*there is no valid\.jsonl.*\n", done.stderr)
