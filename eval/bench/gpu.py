"""Recommendations and tokens per second through vLLM with 1, 16, 64 and 256 users at once, and what Evoke itself takes.

    python -m eval.bench.gpu (--model M [--vllm-python PATH] | --base-url URL) [--users 1,16,64,256] [--seconds 60]
                             [--requests N] [--store S] [--json]

Whole recommendations (interests, rank with a weight of .2, explanations) for people made up by seed: as long a history as one of
the store's people has, drawn from what two of them like. Nobody is served twice, so that no profile comes from a cache; the
prefix cache is fresh in each run and has read the instructions before the first level. Each user asks again once answered, until
the time or the requests are over; what is under way then is finished and counted. `EVOKE_DEADLINE` holds as it does elsewhere.
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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent.recommender import MODEL_STAGES, AsyncRecommender
from eval.bench.load import indexed, quantile
from eval.bench.vllm import Server, elsewhere, serving
from store import Catalog, History

if TYPE_CHECKING:
    from rich.table import Table

NO_GPU = "These are no GPU figures: the model ran on none, or that is not known from here."

SAMPLE = 1000
"""Of a store's people, so many at most are read."""


@dataclass(frozen=True, slots=True)
class Level:
    """So many users at once. Tokens and prefix-cache hits are the server's own counts, None where it counts nothing."""

    users: int
    requests: int
    seconds: float
    per_second: float
    p50_s: float
    p90_s: float
    tokens_in_per_second: float | None
    tokens_out_per_second: float | None
    prefix_hits: float | None
    degraded: float
    reasons: dict[str, int]
    own_p50_ms: float
    own_share: float
    cpu_ms: float


ROWS = {
    "recommendations": ("requests", ",d"),
    "recommendations per second": ("per_second", ".2f"),
    "seconds per recommendation, p50": ("p50_s", ".2f"),
    "seconds per recommendation, p90": ("p90_s", ".2f"),
    "tokens in per second": ("tokens_in_per_second", ",.0f"),
    "tokens out per second": ("tokens_out_per_second", ",.0f"),
    "prompt tokens from the prefix cache": ("prefix_hits", ".1%"),
    "degraded recommendations": ("degraded", ".1%"),
    "ours outside of model stages, ms, p50": ("own_p50_ms", ".1f"),
    "its share of the time": ("own_share", ".1%"),
    "our CPU time a recommendation, all stages, ms": ("cpu_ms", ".1f"),
}


def people(history: History, seed: int = 0) -> Iterator[list[str]]:
    """Histories of people who do not exist, without end. Exits in one line where nobody is there to make them from."""
    rng = random.Random(seed)
    likes = [[e.item for e in history.positive(history.of(user))] for user in history.users()[:SAMPLE]]
    likes = [items for items in likes if items]
    if len(likes) < 2:
        sys.exit("the store holds fewer than two people who like anything; give one with histories, or no --store")
    while True:
        one, other = rng.sample(likes, 2)
        yield rng.sample(list(dict.fromkeys(one + other)), len(set(one)))


async def level(
    rec: AsyncRecommender, server: Server, users: int, histories: Iterator[list[str]], seconds: float, most: int | None
) -> Level:
    """Serve so many users at once, each again once answered, for these seconds or this many requests."""
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
    return Level(
        users=users,
        requests=len(took),
        seconds=round(passed, 2),
        per_second=round(len(took) / passed, 3),
        p50_s=quantile(took, 0.5) / 1000,
        p90_s=quantile(took, 0.9) / 1000,
        tokens_in_per_second=round(counted["tokens_in"] / passed, 1) if counted else None,
        tokens_out_per_second=round(counted["tokens_out"] / passed, 1) if counted else None,
        prefix_hits=round(counted["found"] / counted["looked_up"], 4) if counted.get("looked_up") else None,
        degraded=round(degraded / len(took), 4),
        reasons=dict(reasons),
        own_p50_ms=quantile(own, 0.5),
        own_share=round(sum(own) / sum(took), 4),
        cpu_ms=round(cpu * 1000 / len(took), 1),
    )


async def measured(server: Server, store: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The report: one recommendation that loads what the first one loads, then level after level."""
    if task := asyncio.current_task():  # an interrupt in the middle of a callback would leave others unheard
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
            histories = people(history)
            first = (await rec.recommend(history=next(histories))).trace
            if not (model := first["interests"].model):
                sys.exit(f"no model at {server.base_url}: {first['interests'].degraded}; see that the server runs")
            levels = []
            for users in asked.users:
                print(f"evoke: {users} at once", file=sys.stderr)  # noqa: T201
                levels.append(await level(rec, server, users, histories, asked.seconds, asked.requests))
        finally:
            await rec.close()
    named = {"device": server.device, "gpu": server.gpu, "notice": None if server.gpu else NO_GPU, "model": model}
    return named | {"vllm": server.version(), "evoke": version("evoke-rec"), "levels": [asdict(one) for one in levels]}


def table(report: dict[str, Any]) -> Table:
    """The figures, a column for each level."""
    from rich.table import Table

    shown = Table("users at once", box=None, pad_edge=False)
    for level in report["levels"]:
        shown.add_column(str(level["users"]), justify="right")
    for name, (figure, form) in ROWS.items():
        values = [level[figure] for level in report["levels"]]
        shown.add_row(name, *("-" if value is None else format(value, form) for value in values))
    return shown


def count(text: str) -> int:
    """The number, at least 1. Raises ValueError for another."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def counts(text: str) -> list[int]:
    """The numbers in "1,16,64", each at least 1. Raises ValueError for others."""
    return [count(part) for part in text.split(",")]


def main() -> None:
    """Run the benchmark and print a table, or one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", help="a running server, left running; without it vLLM is started and stopped")
    parser.add_argument("--model", help="what to serve, a hub name or folder; with --base-url the served name")
    parser.add_argument("--vllm-python", default=sys.executable, help="the Python of the environment that has vLLM")
    parser.add_argument("--users", type=counts, default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=60, help="for each level")
    parser.add_argument("--requests", type=count, help="the most for each level")
    parser.add_argument("--store", type=Path, help="a store to copy; by default the demo films are indexed")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not (asked.base_url or asked.model):
        parser.error("name the model to serve with --model, or a running server with --base-url")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that vLLM is stopped then, too
    try:
        with (
            nullcontext(elsewhere(asked.base_url))
            if asked.base_url
            else serving(asked.vllm_python, asked.model) as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            report = asyncio.run(measured(server, indexed(Path(folder), asked.store), asked))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    if asked.json:
        print(json.dumps(report))  # noqa: T201
        return
    from rich.console import Console

    out = Console(highlight=False)
    out.print("{model} · {device} · vLLM {vllm} · Evoke {evoke}".format_map(report), markup=False, style="bold")
    out.print(table(report))
    for row in report["levels"]:
        for reason, times in row["reasons"].items():
            out.print(f"{row['users']} at once, {times} times {reason}", markup=False)
    if report["notice"]:
        out.print(report["notice"])


if __name__ == "__main__":
    main()
