"""The vLLM server that is measured: start and stop it on this machine, or find it by URL, and read its counters."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from agent.llm.retries import LOOPBACK

PATIENCE = 1800.0
"""Seconds that vLLM may take to fetch and load the weights."""
PROBE = "from vllm.platforms import current_platform as p; print(p.device_type, p.device_type and p.get_device_name())"
OPTIONS = (
    "--host", "127.0.0.1", "--max-model-len", "4096", "--enable-prefix-caching",
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
)  # fmt: skip
COUNTERS = {
    "tokens_in": "vllm:prompt_tokens_total",
    "tokens_out": "vllm:generation_tokens_total",
    "looked_up": "vllm:prefix_cache_queries_total",
    "found": "vllm:prefix_cache_hits_total",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `gpu` names the GPU it runs on; None if it has no GPU, or if that cannot be found out from here."""

    base_url: str
    device: str
    gpu: str | None = None

    def counters(self) -> dict[str, float]:
        """Return the sum of each of COUNTERS over its labels; an empty dict if the server is not vLLM."""
        answer = self._get("/metrics")
        text = answer.text if answer else ""
        found = {
            name: re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE) for name, metric in COUNTERS.items()
        }
        return {name: sum(map(float, values)) for name, values in found.items()} if all(found.values()) else {}

    def version(self) -> str | None:
        """Return the version of vLLM; None if the server is not vLLM."""
        answer = self._get("/version")
        return answer.json().get("version") if answer else None

    def answers(self) -> bool:
        """Return whether the server is ready."""
        return self._get("/v1/models", timeout=2) is not None

    def _get(self, path: str, timeout: float = 30) -> httpx2.Response | None:
        near = urlsplit(self.base_url).hostname in LOOPBACK
        address = self.base_url.rstrip("/").removesuffix("/v1") + path
        try:
            answer = httpx2.get(address, timeout=timeout, trust_env=not near)
        except httpx2.HTTPError:
            return None
        return answer if answer.is_success else None


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def describe_server(base_url: str) -> Server:
    """Return the server at this URL. It is taken to use those GPUs of this machine that hold more than 1 GiB."""
    if urlsplit(base_url).hostname not in LOOPBACK or not shutil.which("nvidia-smi"):
        return Server(base_url, "unknown device")
    asked = ["nvidia-smi", "--query-gpu=memory.used,name", "--format=csv,noheader,nounits"]
    listed = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()  # noqa: S603
    rows = [(float(used), name.strip()) for used, _, name in (line.partition(",") for line in listed)]
    busy = [name for used, name in rows if used > 1024]
    return Server(base_url, ", ".join(busy) or "no GPU of this machine", ", ".join(busy) or None)


@contextmanager
def start_server(python: str, model: str) -> Iterator[Server]:
    """Start vLLM from the environment of this Python on a free loopback port, wait until it answers, and stop it at the end.

    Exits with one line if that environment has no vLLM, if vLLM finds no device, or if the server ends before it is ready.
    """
    kind, device = _device(python)
    port = free_port()
    base_url = f"http://127.0.0.1:{port}/v1"
    server = Server(base_url, "CPU build of vLLM") if kind == "cpu" else Server(base_url, device, device)
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port), *OPTIONS]
    with tempfile.TemporaryFile() as log:
        # In a process group of its own: vLLM's engines are processes too, and must be stopped with it.
        own = os.environ | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        started = subprocess.Popen(command, stdout=log, stderr=log, env=own, start_new_session=True)  # noqa: S603
        try:
            until = time.monotonic() + PATIENCE
            while not server.answers():
                if started.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"vLLM did not start: {_reason(log.read().decode(errors='replace'))}")
                time.sleep(0.5)
            yield server
        finally:
            started.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    started.wait(20)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(started.pid, signal.SIGKILL)
                started.wait()


def _device(python: str) -> tuple[str, str]:
    """Return the kind of device that vLLM in this Python's environment uses, and its name."""
    try:
        done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)  # noqa: S603
    except OSError:
        sys.exit(f"{python} cannot be run; give the Python of vLLM's environment with --vllm-python")
    if done.returncode:
        sys.exit(
            f"no vLLM in the environment of {python}; give a Python that has it with --vllm-python, or a server with --base-url"
        )
    kind, _, name = (done.stdout.splitlines() or [""])[-1].strip().partition(" ")  # vLLM may log before it
    if not kind:
        sys.exit("vLLM finds no GPU on this machine; run this on a machine with one, or give a server with --base-url")
    return kind, name


def _reason(log: str) -> str:
    """Return the last line that names an error, else the last line."""
    lines = [line for line in log.splitlines() if line.strip()] or ["its log is empty"]
    return next((line for line in reversed(lines) if re.search(r"\w+Error: ", line)), lines[-1]).strip()[-500:]
