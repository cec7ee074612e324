"""100 conversations at once against `evoke serve`, on a paced model server; then `kill -9` in the middle of it.

    python -m eval.bench.load [--sessions 100] [--seconds 60] [--think 5] [--store S]

Each conversation asks for its own year on, streams the answer, thinks, asks on; a writer sends events meanwhile. Reported are
errors, conversations mixed up, the time to the first items and what of it was retrieval, and the service's memory. Then the
service is killed in mid-stream and started again: every turn and event that was acknowledged must be there. Exit 1 where not, on
any error, or where memory grew by more than 150 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
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

from store import Catalog, History

FILMS = Path(__file__).parent.parent / "films"
GROWTH = 150.0
LATER = 5_000
"""The first number of what is said while the service is killed: nothing of it was said before."""
MORE = ("something else", "another one", "more like that", "less known", "one more")


@dataclass
class Seen:
    """What the clients saw."""

    first: list[float] = field(default_factory=list)
    retrieval: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    mixed: list[str] = field(default_factory=list)
    turns: dict[str, list[str]] = field(default_factory=dict)  # by session, those acknowledged
    events: list[tuple[str, str, float]] = field(default_factory=list)  # acknowledged
    streaming: int = 0


async def post(port: int, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """The response, read up to its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    status = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
    return reader, writer, int(status)


async def turn(port: int, session: str, year: int, text: str, seen: Seen) -> None:
    """One message and its whole answer."""
    body = {"model": "evoke", "stream": True, "session": session, "messages": [{"role": "user", "content": text}]}
    started, first, last, done = time.perf_counter(), 0.0, {}, False
    reader, writer, status = await post(port, "/v1/chat/completions", body)
    try:
        if status != 200:
            seen.errors[f"status {status}"] += 1
            return
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            done = line.startswith(b"data: [DONE]")
            if b'"recommendations"' in line or b'"error"' in line:
                last = json.loads(line[6:])
                first = first or time.perf_counter() - started
    finally:
        writer.close()
    if not done or "error" in last:
        seen.errors["broken stream" if not done else "error in stream"] += 1
        return
    seen.turns.setdefault(session, []).append(text)
    seen.first.append(first * 1000)
    seen.whole.append((time.perf_counter() - started) * 1000)
    stages = (last.get("trace") or {}).get("stages", [])
    seen.retrieval.append(sum(stage["ms"] for stage in stages if stage["name"] in ("recall", "fuse")))
    years = [row["value"] for row in last["constraints"] if row["field"] == "year"]
    if last["session"] != session or years != [year]:
        seen.mixed.append(session)


async def converse(port: int, number: int, until: float, think: float, seen: Seen, begun: int) -> None:
    """One conversation until the time is over; what is said is told apart by numbers from `begun` on."""
    session, year = f"load-{number}", 1950 + number % 50
    await asyncio.sleep(think * number / 100)
    said = begun
    while time.monotonic() < until:
        text = (
            f"a slow crime film from {year} on, number {said}"
            if said == 0
            else f"{MORE[said % len(MORE)]}, number {said}"
        )
        seen.streaming += 1
        try:
            await turn(port, session, year, text, seen)
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.errors[type(error).__name__] += 1
        finally:
            seen.streaming -= 1
        said += 1
        await asyncio.sleep(think)


async def write_events(port: int, until: float, items: list[str], seen: Seen, begun: int) -> None:
    """Two events a second, each for a user of its own, at the times `begun`, the next and so on."""
    for number, item in enumerate(items * 1000, begun):
        if time.monotonic() > until:
            return
        user = f"writer-{number % 50}"
        event = {"user": user, "item": item, "kind": "like", "timestamp": float(number)}
        try:
            reader, writer, status = await post(port, "/v1/events", {"events": [event]})
            answer = await reader.read()
            writer.close()
            if status == 200 and b'"accepted":1' in answer:
                seen.events.append((user, item, float(number)))
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.errors[f"event {type(error).__name__}"] += 1
        await asyncio.sleep(0.5)


def start(store: Path, model: int, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The service and its port."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_"))}
    own |= {"EVOKE_BASE_URL": f"http://127.0.0.1:{model}/v1", "EVOKE_SERVE__RATE": "100000", "EVOKE_CONCURRENCY": "200"}
    command = [sys.executable, "-m", "agent.terminal.cli", "serve", "--store", str(store), "--port", "0"]
    with log.open("wb") as file:
        service = subprocess.Popen(command, stdout=file, stderr=file, env=own)  # noqa: S603  our own command
    while not (found := re.search(r"http://\S+:(\d+)", log.read_text())):
        if service.poll() is not None:
            sys.exit(f"the service ended: {log.read_text()[-500:]}")
        time.sleep(0.1)
    return service, int(found[1])


def resident(pid: int) -> float:
    """MiB of memory that the process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def quantile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 1) if values else float("nan")


def lost(store: Path, loads: Sequence[Seen], port_sessions: dict[str, list[str]]) -> list[str]:
    """Turns and events acknowledged in any of these loads that are not there after a restart."""
    said = [(s, text) for seen in loads for s, texts in seen.turns.items() for text in texts]
    gone = [f"turn {text!r} of {s}" for s, text in said if text not in port_sessions[s]]
    with History.open(store) as history:
        kept = {(e.user, e.item, e.timestamp) for n in range(50) for e in history.of(f"writer-{n}")}
    return gone + [f"event {event}" for seen in loads for event in seen.events if event not in kept]


def said_in(port: int, sessions: list[str]) -> dict[str, list[str]]:
    """What the users said in each conversation, as the service keeps it."""
    import httpx

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
        found = {}
        for session in sessions:
            turns = http.get(f"/v1/sessions/{session}").json().get("turns", [])
            found[session] = [row["content"] for row in turns if row["role"] == "user"]
    return found


def indexed(folder: Path, given: Path | None) -> Path:
    """A store in `folder`: a copy of the one given, or else of the demo films."""
    store = folder / "store"
    if given:
        shutil.copytree(given, store)
    else:
        command = [sys.executable, "-m", "agent.terminal.cli", "index", str(FILMS), "--store", str(store)]
        own = os.environ | {"XDG_DATA_HOME": str(folder)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=own)  # noqa: S603
    return store


async def load(
    port: int, asked: argparse.Namespace, items: list[str], seconds: float, seen: Seen, begun: int = 0
) -> None:
    """All conversations and the writer, for so long."""
    until = time.monotonic() + seconds
    talks = [converse(port, number, until, asked.think, seen, begun) for number in range(asked.sessions)]
    await asyncio.gather(write_events(port, until, items, seen, begun), *talks)


def main() -> None:
    """Run the benchmark and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=5, help="seconds between an answer and the next message")
    parser.add_argument("--store", type=Path, help="A store to copy; by default the demo films are indexed.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = indexed(folder, asked.store)
        with Catalog.open(store) as catalog:
            items = catalog.ids()
        report = measured(store, folder, asked, items)
    print(json.dumps(report))  # noqa: T201
    sys.exit(bool(report["errors"] or report["mixed"] or report["lost"] or report["memory_mib"]["growth"] > GROWTH))


def measured(store: Path, folder: Path, asked: argparse.Namespace, items: list[str]) -> dict[str, Any]:
    """The report: one quiet request at a time, then the load, then the kill."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        model_port = int(probe.getsockname()[1])
    model = subprocess.Popen([sys.executable, "-m", "eval.bench.model", str(model_port)])  # noqa: S603
    service, port = start(store, model_port, folder)
    try:
        quiet, seen, cut = Seen(), Seen(), Seen()
        asyncio.run(load(port, argparse.Namespace(sessions=1, think=0), items, 8, quiet))
        begun = resident(service.pid)
        asyncio.run(load(port, asked, items, asked.seconds, seen))
        ended = resident(service.pid)

        async def killed() -> None:
            talking = asyncio.create_task(load(port, asked, items, 6, cut, LATER))
            await asyncio.sleep(4)
            service.kill()
            await talking

        asyncio.run(killed())
        service.wait()
        service, port = start(store, model_port, folder)
        gone = lost(store, (seen, cut), said_in(port, list(seen.turns | cut.turns)))
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
        "memory_mib": {"start": round(begun), "end": round(ended), "growth": round(ended - begun)},
        "lost": gone,
    }


if __name__ == "__main__":
    main()
