"""The service for tests: in this process on a free port, or as `evoke serve` in a separate process that can be killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from agent.settings import Settings

DEAD = "http://127.0.0.1:9/v1"
"""Base URL without a server."""


@dataclass
class Service:
    """A running service, and clients for it."""

    url: str
    app: Any = None
    process: subprocess.Popen[bytes] | None = None

    def openai(self, key: str = "anything", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def openai_async(self, key: str = "anything") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def http(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60, **options)


def until(true: Any, patience: float = 60) -> None:
    """Wait until `true()` holds, for at most `patience` seconds. Answers are counted shortly after they were sent."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)


@contextmanager
def served(**settings: Any) -> Iterator[Service]:
    """Run the service in this process with the given settings: `tenants` as in evoke.toml, or `store`."""
    from agent.serve.server import create_server

    server, sockets = create_server(Settings.load(**{"base_url": DEAD, **settings}), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    try:
        _until_ready(url, thread.is_alive)
        yield Service(url, app=server.app)
    finally:
        server.should_exit = True
        thread.join(60)


@contextmanager
def process(store: Path | None, cwd: Path, **variables: str) -> Iterator[Service]:
    """Run `evoke serve` in a separate process. It is ended with SIGTERM unless the test has ended it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_"))}
    env = clean | {"EVOKE_BASE_URL": DEAD} | variables
    command = [
        sys.executable,
        "-m",
        "agent.terminal.cli",
        "serve",
        "--port",
        "0",
        *(["--store", str(store)] if store else []),
    ]
    with tempfile.NamedTemporaryFile() as log:
        root = str(Path(__file__).parents[2])
        found = subprocess.Popen(command, stdout=log, stderr=log, cwd=cwd, env=env | {"PYTHONPATH": root})
        try:
            url = _read_url(Path(log.name), found)
            _until_ready(url, lambda: found.poll() is None)
            yield Service(url, process=found)
        finally:
            if found.poll() is None:
                found.send_signal(signal.SIGTERM)
            try:
                found.wait(30)
            except subprocess.TimeoutExpired:
                found.kill()
                found.wait()


def _read_url(log: Path, running: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        output = log.read_text(errors="replace")
        if found := re.search(r"on (http://\S+)", output):
            return found[1]
        if running.poll() is not None:
            raise RuntimeError(f"evoke serve ended: {output[-1000:]}")
        time.sleep(0.05)
    raise RuntimeError("evoke serve did not print its address")


def _until_ready(url: str, alive: Any) -> None:
    host, port = url.removeprefix("http://").split(":")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if not alive():
            raise RuntimeError("the service ended")
        try:
            socket.create_connection((host, int(port)), 1).close()
            httpx.get(f"{url}/healthz", trust_env=False, timeout=5)
            return
        except (OSError, httpx.TransportError):
            time.sleep(0.05)
    raise RuntimeError("the service did not start")


@pytest.fixture
def service(films: Path, model_server: Any) -> Iterator[Any]:
    """Return a function that starts services over one copy of the demo store, with a scripted model and settings."""
    from contextlib import ExitStack

    from tests.helpers.recommending import modelled

    with ExitStack() as stack:

        def make(*script: Any, **settings: Any) -> Any:
            server = model_server(*(script or (modelled(),)))
            own = {} if "tenants" in settings else {"store": films}
            made: Any = stack.enter_context(served(**{"base_url": server.base_url, **own, **settings}))
            made.model = server
            return made

        yield make
