"""The GPU benchmark: with a paced model in vLLM's place, with real vLLM on CPU (make test-vllm), and with neither."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.bench.gpu import people
from store import Catalog, History
from tests.helpers.services import free_port, running
from tests.helpers.vllm_server import VLLM

BENCH = (sys.executable, "-m", "eval.bench.gpu")
PRETENDED = """#!/bin/sh
# A Python whose vLLM is the paced model server, on a GPU that is not there.
[ "$1" = -c ] && echo "some warning" && echo "{device}" && exit
while [ "$1" != --port ]; do shift; done
echo $$ > {pid}
exec {python} -m eval.bench.model "$2"
"""


def bench(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *map(str, options)], capture_output=True, text=True)


@pytest.fixture
def pretended(tmp_path: Path) -> Any:
    """Makes such a Python; the server's process id is then in `pid`."""

    def make(device: str) -> Path:
        python = tmp_path / "python"
        python.write_text(PRETENDED.format(device=device, pid=tmp_path / "pid", python=sys.executable))
        python.chmod(0o755)
        return python

    return make


def gone(pid: Path) -> bool:
    return not Path("/proc", pid.read_text().strip()).exists()


def test_people_are_made_up_anew_each_time(films: Path) -> None:
    with History.open(films) as history, Catalog.open(films) as catalog:
        made = list(itertools.islice(people(history), 500))
        assert made == list(itertools.islice(people(history), 500))
        real = {tuple(e.item for e in history.positive(history.of(user))) for user in history.users()}
        assert set(itertools.chain(*made)) <= set(catalog.ids())
    assert len({tuple(liked) for liked in made} - real) == 500
    assert {len(liked) for liked in made} <= {len(liked) for liked in real}
    assert all(len(set(liked)) == len(liked) for liked in made)


@pytest.mark.slow
def test_it_starts_a_server_measures_every_level_and_stops_it(films: Path, pretended: Any, tmp_path: Path) -> None:
    python = pretended("cuda Pretended GPU")
    done = bench(
        "--model", "paced", "--vllm-python", python, "--users", "1,3", "--requests", 3, "--store", films, "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["gpu"], report["notice"], report["model"]) == ("Pretended GPU", None, "paced")
    one, three = report["levels"]
    assert (one["users"], one["requests"], three["users"], three["requests"]) == (1, 3, 3, 3)
    assert three["per_second"] > one["per_second"] > 0
    assert 0 < one["own_p50_ms"] < one["p50_s"] * 1000
    assert 0 < one["own_share"] < 1
    assert one["cpu_ms"] > 0
    # The paced model writes one label of ten, and counts nothing.
    assert one["degraded"] == 1
    assert one["reasons"] == {"rank: 9 of 10 labels absent": 3}
    assert one["prefix_hits"] is None and one["tokens_in_per_second"] is None
    assert gone(tmp_path / "pid")


@pytest.mark.slow
def test_a_run_that_is_ended_stops_its_server(films: Path, pretended: Any, tmp_path: Path) -> None:
    command = [*BENCH, "--model", "paced", "--vllm-python", str(pretended("cuda Pretended GPU")), "--store", str(films)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stderr is not None
    assert any("1 at once" in line for line in started.stderr)
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 130
    assert "Traceback" not in started.stderr.read()
    assert gone(tmp_path / "pid")


@pytest.mark.slow
def test_a_server_without_a_gpu_gives_no_gpu_figures(films: Path) -> None:
    port = free_port()
    with running([sys.executable, "-m", "eval.bench.model", str(port)], lambda: True):
        done = bench("--base-url", f"http://127.0.0.1:{port}/v1", "--users", "1", "--requests", 1, "--store", films)
    assert done.returncode == 0, done.stderr
    assert "recommendations per second" in done.stdout
    assert "no GPU figures" in " ".join(done.stdout.split())


@pytest.mark.parametrize("device, said", [("", "no GPU"), ("cpu cpu", "did not start")])
def test_no_gpu_or_a_server_that_ends_is_one_line(pretended: Any, device: str, said: str) -> None:
    python = pretended(device)
    if device:
        python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo "cpu cpu" && exit\necho "OSError: no such model"; exit 3\n')
    done = bench("--model", "paced", "--vllm-python", python)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_neither_vllm_nor_a_server_is_one_line() -> None:
    for options, said in (
        (("--model", "paced"), "no vLLM"),
        (("--model", "m", "--vllm-python", "/none"), "cannot be run"),
    ):
        done = bench(*options)
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert bench().returncode == 2
    assert bench("--model", "paced", "--users", "0").returncode == 2


@pytest.mark.slow
def test_a_dead_server_is_one_line(films: Path) -> None:
    done = bench("--base-url", "http://127.0.0.1:9/v1", "--store", films)
    assert done.returncode == 1
    assert "no model at http://127.0.0.1:9/v1" in done.stderr


@pytest.mark.vllm
def test_real_vllm(vllm: VLLM, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOKE_DEADLINE", "900")  # a CPU without bfloat16 takes minutes for an answer
    done = bench("--base-url", vllm.base_url, "--users", "1,4", "--requests", 4, "--store", films, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["gpu"] is None
    assert "no GPU figures" in report["notice"]
    assert report["vllm"]
    for level in report["levels"]:
        assert 1 <= level["requests"] <= 4
        assert level["reasons"] == {}
        assert level["tokens_in_per_second"] > 0
        assert level["tokens_out_per_second"] > 0
        assert 0 < level["p50_s"] <= level["p90_s"]
        assert 0 < level["own_share"] < 1
        assert 0 < level["prefix_hits"] < 1
