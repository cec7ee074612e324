"""The structure of the code: imports run one way (contracts in pyproject.toml), and importing a package loads nothing slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SLOW = ("torch", "sentence_transformers", "chromadb", "openai", "scipy", "xllamacpp")


@pytest.mark.parametrize("contract", ["packages", "agent", "eval", "circles"])
def test_imports_run_one_way(contract: str) -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--contract", contract]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import agent; agent.Recommender",
        "import store; store.Catalog",
        "import eval; eval.EvalError",
        "import agent.terminal.cli",
        "import prompts",
    ],
)
def test_import_loads_no_slow_library(code: str) -> None:
    script = f"{code}\nimport sys\nprint([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_validation_cases_are_only_measured_on_catalogs_from_measured_catalog() -> None:
    opening = {
        str(file.relative_to(ROOT / "eval"))
        for file in (ROOT / "eval").rglob("*.py")
        if "Catalog.open(" in file.read_text(encoding="utf-8")
    }
    # These open one to serve, or to change what is in use; the rest calls `open_measured_catalog` in eval/data/leakage.py.
    assert opening <= {
        "data/leakage.py",
        "tuning/tune.py",
        "training/retriever.py",
        "bench/gpu.py",
        "bench/load.py",
    }
