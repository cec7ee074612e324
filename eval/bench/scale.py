"""Benchmark of indexing: a made-up catalog of 100,000 items goes through `evoke index`; time and peak memory are reported.

    python -m eval.bench.scale [--items 100000] [--limit-gib 3]

The exit code is 1 if the peak is above the limit. The data are made with seed 0, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from eval.bench.load import evoke

KINDS = "lamp chair kettle desk rug shelf clock mirror stool bench vase tray basket blanket cushion".split()
LOOKS = "oak steel linen blue folding tall quiet small round brass woven matte classic outdoor travel".split()
BRANDS = [f"Maker {i}" for i in range(400)]


def write_dataset(folder: Path, items: int) -> None:
    """Write items.jsonl and events.csv of a made-up shop."""
    rng = random.Random(0)
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        for i in range(items):
            looks, kind, brand = rng.sample(LOOKS, 3), rng.choice(KINDS), rng.choice(BRANDS)
            row = {
                "id": str(i),
                "title": f"{brand} {looks[0]} {kind} {i}",
                "text": f"A {looks[1]} and {looks[2]} {kind} for the {rng.choice(['hall', 'garden', 'office'])}.",
                "metadata": {"brand": brand, "kind": kind, "price": rng.randrange(5, 500)},
            }
            file.write(json.dumps(row) + "\n")
    with (folder / "events.csv").open("w", encoding="utf-8") as file:
        file.write("user,item,rating,timestamp\n")
        for user in range(items // 10):
            start = rng.randrange(items)
            for step in range(10):
                file.write(f"u{user},{(start + rng.randrange(300)) % items},,{step}\n")


def main() -> None:
    """Run the benchmark and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--limit-gib", type=float, default=3.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (data := folder / "shop").mkdir()
        write_dataset(data, asked.items)
        started = time.monotonic()
        output = evoke(folder, "index", data, "--store", folder / "store", "--json")
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    report = {"items": asked.items, "seconds": round(seconds, 1), "peak_gib": round(peak, 2), **json.loads(output)}
    print(json.dumps(report))  # noqa: T201
    sys.exit(peak > asked.limit_gib)


if __name__ == "__main__":
    main()
