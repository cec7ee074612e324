"""The GPU benchmark: with a paced model server instead of vLLM, with real vLLM on a CPU (make test-vllm), and without a server."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.bench.gpu import make_histories
from store import Catalog, History
from tests.helpers.services import free_port, running
from tests.helpers.vllm_server import VLLM

BENCH = (sys.executable, "-m", "eval.bench.gpu")
FAKE_PYTHON = """#!/bin/sh
# Acts as a Python whose vLLM is the paced model server, on a device that does not exist.
[ "$1" = -c ] && echo "some warning" && echo "{device}" && exit
while [ "$1" != --port ]; do shift; done
echo $$ > {pid}
exec {python} -m eval.bench.model "$2"
"""


def bench(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *map(str, options)], capture_output=True, text=True)


@pytest.fixture
def fake_python(tmp_path: Path) -> Any:
    """Make FAKE_PYTHON for a device; it writes the process id of its server into `pid`."""

    def make(device: str) -> Path:
        python = tmp_path / "python"
        python.write_text(FAKE_PYTHON.format(device=device, pid=tmp_path / "pid", python=sys.executable))
        python.chmod(0o755)
        return python

    return make


def has_ended(pid: Path) -> bool:
    return not Path("/proc", pid.read_text().strip()).exists()


def test_each_made_up_history_is_new_and_has_the_length_of_a_real_one(films: Path) -> None:
    with History.open(films) as history, Catalog.open(films) as catalog:
        made = list(itertools.islice(make_histories(history), 500))
        assert made == list(itertools.islice(make_histories(history), 500))
        real = {tuple(e.item for e in history.positive(history.of(user))) for user in history.users()}
        assert set(itertools.chain(*made)) <= set(catalog.ids())
    assert len({tuple(liked) for liked in made} - real) == 500
    assert {len(liked) for liked in made} <= {len(liked) for liked in real}
    assert all(len(set(liked)) == len(liked) for liked in made)


@pytest.mark.slow
def test_server_is_started_every_level_measured_and_server_stopped(
    films: Path, fake_python: Any, tmp_path: Path
) -> None:
    python = fake_python("cuda Fake GPU")
    done = bench(
        "--model", "paced", "--vllm-python", python, "--users", "1,3", "--requests", 3, "--store", films, "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["gpu"], report["notice"], report["model"]) == ("Fake GPU", None, "paced")
    one, three = report["levels"]
    assert (one["users"], one["requests"], three["users"], three["requests"]) == (1, 3, 3, 3)
    assert three["per_second"] > one["per_second"] > 0
    assert 0 < one["own_p50_ms"] < one["p50_s"] * 1000
    assert 0 < one["own_share"] < 1
    assert one["cpu_ms"] > 0
    # The paced model returns one label of ten, and counts no tokens.
    assert one["degraded"] == 1
    assert one["reasons"] == {"rerank: 9 of 10 labels absent": 3}
    assert one["prefix_hits"] is None and one["tokens_in_per_second"] is None
    assert has_ended(tmp_path / "pid")


@pytest.mark.slow
def test_sigterm_stops_the_server_too(films: Path, fake_python: Any, tmp_path: Path) -> None:
    command = [*BENCH, "--model", "paced", "--vllm-python", str(fake_python("cuda Fake GPU")), "--store", str(films)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stderr is not None
    assert any("1 users at once" in line for line in started.stderr)
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 130
    assert "Traceback" not in started.stderr.read()
    assert has_ended(tmp_path / "pid")


@pytest.mark.slow
def test_figures_of_a_server_without_gpu_are_marked(films: Path) -> None:
    port = free_port()
    with running([sys.executable, "-m", "eval.bench.model", str(port)], lambda: True):
        done = bench("--base-url", f"http://127.0.0.1:{port}/v1", "--users", "1", "--requests", 1, "--store", films)
    assert done.returncode == 0, done.stderr
    assert "recommendations per second" in done.stdout
    assert "not GPU figures" in " ".join(done.stdout.split())


@pytest.mark.parametrize("device, message", [("", "no GPU"), ("cpu cpu", "did not start")])
def test_missing_gpu_or_failed_start_gives_one_line(fake_python: Any, device: str, message: str) -> None:
    python = fake_python(device)
    if device:
        python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo "cpu cpu" && exit\necho "OSError: no such model"; exit 3\n')
    done = bench("--model", "paced", "--vllm-python", python)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_missing_vllm_or_python_gives_one_line() -> None:
    for options, message in (
        (("--model", "paced"), "no vLLM"),
        (("--model", "m", "--vllm-python", "/none"), "cannot be run"),
    ):
        done = bench(*options)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert bench().returncode == 2
    assert bench("--model", "paced", "--users", "0").returncode == 2


@pytest.mark.slow
def test_unreachable_server_gives_one_line(films: Path) -> None:
    done = bench("--base-url", "http://127.0.0.1:9/v1", "--store", films)
    assert done.returncode == 1
    assert "no model at http://127.0.0.1:9/v1" in done.stderr


@pytest.mark.vllm
def test_benchmark_counts_tokens_of_real_vllm(vllm: VLLM, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOKE_DEADLINE", "900")  # a CPU without bfloat16 takes minutes for an answer
    done = bench("--base-url", vllm.base_url, "--users", "1,4", "--requests", 4, "--store", films, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["gpu"] is None
    assert "not GPU figures" in report["notice"]
    assert report["vllm"]
    for level in report["levels"]:
        assert 1 <= level["requests"] <= 4
        assert level["reasons"] == {}
        assert level["tokens_in_per_second"] > 0
        assert level["tokens_out_per_second"] > 0
        assert 0 < level["p50_s"] <= level["p90_s"]
        assert 0 < level["own_share"] < 1
        assert 0 < level["prefix_hits"] < 1
