"""The command line, run as a subprocess with the real embedded model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.ranking.tuned import Tuned
from store.embedder import Embedder
from tests.helpers.faults import Hang

ROOT = Path(__file__).parent.parent
FILMS = ROOT / "eval" / "films"


def evoke(
    *words: str | Path, cwd: Path | None = None, timeout: float = 500, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command without EVOKE_ and OPENAI_ variables, and with a long deadline for slow machines."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_"))}
    env = clean | {"EVOKE_DEADLINE": "400"} | variables
    command = [sys.executable, "-m", "agent.terminal.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd or ROOT, timeout=timeout)


def printed(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first(films_store: Path) -> dict[str, Any]:
    """Recommendation for the demo user by the real embedded model."""
    return printed(evoke("recommend", "--store", films_store, "--user", "mara", "--json"))


def test_embedded_model_writes_profile_queries_and_explanations(first: dict[str, Any]) -> None:
    stages = {stage["name"]: stage for stage in first["trace"]["stages"]}
    assert first["trace"]["degraded"] == []
    assert "SmolLM2" in stages["profile"]["model"]
    assert stages["profile"]["tokens_out"] > 50
    assert stages["explain"]["tokens_out"] > 20
    assert first["profile"]["summary"]
    assert len(first["queries"]) >= 5
    assert len(first["items"]) == 10


def test_second_run_uses_the_cached_profile(films_store: Path, first: dict[str, Any]) -> None:
    again = printed(evoke("recommend", "--store", films_store, "--user", "mara", "--json"))
    assert again["trace"]["stages"][0]["cached"]
    assert again["queries"] == first["queries"]


def test_recommend_prints_a_table(films_store: Path) -> None:
    done = evoke("recommend", "--store", films_store, "--user", "mara", "-n", "3", COLUMNS="140")
    assert done.returncode == 0
    for word in ("Profile", "Queries", "Score", "Channels", "Why"):
        assert word in done.stdout
    assert "profile" in done.stderr


def test_profile_and_model_commands(films_store: Path, first: dict[str, Any]) -> None:
    row = printed(evoke("profile", "--store", films_store, "--user", "mara", "--json"))
    assert row["profile"] == first["profile"]
    assert printed(evoke("model", "--json"))["answers"] is True
    down = evoke("model", EVOKE_BASE_URL="http://127.0.0.1:9/v1")
    assert down.returncode == 1
    assert "no connection" in down.stdout


def test_missing_model_server_does_not_cost_the_answer(films_store: Path) -> None:
    row = printed(
        evoke("recommend", "--store", films_store, "--user", "tomasz", "--json", EVOKE_BASE_URL="http://127.0.0.1:9/v1")
    )
    assert len(row["items"]) == 10
    assert {d["stage"] for d in row["trace"]["degraded"]} == {"profile", "explain"}


def test_last_store_is_used_and_named_by_default(tmp_path: Path) -> None:
    home = {"XDG_DATA_HOME": str(tmp_path), "EVOKE_BASE_URL": "http://127.0.0.1:9/v1"}
    none = evoke("recommend", "--user", "mara", **home)
    assert (none.returncode, none.stdout) == (1, "")
    assert "evoke index" in none.stderr
    assert len(none.stderr.splitlines()) == 1
    assert evoke("index", FILMS, **home).returncode == 0
    done = evoke("recommend", "--history", "heat-1995", "--json", **home)
    assert done.returncode == 0
    assert str(tmp_path / "evoke" / "films-") in done.stderr
    assert not list(FILMS.glob("*.db"))


def test_forget_erases_every_byte_of_a_user(films_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(films_store, store)
    user = os.urandom(16).hex()
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(FILMS / "items.jsonl", data)
    rows = "\n".join(f"{user},{item},5,{n}" for n, item in enumerate(["heat-1995", "ronin-1998", "casino-1995"]))
    (data / "events.csv").write_text(f"user,item,rating,timestamp\n{rows}\n")
    assert evoke("index", data, "--store", store).returncode == 0
    assert printed(evoke("recommend", "--store", store, "--user", user, "--json"))["profile"]
    assert any(user.encode() in file.read_bytes() for file in store.rglob("*") if file.is_file())
    row = printed(evoke("forget", "--store", store, "--user", user, "--json"))
    assert row["rows"]["events"] == 3
    assert row["rows"]["profiles"] == 1
    left = [file for file in store.rglob("*") if file.is_file() and user.encode() in file.read_bytes()]
    assert left == []
    again = evoke("forget", "--store", store, "--user", user)
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    unknown = evoke("profile", "--store", store, "--user", user)
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recommend", "-n", "0"], "-n"),
        (["recommend", "--where", "{year"], "--where"),
        (["recommend", "--nonsense"], "nonsense"),
        (["index"], "DIR"),
        (["forget"], "--user"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], message: str) -> None:
    done = evoke(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EVOKE_DEADLINE": "soon"}, "deadline"),
        ({"EVOKE_PROMPTS": "no/such/folder"}, "no/such/folder"),
        ({"EVOKE_RANK_WEIGHT": "3"}, "rank_weight"),
        ({"EVOKE_BASE_URL": "localhost:8000/v1"}, "such as http://localhost:8000/v1"),
        ({"EVOKE_BASE_URL": "http://localhost:80b0/v1"}, "EVOKE_BASE_URL: Port"),
        ({"EVOKE_WEIGHTS": '{"colaborative": 1}'}, "no channel colaborative; there are queries"),
        ({"EVOKE_WEIGHTS": '{"dense": -1}'}, "weights"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(films_store: Path, variables: dict[str, str], message: str) -> None:
    done = evoke("recommend", "--store", films_store, "--user", "mara", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_filter_on_an_unknown_field_is_refused(films_store: Path) -> None:
    done = evoke("recommend", "--store", films_store, "--where", '{"colour": "red"}')
    assert done.returncode == 1
    assert "colour" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_settings_are_read_from_evoke_toml(films_store: Path, tmp_path: Path) -> None:
    (tmp_path / "evoke.toml").write_text(f'store = "{films_store}"\nbase_url = "http://127.0.0.1:9/v1"\n')
    done = evoke("recommend", "--history", "heat-1995", "--json", cwd=tmp_path)
    assert printed(done)["trace"]["degraded"]
    (tmp_path / "evoke.toml").write_text("nonsense = 1\n")
    done = evoke("recommend", cwd=tmp_path)
    assert done.returncode == 1
    assert "nonsense" in done.stderr


def test_removed_settings_are_warned_about_and_ignored(films: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "work").mkdir()  # not the folder of the store, whose name is a package's
    (folder / "evoke.toml").write_text("rank_shuffles = 3\nexplain = false\n")
    Tuned(settings={"n_queries": 8, "diversity": 0.1}).save(films)
    variables = {"EVOKE_BASE_URL": "http://127.0.0.1:9/v1", "EVOKE_BUDGET": "50"}
    done = evoke("recommend", "--store", films, "--history", "heat-1995", "--json", cwd=folder, **variables)
    assert len(printed(done)["items"]) == 10
    assert sorted(done.stderr.splitlines()) == [
        "evoke: EVOKE_BUDGET is no longer a setting; remove it: channels always retrieve 200 items",
        f"evoke: n_queries in {films}/tuned/tuned.json is no longer a setting; the next `evoke tune` removes it: "
        "all queries of a profile are always searched with",
        "evoke: rank_shuffles in evoke.toml is no longer a setting; remove it: "
        "the model always ranks each window of candidates once",
    ]


def test_setting_embedding_model_names_the_folder_of_the_model(tmp_path: Path) -> None:
    (data := tmp_path / "shop").mkdir()
    rows = [{"id": str(n), "title": f"Lamp {n}", "text": "", "metadata": {}} for n in range(3)]
    (data / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = Embedder().folder
    printed(evoke("index", data, "--store", tmp_path / "s", "--embedding-model", folder, "--json"))
    ask = ("recommend", "a lamp", "--store", tmp_path / "s", "-n", "2", "--json")
    elsewhere = {"EVOKE_BASE_URL": "http://127.0.0.1:9/v1", "HF_HUB_OFFLINE": "1"}
    without = evoke(*ask, **elsewhere)
    assert without.returncode == 1
    assert "EVOKE_EMBEDDING_MODEL" in without.stderr
    assert without.stderr.count("\n") == 1
    assert len(printed(evoke(*ask, EVOKE_EMBEDDING_MODEL=str(folder), **elsewhere))["items"]) == 2


def test_ctrl_c_prints_that_the_command_can_continue(films: Path, model_server: Callable[..., Any]) -> None:
    server = model_server(Hang())
    command = [sys.executable, "-m", "agent.terminal.cli", "profile", "--user", "mara", "--store", str(films)]
    asked = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"EVOKE_BASE_URL": server.base_url},
        # A process in the background of a script inherits an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 240
    while not server.requests and time.monotonic() < end:
        time.sleep(0.1)
    asked.send_signal(signal.SIGINT)
    _, output = asked.communicate(timeout=240)
    assert asked.returncode == 130
    assert output.strip().splitlines()[-1] == "evoke: interrupted; the same command continues where it stopped"


def test_forget_names_trained_parts_and_deletes_cached_answers(films: Path) -> None:
    Tuned(learned=True).save(films)
    (films / "tuned" / "fusion.json").write_text('{"names": [], "models": []}')
    (films / "measured").mkdir()
    (films / "measured" / "answers.db").write_text("mara")
    done = evoke("forget", "--user", "mara", "--store", films, "--json")
    assert printed(done)["trained"] == ["learned fusion"]
    assert "take mara out of the dataset, then run `evoke tune DIR`" in done.stderr
    assert not (films / "measured").exists()
