"""Load test of `evoke serve`: 100 conversations at once on a paced model server, then `kill -9` while they are running.

    python -m eval.bench.load [--sessions 100] [--seconds 60] [--think 5] [--store S]

Each conversation asks for films from its own year on, reads the streamed answer, waits, and asks again; one more client sends
events. The report gives errors, mixed-up conversations, the time to the first items, the part of it that retrieval took, and the
memory of the service. Then the service is killed while it streams, and restarted: every acknowledged turn and event must still
be there. The exit code is 1 if any is lost, on any error, or if memory grew by more than 150 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from eval.bench.vllm import free_port
from store import Catalog, History

FILMS = Path(__file__).parent.parent / "films"
GROWTH = 150.0
KILL_NUMBER = 5_000
"""The first message number of the run in which the service is killed; earlier runs stay below it."""
FOLLOW_UPS = ("something else", "another one", "more like that", "less known", "one more")


@dataclass
class Observations:
    """Times in milliseconds and everything else that the clients observed; `turns` (by session) and `events` were acknowledged."""

    first: list[float] = field(default_factory=list)
    retrieval: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    mixed: list[str] = field(default_factory=list)
    turns: dict[str, list[str]] = field(default_factory=dict)
    events: list[tuple[str, str, float]] = field(default_factory=list)


async def send_message(http: httpx2.AsyncClient, session: str, year: int, text: str, seen: Observations) -> None:
    """Send one message, read its whole answer, and note what came."""
    body = {"model": "evoke", "stream": True, "session": session, "messages": [{"role": "user", "content": text}]}
    started, first, last, done = time.perf_counter(), 0.0, {}, False
    async with http.sse("/v1/chat/completions", method="POST", json=body) as events:
        if (status := events.response.status_code) != 200:
            seen.errors[f"status {status}"] += 1
            return
        async for event in events:
            done = event.data == "[DONE]"
            if '"recommendations"' in event.data or '"error"' in event.data:
                last = json.loads(event.data)
                first = first or time.perf_counter() - started
    if not done or "error" in last:
        seen.errors["error in stream" if done else "broken stream"] += 1
        return
    seen.turns.setdefault(session, []).append(text)
    seen.first.append(first * 1000)
    seen.whole.append((time.perf_counter() - started) * 1000)
    stages = (last.get("trace") or {}).get("stages", [])
    seen.retrieval.append(sum(stage["ms"] for stage in stages if stage["name"] in ("retrieve", "fuse")))
    years = [row["value"] for row in last["constraints"] if row["field"] == "year"]
    if last["session"] != session or years != [year]:
        seen.mixed.append(session)


async def converse(
    http: httpx2.AsyncClient, number: int, until: float, think: float, seen: Observations, start: int
) -> None:
    """Hold one conversation until the time is over. Messages are numbered from `start` on, so that no two are equal."""
    session, year = f"load-{number}", 1950 + number % 50
    await asyncio.sleep(think * number / 100)
    turn = start
    while time.monotonic() < until:
        text = FOLLOW_UPS[turn % len(FOLLOW_UPS)] if turn else f"a slow crime film from {year} on"
        try:
            await send_message(http, session, year, f"{text}, number {turn}", seen)
        except httpx2.TransportError as error:
            seen.errors[type(error).__name__] += 1
        turn += 1
        await asyncio.sleep(think)


async def write_events(
    http: httpx2.AsyncClient, until: float, items: list[str], seen: Observations, start: int
) -> None:
    """Send two events a second for 50 users in turn; their timestamps count from `start` on."""
    for number, item in enumerate(items * 1000, start):
        if time.monotonic() > until:
            return
        user = f"writer-{number % 50}"
        event = {"user": user, "item": item, "kind": "like", "timestamp": float(number)}
        try:
            response = await http.post("/v1/events", json={"events": [event]})
            if response.is_success and response.json()["accepted"] == 1:
                seen.events.append((user, item, float(number)))
        except httpx2.TransportError as error:
            seen.errors[f"event {type(error).__name__}"] += 1
        await asyncio.sleep(0.5)


async def run_load(
    port: int, sessions: int, think: float, items: list[str], seconds: float, seen: Observations, start: int = 0
) -> None:
    """Run all conversations and the writer of events together.

    Args:
        port: the port of the service.
        sessions: how many conversations.
        think: seconds between an answer and the next message.
        items: the ids of the items that events name.
        seconds: how long; messages under way then are finished.
        seen: where the observations go.
        start: the number of the first message and event.
    """
    until = time.monotonic() + seconds
    # A fresh connection for each request: the service closes idle ones after as long as a user thinks.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60, limits=limits
    ) as http:
        talks = [converse(http, number, until, think, seen, start) for number in range(sessions)]
        await asyncio.gather(write_events(http, until, items, seen, start), *talks)


def start_service(store: Path, model_port: int, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start `evoke serve` on a free port; return the process and the port."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_"))}
    own |= {"EVOKE_BASE_URL": f"http://127.0.0.1:{model_port}/v1"}
    own |= {"EVOKE_SERVE__RATE": "100000", "EVOKE_CONCURRENCY": "200"}
    command = [sys.executable, "-m", "agent.terminal.cli", "serve", "--store", str(store), "--port", "0"]
    with log.open("wb") as file:
        service = subprocess.Popen(command, stdout=file, stderr=file, env=own)  # noqa: S603  our own command
    while not (found := re.search(r"http://\S+:(\d+)", log.read_text())):
        if service.poll() is not None:
            sys.exit(f"the service ended: {log.read_text()[-500:]}")
        time.sleep(0.1)
    return service, int(found[1])


def resident_memory(pid: int) -> float:
    """Return the MiB of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed, NaN without values."""
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 1) if values else float("nan")


def find_lost(store: Path, port: int, loads: Sequence[Observations]) -> list[str]:
    """Return the turns and events that were acknowledged in these loads and that the restarted service does not have."""
    lost = []
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
        for session in {session for seen in loads for session in seen.turns}:
            kept = http.get(f"/v1/sessions/{session}").json().get("turns", [])
            messages = {row["content"] for row in kept if row["role"] == "user"}
            sent = [text for seen in loads for text in seen.turns.get(session, [])]
            lost += [f"turn {text!r} of {session}" for text in sent if text not in messages]
    with History.open(store) as history:
        events = {(e.user, e.item, e.timestamp) for n in range(50) for e in history.of(f"writer-{n}")}
    return lost + [f"event {event}" for seen in loads for event in seen.events if event not in events]


def index_store(folder: Path, given: Path | None) -> Path:
    """Make a store in `folder`: a copy of the one given, or one of the demo films. Return its path."""
    store = folder / "store"
    if given:
        shutil.copytree(given, store)
    else:
        evoke(folder, "index", FILMS, "--store", store)
    return store


def evoke(home: Path, *arguments: str | Path) -> str:
    """Run an `evoke` command; return its output. The name of the store that was indexed last goes to `home`, not to the user."""
    command = [sys.executable, "-m", "agent.terminal.cli", *map(str, arguments)]
    own = os.environ | {"XDG_DATA_HOME": str(home)}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=own).stdout  # noqa: S603


def measure(store: Path, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run one conversation alone, then all of them, then all of them with a kill; return the report."""
    with Catalog.open(store) as catalog:
        items = catalog.ids()
    model_port = free_port()
    model = subprocess.Popen([sys.executable, "-m", "eval.bench.model", str(model_port)])  # noqa: S603
    service, port = start_service(store, model_port, folder)
    quiet, seen, cut = Observations(), Observations(), Observations()

    async def run_and_kill() -> None:
        load = asyncio.create_task(run_load(port, asked.sessions, asked.think, items, 6, cut, KILL_NUMBER))
        await asyncio.sleep(4)
        service.kill()
        await load

    try:
        asyncio.run(run_load(port, 1, 0, items, 8, quiet))
        before = resident_memory(service.pid)
        asyncio.run(run_load(port, asked.sessions, asked.think, items, asked.seconds, seen))
        after = resident_memory(service.pid)
        asyncio.run(run_and_kill())
        service.wait()
        service, port = start_service(store, model_port, folder)
        lost = find_lost(store, port, (seen, cut))
    finally:
        service.kill()
        model.kill()
    beyond = [first - own for first, own in zip(seen.first, seen.retrieval, strict=True)]
    alone = statistics.median(quiet.retrieval)
    return {
        "sessions": asked.sessions,
        "seconds": asked.seconds,
        "turns": len(seen.first),
        "events": len(seen.events),
        "errors": dict(seen.errors),
        "before_the_kill": {"turns": sum(map(len, cut.turns.values())), "events": len(cut.events)},
        "mixed": seen.mixed + cut.mixed,
        "first_items_ms": {"p50": quantile(seen.first, 0.5), "p95": quantile(seen.first, 0.95)},
        "retrieval_ms": {"p50": quantile(seen.retrieval, 0.5), "p95": quantile(seen.retrieval, 0.95)},
        "beyond_own_retrieval_ms": {"p50": quantile(beyond, 0.5), "p95": quantile(beyond, 0.95)},
        "beyond_quiet_retrieval_ms": {"p95": quantile([first - alone for first in seen.first], 0.95)},
        "quiet_ms": {"first_items": quantile(quiet.first, 0.5), "retrieval": round(alone, 1)},
        "whole_ms": {"p50": quantile(seen.whole, 0.5), "p95": quantile(seen.whole, 0.95)},
        "memory_mib": {"start": round(before), "end": round(after), "growth": round(after - before)},
        "lost": lost,
    }


def main() -> None:
    """Run the benchmark and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=5, help="seconds between an answer and the next message")
    parser.add_argument("--store", type=Path, help="a store to copy; by default the demo films are indexed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = measure(index_store(folder, asked.store), folder, asked)
    print(json.dumps(report))  # noqa: T201
    sys.exit(bool(report["errors"] or report["mixed"] or report["lost"] or report["memory_mib"]["growth"] > GROWTH))


if __name__ == "__main__":
    main()
