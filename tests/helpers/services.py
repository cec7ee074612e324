"""Fixtures of real parts: the encoder, and PostgreSQL and Chroma servers on free loopback ports."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import pytest

from store import Embedder

_PATIENCE = 60


def missing(part: str) -> NoReturn:
    """Skip the test, as the part is not installed; in CI, where every part is installed, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{part} is not installed, and CI runs every test")
    pytest.skip(f"{part} is not installed")


@pytest.fixture(autouse=True)
def _own_data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own data folder, so that none reads or writes the developer's stores."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The real all-MiniLM-L6-v2, loaded once."""
    return Embedder()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL server, as host:port."""
    with postgres() as address:
        yield address


@contextmanager
def postgres() -> Iterator[str]:
    """Start a PostgreSQL server in a temporary folder; yield its address, as host:port."""
    binaries = _postgres_binaries()
    if binaries is None:
        missing("PostgreSQL")
    # PostgreSQL refuses to run as root.
    other: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="evoke-postgres-"))
    try:
        if other:
            shutil.chown(folder, **other)
        data, port = folder / "data", free_port()
        made = [binaries / "initdb", "-D", data, "-U", "evoke", "-A", "trust", "-E", "UTF8", "--locale=C"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **other)
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        command = [str(part) for part in (binaries / "postgres", "-D", data, "-p", port, *options)]
        with running(command, lambda: _postgres_answers(f"127.0.0.1:{port}"), cwd=folder, **other):
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of an empty database."""
    return empty_database(postgres_server)


def empty_database(address: str) -> str:
    """Make a database on the server at this address; return its URL."""
    import psycopg

    name = f"t{uuid4().hex[:12]}"
    with psycopg.connect(f"postgresql://evoke@{address}/postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql://evoke@{address}/{name}"


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Chroma server."""
    program = Path(sys.executable).parent / "chroma"
    if not program.exists():
        missing("the chroma command")
    folder, port = tmp_path_factory.mktemp("chroma-server"), free_port()
    command = [str(program), "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with running(command, lambda: _accepts(port), cwd=folder):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def chroma_url(chroma_server: str) -> str:
    """The URL of a collection that does not exist yet."""
    return f"{chroma_server}/t{uuid4().hex[:12]}"


def free_port() -> int:
    """Return a port on which nothing listens, outside the range from which the system assigns ports itself."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


@contextmanager
def running(
    command: list[str], ready: Callable[[], bool], *, patience: float = _PATIENCE, **options: Any
) -> Iterator[None]:
    """Start a server process; yield when `ready` returns true, and stop it when the block ends.

    Args:
        command: the command line.
        ready: says whether the server answers.
        patience: seconds to wait for that.
        options: further arguments of `subprocess.Popen`.
    """
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
        try:
            until = time.monotonic() + patience
            while not ready():
                if server.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield
        finally:
            # SIGTERM would make PostgreSQL wait until all clients have left.
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).resolve().parent if on_path else None


def _postgres_answers(address: str) -> bool:
    import psycopg

    try:
        psycopg.connect(f"postgresql://evoke@{address}/postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
