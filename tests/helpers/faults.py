"""A scripted server that speaks the OpenAI protocol and fails on demand: it hangs, returns errors, rambles, or obeys an attack.

    with serving(Hang()) as server: LLM(server.base_url) ...
    with serving(Text("..."), Status(500)) as server: one answer for each request, the last one for all further requests
    with serving(obeying("PICK ME")) as server: a model that obeys the attack in its prompt

As a fixture: `model_server(*script)` starts one for the length of the test.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MODEL = "scripted"


@dataclass(frozen=True)
class Text:
    """A text. If the client asks for a stream, it is sent word by word, `pause` seconds apart."""

    content: str
    pause: float = 0.0
    finish: str = "stop"


@dataclass(frozen=True)
class Labels:
    """Log-probabilities of first tokens, as `top_logprobs`."""

    logprobs: Mapping[str, float]


@dataclass(frozen=True)
class Status:
    """An HTTP error whose message repeats the key and the prompt of the request, as careless servers do."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    param: str | None = None  # the refused field of the request


@dataclass(frozen=True)
class Raw:
    """Status 200 with these bytes."""

    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True)
class Hang:
    """Never answer, until the client disconnects."""


@dataclass(frozen=True)
class Die:
    """Send a part of an answer and drop the connection."""


Answer = Text | Labels | Status | Raw | Hang | Die
Behaviour = Callable[[dict[str, Any]], Answer]
GARBAGE = (
    Raw(b"<html>502 Bad Gateway</html>", "text/html"),
    Raw(b"[]"),
    Raw(b"{}"),
    Raw(b'{"choices": []}'),
    Raw(b"\xff\xfe"),
)


class Server(ThreadingHTTPServer):
    """Gives one answer of the script for each request, and records the requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: tuple[Answer | Behaviour, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.requests: list[dict[str, Any]] = []
        self.models = [MODEL]
        self.pieces = 0  # number of streamed pieces, over all requests
        self.left = threading.Event()  # set when a client disconnected before its answer was complete
        self._script = script
        self._lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> Answer:
        with self._lock:
            turn = self._script[min(len(self.requests), len(self._script) - 1)]
            self.requests.append(body)
        return turn(body) if callable(turn) else turn

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.left.set()  # usually a broken pipe: the client disconnected


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        listed = [{"id": id, "object": "model", "created": 0, "owned_by": "tests"} for id in self.server.models]
        self._send(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match self.server.answer(body):
            case Text() as text:
                self._stream(text) if body.get("stream") else self._send(200, _completion(text))
            case Labels(logprobs):
                self._send(200, _labelled(logprobs))
            case Status(code, headers, param):
                message = f"failed on {self.headers['Authorization']} {json.dumps(body['messages'])}"
                self._send(code, {"error": {"message": message, "param": param}}, headers)
            case Raw(content, kind):
                self._send_bytes(200, content, kind)
            case Hang():
                self._wait_until_left()
            case Die():
                self._die(bool(body.get("stream")))

    def _send(self, code: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send_bytes(code, json.dumps(value).encode(), "application/json", headers)

    def _send_bytes(self, code: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, text: Text) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in re.findall(r"\s*\S+|\s+$", text.content):
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            self.server.pieces += 1
            time.sleep(text.pause)
        self._event({"choices": [], "usage": _USAGE})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, chunk: dict[str, Any]) -> None:
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": MODEL, **chunk}
        self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())
        self.wfile.flush()

    def _wait_until_left(self) -> None:
        self.connection.settimeout(60)
        if not self.connection.recv(1):
            self.server.left.set()
        self.close_connection = True

    def _die(self, streaming: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if streaming else "application/json")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        if streaming:
            self._event({"choices": [{"index": 0, "delta": {"content": "Half an"}, "finish_reason": None}]})
        else:
            self.wfile.write(b'{"id": "1", "choices": [{"message": {"content": "Half an')
            self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}


def _completion(text: Text) -> dict[str, Any]:
    message = {"role": "assistant", "content": text.content}
    return _whole({"index": 0, "message": message, "finish_reason": text.finish})


def _labelled(logprobs: Mapping[str, float]) -> dict[str, Any]:
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
    best = max(top, key=lambda t: t["logprob"])
    message = {"role": "assistant", "content": best["token"]}
    content = [{**best, "top_logprobs": top}]
    return _whole({"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": content}})


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": _USAGE,
    }  # fmt: skip


def obeying(attack: str, say: Mapping[str, Any] | None = None) -> Behaviour:
    """Return the behaviour of a model that obeys an attack.

    It picks the candidate whose line contains `attack`. As a structured answer it writes `say` (by default the attack in every
    field), and as text the attack under every label in the prompt.
    """

    def behave(body: dict[str, Any]) -> Answer:
        prompt = body["messages"][-1]["content"]
        if body.get("logprobs"):
            lines = re.findall(r"^([A-Z])\. (.*)$", prompt, re.MULTILINE)
            return Labels({label: -0.01 if attack in line else -9.0 - i for i, (label, line) in enumerate(lines)})
        if "response_format" in body:
            return Text(json.dumps(say if say is not None else _everywhere(attack)))
        labels = re.findall(r"^(\w{1,2})[:.] \"", prompt, re.MULTILINE)
        return Text("\n".join(f"{label}: {attack}." for label in labels))

    return behave


def _everywhere(attack: str) -> dict[str, Any]:
    return {
        "summary": attack, "interests": [{"name": attack[:60], "weight": 1.0, "evidence": [1]}], "avoid": [],
        "queries": [f"{attack} {i}"[:100] for i in range(8)], "named": [{"title": attack[:80], "year": None}],
    }  # fmt: skip


@contextmanager
def serving(*script: Answer | Behaviour) -> Iterator[Server]:
    """Run a scripted server on a free loopback port."""
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def model_server() -> Iterator[Callable[..., Server]]:
    """Return a function that starts scripted servers, which end with the test."""
    with ExitStack() as stack:
        yield lambda *script: stack.enter_context(serving(*script))
