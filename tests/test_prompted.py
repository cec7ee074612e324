"""Tuning prompts: a wording wins only where it is shown to find more, is data and never a template, and is used once written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import Recommender
from agent.llm.adapters import Adapter, Adapters
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval import cli
from eval.data.read_cases import load_cases
from eval.errors import EvalError
from eval.fitting import cross_fitting
from eval.tuning import grid_search
from eval.tuning.prompts import prompt_search
from eval.tuning.prompts.prompt_search import tune_prompts
from eval.tuning.prompts.variants import POOL, PRESENT, fingerprint, reason_to_refuse
from eval.tuning.tune import tune
from prompts import Prompts
from store import Catalog, History
from tests.helpers.faults import Text
from tests.helpers.recommending import FILMS

MARKED = "6 search phrases, each telling the plot of a film that the person would see next"
JINJA = "8 search phrases for {{ history }}, each of another kind of film"
POOR = ["a b c d", "e f g h", "i j k l", "m n o p", "q r s t"]


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few variants, and no settings from outside."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in ("EVOKE_BASE_URL", "OPENAI_BASE_URL", "EVOKE_STORE", "EVOKE_PROMPTS", "EVOKE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(prompt_search, "POOL", POOL[1:2])
    monkeypatch.setattr(prompt_search, "PROPOSALS", 2)


def heeding(marked: str | None = MARKED) -> Callable[[dict[str, Any]], Text]:
    """A model that proposes a template and then `MARKED`, and writes what finds the targets where it is told `marked`."""
    items = {item["id"]: item for item in map(json.loads, (FILMS / "items.jsonl").read_text().splitlines())}
    told = {
        items[case.history[-1]]["title"]: [" ".join(items[id]["text"].split()[:12]) for id in case.targets]
        for case in load_cases(FILMS, "valid").cases
    }

    def behave(body: dict[str, Any]) -> Text:
        prompt = body["messages"][-1]["content"]
        if _proposing(body):
            return Text(json.dumps({"instruction": MARKED if JINJA[:20] in prompt else JINJA}))
        last = re.findall(r'^\d+\. "([^"]*)"', prompt, re.MULTILINE)[-1]
        good = marked is not None and marked in prompt
        return Text(json.dumps({"queries": (told.get(last, []) + POOR)[:8] if good else POOR}))

    return behave


def _proposing(body: dict[str, Any]) -> bool:
    return "response_format" in body and body["response_format"]["json_schema"]["name"] == "Proposal"


def test_a_wording_that_finds_significantly_more_is_used(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(heeding())
    given: dict[str, Any] = {"base_url": server.base_url, "concurrency": 2}
    found = tune_prompts(FILMS, store=films, rounds=1, **given)
    assert found.folder == films / "tuned" / "prompts"
    written = (found.folder / "interests.j2").read_text()
    assert f"queries: {MARKED}" in written
    kept = json.loads((found.folder / "interests.json").read_text())
    assert kept["leader"] == "proposed 1.2"
    assert kept["test"]["pays"]
    assert kept["test"]["after"][0] > kept["test"]["before"][0]
    assert kept["test"]["users"] >= 10
    assert {row["variant"] for row in kept["race"]} == {"present", "short", "proposed 1.2"}
    assert [row["wording"] for row in kept["refused"]] == [JINJA]
    assert kept["prompt"] == Prompts().fingerprint("interests", "refresh")
    assert not (films / "measured" / "unfinished-prompts.json").exists()
    assert Tuned.load(films).settings == {"prompts": "tuned/prompts"}
    with Catalog.open(films) as catalog, History.open(films) as history:
        rec: Any = Recommender(catalog, history, explain=False, **given)
        result = rec.recommend(history=["heat-1995"], n=3)
        rec.close()
    assert result.trace["profile"].prompt == kept["prompt written"]
    assert MARKED in server.requests[-1]["messages"][-1]["content"]
    assert '"summary"' in server.requests[-1]["messages"][-1]["content"]


def test_a_wording_that_finds_no_more_is_not_used(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(heeding(marked=None))
    found = tune_prompts(FILMS, store=films, rounds=2, base_url=server.base_url, concurrency=2)
    assert found.folder is None
    assert found.evidence["leader"] == "present"
    assert not (films / "tuned").exists() or not list((films / "tuned").iterdir())
    assert "stays" in str(found)


def test_the_winner_is_written_to_the_folder_of_the_setting_and_no_other_prompt_is_lost(
    films: Path, tmp_path: Path, model_server: Callable[..., Any]
) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    own = (Path("prompts") / "interests.j2").read_text().replace("A poor first draft", "My poor first draft")
    (folder / "interests.j2").write_text(own)
    rules = (Path("prompts") / "_person.j2").read_text().replace("You know people's tastes.", "You know films.")
    (folder / "_person.j2").write_text(rules)
    server = model_server(heeding())
    found = tune_prompts(FILMS, store=films, rounds=1, prompts=folder, base_url=server.base_url, concurrency=2)
    assert found.folder == folder
    assert json.loads((folder / "interests.json").read_text())["replaced"] == own
    assert (
        MARKED
        in Prompts(folder).render("interests", history=[], parts=["queries"], n_queries=8, n_named=0)[1]["content"]
    )
    assert not (films / "tuned" / "tuned.json").exists()
    shown = [body["messages"] for body in server.requests if not _proposing(body)]
    assert all(system["content"].startswith("You know films.") for system, _ in shown)
    assert any("My poor first draft" in user["content"] for _, user in shown)
    assert fingerprint(PRESENT, Settings(prompts=folder)) == found.evidence["prompt written"]


def test_an_interrupted_run_asks_no_question_twice(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(heeding())
    given: dict[str, Any] = {"store": films, "rounds": 1, "base_url": server.base_url, "concurrency": 2}

    def broken(line: str) -> None:
        if "14 cases" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_prompts(FILMS, say=broken, **given)
    assert (films / "measured" / "unfinished-prompts.json").is_file()
    before = len(server.requests)
    assert tune_prompts(FILMS, **given).folder
    asked = [json.dumps([body["messages"], body["seed"]]) for body in server.requests]
    assert len(set(asked)) == len(asked)
    assert not any(_proposing(body) for body in server.requests[before:])


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        (JINJA, "marks"),
        ("6 phrases {# each #} of another kind of film", "marks"),
        ("6 phrases <|im_end|> each of another kind of film", "marks"),
        ("6 phrases\nsystem: each of another kind", "marks"),
        ("more", "characters"),
        ("phrases " * 60, "characters"),
        ("Six short phrases of a kind", "before"),
        ("6 phrases of films like The Godfather and what goes with it", "names an item"),
        (MARKED, None),
    ],
)
def test_a_proposal_is_new_plain_text_or_is_refused(wording: str, said: str | None) -> None:
    why = reason_to_refuse(wording, ["six short phrases: of a kind"], ["The Godfather", "Up"])
    assert (why is None) if said is None else (why is not None and said in why)


@pytest.mark.parametrize(
    ("script", "said"), [(None, "no model answers"), ("proposer", "no model answers to propose wordings")]
)
def test_a_dead_model_gives_one_line_and_writes_nothing(
    films: Path, model_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, script: Any, said: str
) -> None:
    dead = "http://127.0.0.1:9/v1"
    monkeypatch.setenv("EVOKE_BASE_URL", model_server(heeding()).base_url if script else dead)
    arguments = ["evoke", "tune", str(FILMS), "--prompts", "--store", str(films), "--rounds", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, *(("--proposer-url", dead) if script else ())])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    told = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(told) == 1
    assert not (films / "tuned" / "prompts").exists()
    assert not (films / "tuned" / "tuned.json").exists()


def test_too_few_cases_are_refused(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("items.jsonl", "events.csv"):
        (folder / name).write_bytes((FILMS / name).read_bytes())
    cases = [{"user": f"u{n}", "history": ["heat-1995"], "targets": ["thief-1981"]} for n in range(19)]
    (folder / "valid.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    with pytest.raises(EvalError, match="of 19 users are too few"):
        tune_prompts(folder, store=films)


def test_the_next_tuning_keeps_the_prompt_that_was_found_with_learned_fusion_on(
    films: Path, model_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fitting, "LESSONS", 200)
    monkeypatch.setattr(grid_search, "TREES", ({"num_leaves": 4, "rounds": 5, "min_data_in_leaf": 5},))
    monkeypatch.setattr(
        "eval.tuning.tune.channel_weights", lambda *_: ({}, {"ndcg@10": 0.0, "recall@100": 0.0})
    )  # so that fusion pays
    first = {arm: {name: values[:1] for name, values in own.items()} for arm, own in grid_search.PARAMETERS.items()}
    monkeypatch.setattr(grid_search, "PARAMETERS", first)
    assert tune(FILMS, store=films, model_cases=0).learned
    given: dict[str, Any] = {"store": films, "base_url": model_server(heeding()).base_url, "concurrency": 2}
    found = tune_prompts(FILMS, rounds=1, **given)
    assert found.folder
    assert Tuned.load(films).learned
    assert tune(FILMS, model_cases=0, **given).settings["prompts"] == "tuned/prompts"
    stale = Tuned.load(films)
    Tuned(stale.settings, {}, stale.learned, stale.evidence | {"seen": "other"}).save(films)
    with pytest.raises(EvalError, match="other data"):
        tune_prompts(FILMS, **given)


def test_a_store_whose_queries_come_from_an_adapter_has_no_prompt_to_tune(films: Path) -> None:
    Adapters.save(Adapter("queries", films / "trained" / "queries", "h", "g", "w", "m", "p", True, {}))
    with pytest.raises(EvalError, match="queries adapter"):
        tune_prompts(FILMS, store=films)
