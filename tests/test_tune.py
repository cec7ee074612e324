"""Tuning: on validation cases alone, what pays is switched on and what does not is not; resumed, repeated, and used."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import Recommender
from agent.forgetting import drop_derived
from agent.ranking.learned_fusion import Learned
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval import compare
from eval.data.read_cases import load_cases
from eval.errors import EvalError
from eval.fitting import cross_fitting
from eval.fitting.sequences import FOLDS
from eval.fitting.signals import fit, table
from eval.tuning import grid_search
from eval.tuning.resumable import Steps
from eval.tuning.tune import tune, validation_cases
from store import Catalog, History
from tests.helpers.faults import Labels, Text
from tests.helpers.recommending import FILMS, modelled

TINY = ({"num_leaves": 4, "rounds": 5, "min_data_in_leaf": 5},)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One small kind of trees, one way for each baseline, and no settings from outside."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in ("EVOKE_BASE_URL", "OPENAI_BASE_URL", "EVOKE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(grid_search, "TREES", TINY)
    monkeypatch.setattr(cross_fitting, "LESSONS", 200)
    first = {arm: {name: values[:1] for name, values in own.items()} for arm, own in grid_search.PARAMETERS.items()}
    monkeypatch.setattr(grid_search, "PARAMETERS", first)


def knowing() -> Callable[[dict[str, Any]], Text | Labels]:
    """A model that has seen the validation cases: it names the targets of whoever's last film is in the prompt."""
    with_title = {}
    for line in (FILMS / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        with_title[item["id"]] = item
    told = {}
    for case in load_cases(FILMS, "valid").cases:
        last = with_title[case.history[-1]]["title"]
        told[last] = [
            {"title": with_title[t]["title"], "year": with_title[t]["metadata"]["year"]} for t in case.targets
        ]

    def behave(body: dict[str, Any]) -> Text | Labels:
        prompt = body["messages"][-1]["content"]
        if body.get("logprobs"):
            return Labels(dict.fromkeys("ABCDEFGHIJ", -1.0))
        last = next(title for title in re.findall(r'^\d+\. "([^"]*)"', prompt, re.MULTILINE)[::-1])
        return Text(json.dumps({"queries": [], "named": told.get(last, [])[:10]}))

    return behave


def test_without_a_model_its_channels_keep_their_default_weights(films: Path) -> None:
    said: list[str] = []
    tuned = tune(FILMS, store=films, model_cases=0, say=said.append)
    defaults = Settings.model_fields["weights"].get_default(call_default_factory=True)
    assert {channel: tuned.settings["weights"][channel] for channel in ("queries", "named")} == {
        channel: defaults[channel] for channel in ("queries", "named")
    }
    assert "rank_weight" not in tuned.settings
    assert 0 <= tuned.settings["diversity"] <= 0.3
    assert tuned.evidence["on"] == "valid"
    assert "model channels" not in tuned.evidence
    assert any("not judged" in line for line in said)
    assert Tuned.load(films) == tuned
    assert not (films / "measured" / "unfinished.json").exists()
    assert tune(FILMS, store=films, model_cases=0) == tuned


def test_a_model_that_knows_the_answers_is_switched_on_and_used(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(knowing())
    tuned = tune(FILMS, store=films, base_url=server.base_url, concurrency=2)
    assert tuned.settings["weights"]["named"] > 0
    assert tuned.settings["rank_weight"] == 0
    found = tuned.evidence["model channels"]
    assert found["cases"] == len(load_cases(FILMS, "valid"))
    assert found["with"]["ndcg@10"] > found["without"]["ndcg@10"] + 0.2
    assert found["said"]["named grounded"] > 0.8
    assert len(found["tried"]) == 49
    tried, way = found["with dense"]["named"], tuned.baselines["dense+named"]
    assert tried[f"{way['named']:g} of {way['depth']:g}"] == max(tried.values())
    run = compare(FILMS, ["full", "base"], store=films, base_url=server.base_url, concurrency=2)
    assert run.settings["full"]["named"] == tuned.settings["weights"]["named"]
    with Catalog.open(films) as catalog, History.open(films) as history:
        used = Recommender(catalog, history, base_url="http://127.0.0.1:9/v1")._core.settings
    assert {name: getattr(used, name) for name in tuned.settings} == tuned.settings


def test_a_model_that_knows_nothing_is_switched_off(films: Path, model_server: Callable[..., Any]) -> None:
    nothing = {"queries": ["a b c d", "e f g h"], "named": [{"title": "No Such Film", "year": 1900}]}
    server = model_server(modelled(nothing))
    tuned = tune(FILMS, store=films, base_url=server.base_url, concurrency=2)
    assert (tuned.settings["weights"]["named"], tuned.settings["rank_weight"]) == (0, 0)
    with Catalog.open(films) as catalog, History.open(films) as history:
        rec: Any = Recommender(catalog, history, base_url="http://127.0.0.1:9/v1", explain=False)
        in_words = rec.recommend("a heist in Paris", n=5)
        rec.close()
    assert all({"queries", "lexical"} & set(r.channels) for r in in_words)


def test_the_models_time_is_capped_and_a_second_run_uses_the_same_cases(
    films: Path, model_server: Callable[..., Any]
) -> None:
    def slow(body: dict[str, Any]) -> Any:
        time.sleep(0.1)
        return modelled()(body)

    server = model_server(slow)
    given: dict[str, Any] = {"store": films, "base_url": server.base_url, "concurrency": 1, "minutes": 0.06}
    tuned = tune(FILMS, **given)
    used = tuned.evidence["model channels"]["cases"]
    assert 1 <= used < len(load_cases(FILMS, "valid"))
    assert tuned.evidence["reranking"]["cases"] < used
    asked = sum("response_format" in body for body in server.requests)
    assert tune(FILMS, **given).evidence["model channels"]["cases"] == used
    assert sum("response_format" in body for body in server.requests) == asked


def test_one_models_reranking_is_not_taken_for_anothers(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(modelled())

    def stop(line: str) -> None:
        if line.startswith("reranking on"):
            raise KeyboardInterrupt

    def ranked(model: str) -> set[str]:
        before, server.models = len(server.requests), [model]
        with pytest.raises(KeyboardInterrupt):
            tune(FILMS, store=films, base_url=server.base_url, model_cases=4, say=stop)
        return {body["model"] for body in server.requests[before:] if body.get("logprobs")}

    assert ranked("one") == {"one"}
    assert ranked("one") == set()  # kept from the run that broke off
    assert ranked("another") == {"another"}


def test_without_a_reachable_model_the_rest_is_tuned_and_that_is_said(films: Path) -> None:
    said: list[str] = []
    tuned = tune(FILMS, store=films, base_url="http://127.0.0.1:9/v1", say=said.append)
    assert "not judged" in tuned.evidence["model channels"]
    assert "rank_weight" not in tuned.settings
    assert any("no model answers" in line for line in said)


def test_each_users_steps_are_read_by_signals_of_other_users(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[set[str]] = []

    def noted(others: Any, catalog: Catalog, turn: Any) -> Any:
        fitted.append({event.user for event in others.events})
        return fit(others, catalog, turn)

    read: list[set[str]] = []

    def tabled(cases: Any, *given: Any, **more: Any) -> Any:
        read.append({case.user for case in cases})
        return table(cases, *given, **more)

    monkeypatch.setattr(cross_fitting, "fit", noted)
    monkeypatch.setattr(cross_fitting, "table", tabled)
    known = validation_cases(FILMS)
    with Catalog.open(films) as catalog:
        taught, chosen = cross_fitting.lessons(known, catalog, repeats=False, seed=0)
        again, _ = cross_fitting.lessons(known, catalog, repeats=False, seed=0)
    assert len(fitted) == len(read) == 2 * FOLDS
    assert all(own and not own & others for own, others in zip(read, fitted, strict=True))
    assert set.union(*read) == {event.user for event in known.events}
    assert 0 < chosen.sum() <= 200
    assert (np.bincount(taught.case, weights=chosen)[np.unique(taught.case)] == 1).all()
    np.testing.assert_array_equal(taught.features, again.features)


def test_learned_fusion_is_refitted_without_a_channel(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "eval.tuning.tune.channel_weights", lambda *_: ({}, {"ndcg@10": 0.0, "recall@100": 0.0})
    )  # so that fusion pays
    tuned = tune(FILMS, store=films, model_cases=0)
    assert tuned.learned
    run = compare(FILMS, ["base", "full-collaborative"], store=films, cases=5, base_url="http://127.0.0.1:9/v1")
    assert list(run.arms) == ["base"]  # full-x asks the model for what is on
    off = Tuned(tuned.settings | {"weights": {"queries": 0.0, "named": 0.0}}, {}, True, tuned.evidence)
    off.save(films)
    run = compare(FILMS, ["base", "full-collaborative", "full-popular"], store=films)
    assert list(run.arms) == ["base", "full-collaborative", "full-popular"]
    split_on = {
        model.feature_name()[at]
        for model in Learned.load(films / "tuned" / "without-popular").models
        for at, n in enumerate(model.feature_importance())
        if n
    }
    names = Learned.load(films / "tuned" / "without-popular").names
    assert not {names[int(name.removeprefix("Column_"))] for name in split_on} & {"popular", "recent", "trend"}
    assert run.arms["full-collaborative"]["recall@100"] != run.arms["base"]["recall@100"]


@pytest.mark.parametrize("missing", ["valid", "events"])
def test_missing_files_are_named_in_one_line(films: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "items.jsonl").write_bytes((FILMS / "items.jsonl").read_bytes())
    case = json.dumps({"user": "u", "history": ["heat-1995"], "targets": ["thief-1981"]}) + "\n"
    (folder / ("valid.jsonl" if missing == "events" else "test.jsonl")).write_text(case)
    with pytest.raises(EvalError, match=rf"there (is|are) no {missing}"):
        tune(folder, store=films)


def test_a_killed_tuning_continues_where_it_stopped(films: Path) -> None:
    small = f"from eval import cli; from eval.tuning import grid_search; grid_search.TREES = {TINY}; "
    dies = (
        "import importlib, os; tune = importlib.import_module('eval.tuning.tune'); whole = tune.parameters; "
        "tune.parameters = lambda bench, arm, *more: "
        "os.kill(os.getpid(), 9) if arm == 'star' else whole(bench, arm, *more); "
    )
    words = ["tune", str(FILMS), "--store", str(films), "--no-model"]
    killed = subprocess.run(
        [sys.executable, "-c", small + dies + "cli.main()", *words], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    arguments = [sys.executable, "-c", small + "cli.main()", *words]
    kept = json.loads((films / "measured" / "unfinished.json").read_text())["steps"]
    assert not (films / "tuned" / "tuned.json").exists()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert kept
    assert not any(f"evoke: {step}:" in done.stderr for step in kept)
    assert "evoke: star:" in done.stderr
    assert "weights:" in done.stdout


def test_finished_steps_are_dropped_when_a_user_is_deleted(films: Path) -> None:
    file = films / "measured" / "unfinished.json"
    steps = Steps(file, "key")
    assert steps.step("first", lambda: "about mara") == "about mara"
    drop_derived(films)
    with pytest.raises(EvalError, match=r"a user was deleted during this run.*run the command again"):
        steps.step("second", lambda: "more")
    assert not file.exists()
    assert Steps(file, "key").step("first", lambda: "anew") == "anew"
    resumed = Steps(file, "key")
    drop_derived(films)
    with pytest.raises(EvalError, match="a user was deleted"):
        resumed.check()
