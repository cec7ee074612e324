"""Benchmark on a GPU: recommendations and tokens per second through vLLM with 1, 16, 64 and 256 users at once.

    python -m eval.bench.gpu (--model M [--vllm-python PATH] | --base-url URL) [--users 1,16,64,256] [--seconds 60]
                             [--requests N] [--store S] [--json]

It measures complete recommendations (profile, reranking with a weight of .2, explanations), and the time that Evoke itself takes
outside of model calls. Histories are made up by seed: each is as long as the history of one real user of the store, and is drawn
from the items that two real users like. No history is used twice, so no profile comes from a cache. Every run starts with a fresh
prefix cache, and one request before the first level fills it with the instructions. A user sends the next request as soon as one
is answered, until the time or the number of requests is reached; requests under way then are finished and counted.
`EVOKE_DEADLINE` applies as usual.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent.recommender import MODEL_STAGES, AsyncRecommender
from eval.bench.load import index_store, quantile
from eval.bench.vllm import Server, describe_server, start_server
from store import Catalog, History

if TYPE_CHECKING:
    from rich.table import Table

NO_GPU = "These are not GPU figures: the model ran without a GPU, or on a machine that cannot be inspected from here."

SAMPLE = 1000
"""The most users of a store whose histories are read."""


ROWS = {
    "recommendations": ("requests", ",d"),
    "recommendations per second": ("per_second", ".2f"),
    "seconds per recommendation, p50": ("p50_s", ".2f"),
    "seconds per recommendation, p90": ("p90_s", ".2f"),
    "tokens in per second": ("tokens_in_per_second", ",.0f"),
    "tokens out per second": ("tokens_out_per_second", ",.0f"),
    "prompt tokens from the prefix cache": ("prefix_hits", ".1%"),
    "degraded recommendations": ("degraded", ".1%"),
    "our time outside of model stages, ms, p50": ("own_p50_ms", ".1f"),
    "our share of the time": ("own_share", ".1%"),
    "our CPU time per recommendation, all stages, ms": ("cpu_ms", ".1f"),
}


def make_histories(history: History, seed: int = 0) -> Iterator[list[str]]:
    """Yield made-up histories without end. Exits with one line if the store has fewer than two users who like anything."""
    rng = random.Random(seed)
    likes = [[e.item for e in history.positive(history.of(user))] for user in history.users()[:SAMPLE]]
    likes = [items for items in likes if items]
    if len(likes) < 2:
        sys.exit(
            "the store has fewer than two users who like anything; give a store with histories, or leave out --store"
        )
    while True:
        one, other = rng.sample(likes, 2)
        yield rng.sample(list(dict.fromkeys(one + other)), len(set(one)))


async def measure_level(
    rec: AsyncRecommender, server: Server, users: int, histories: Iterator[list[str]], seconds: float, most: int | None
) -> dict[str, Any]:
    """Serve `users` users at once, and return the figures: those in ROWS, the seconds, and how often what degraded.

    Tokens and prefix-cache hits are counted by the server; they are None if it does not.

    Args:
        rec: the recommender that serves them.
        server: the model server that counts tokens.
        users: how many users ask at the same time.
        histories: one history for each request.
        seconds: after this time no further request is sent.
        most: the most requests in all; None for no limit.
    """
    took: list[float] = []
    own: list[float] = []
    reasons: Counter[str] = Counter()
    degraded = 0
    waiting = itertools.islice(histories, most)
    before, cpu, began = server.counters(), time.process_time(), time.perf_counter()
    until = began + seconds

    async def ask() -> None:
        nonlocal degraded
        while time.perf_counter() < until and (liked := next(waiting, None)):
            started = time.perf_counter()
            trace = (await rec.recommend(history=liked)).trace
            took.append((time.perf_counter() - started) * 1000)
            own.append(took[-1] - sum(trace[stage].ms for stage in MODEL_STAGES))
            degraded += bool(trace.degraded)
            reasons.update(f"{row['stage']}: {row['reason']}" for row in trace.degraded)

    await asyncio.gather(*(ask() for _ in range(users)))
    passed, cpu = time.perf_counter() - began, time.process_time() - cpu
    counted = {name: value - before[name] for name, value in server.counters().items() if name in before}
    return {
        "users": users,
        "requests": len(took),
        "seconds": round(passed, 2),
        "per_second": round(len(took) / passed, 3),
        "p50_s": quantile(took, 0.5) / 1000,
        "p90_s": quantile(took, 0.9) / 1000,
        "tokens_in_per_second": round(counted["tokens_in"] / passed, 1) if counted else None,
        "tokens_out_per_second": round(counted["tokens_out"] / passed, 1) if counted else None,
        "prefix_hits": round(counted["found"] / counted["looked_up"], 4) if counted.get("looked_up") else None,
        "degraded": round(degraded / len(took), 4),
        "reasons": dict(reasons),
        "own_p50_ms": quantile(own, 0.5),
        "own_share": round(sum(own) / sum(took), 4),
        "cpu_ms": round(cpu * 1000 / len(took), 1),
    }


async def measure(server: Server, store: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Serve one recommendation to load everything, then measure level after level; return the report."""
    if task := asyncio.current_task():  # cancelled, not interrupted: an interrupt inside a callback could be swallowed
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with Catalog.open(store) as catalog, History.open(store) as history:
        rec = AsyncRecommender(
            catalog,
            history,
            base_url=server.base_url,
            model=asked.model,
            rank_weight=0.2,
            explain=True,
            concurrency=2 * max(asked.users),  # ranking calls twice at once
            cache_salt=uuid4().hex,
        )
        try:
            histories = make_histories(history)
            first = (await rec.recommend(history=next(histories))).trace
            if not (model := first["profile"].model):
                sys.exit(f"no model at {server.base_url}: {first['profile'].degraded}; see that the server runs")
            levels = []
            for users in asked.users:
                print(f"evoke: {users} users at once", file=sys.stderr)  # noqa: T201
                levels.append(await measure_level(rec, server, users, histories, asked.seconds, asked.requests))
        finally:
            await rec.close()
    named = {"device": server.device, "gpu": server.gpu, "notice": None if server.gpu else NO_GPU, "model": model}
    return named | {"vllm": server.version(), "evoke": version("evoke-rec"), "levels": levels}


def make_table(report: dict[str, Any]) -> Table:
    """Return the figures as a table with one column for each level."""
    from rich.table import Table

    shown = Table("users at once", box=None, pad_edge=False)
    for level in report["levels"]:
        shown.add_column(str(level["users"]), justify="right")
    for name, (figure, form) in ROWS.items():
        values = [level[figure] for level in report["levels"]]
        shown.add_row(name, *("-" if value is None else format(value, form) for value in values))
    return shown


def parse_count(text: str) -> int:
    """Return the number. Raises ValueError if it is below 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def parse_counts(text: str) -> list[int]:
    """Return the numbers in "1,16,64". Raises ValueError if one is below 1."""
    return [parse_count(part) for part in text.split(",")]


def main() -> None:
    """Run the benchmark and print a table, or one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", help="the URL of a running server; without it, vLLM is started and stopped")
    parser.add_argument("--model", help="the model to serve (hub name or folder); with --base-url, the served name")
    parser.add_argument("--vllm-python", default=sys.executable, help="the Python of the environment that has vLLM")
    parser.add_argument("--users", type=parse_counts, default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=60, help="time for each level")
    parser.add_argument("--requests", type=parse_count, help="the most requests for each level")
    parser.add_argument("--store", type=Path, help="a store to copy; by default the demo films are indexed")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not (asked.base_url or asked.model):
        parser.error("give the model to serve with --model, or a running server with --base-url")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that vLLM is stopped on SIGTERM, too
    try:
        with (
            nullcontext(describe_server(asked.base_url))
            if asked.base_url
            else start_server(asked.vllm_python, asked.model) as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            report = asyncio.run(measure(server, index_store(Path(folder), asked.store), asked))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    if asked.json:
        print(json.dumps(report))  # noqa: T201
        return
    from rich.console import Console

    out = Console(highlight=False)
    out.print("{model} · {device} · vLLM {vllm} · Evoke {evoke}".format_map(report), markup=False, style="bold")
    out.print(make_table(report))
    for row in report["levels"]:
        for reason, times in row["reasons"].items():
            out.print(f"{row['users']} users at once, {times} times: {reason}", markup=False)
    if report["notice"]:
        out.print(report["notice"])


if __name__ == "__main__":
    main()
