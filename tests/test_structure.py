"""What holds the house together: imports run one way, and nothing slow is loaded at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"prompts": set(), "store": set(), "agent": {"prompts", "store"}, "eval": {"prompts", "store", "agent"}}
SLOW = ("torch", "sentence_transformers", "chromadb", "openai", "scipy", "xllamacpp")


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        ours = imported(file) & set(ALLOWED) - {package}
        assert ours <= ALLOWED[package], f"{file.relative_to(ROOT)} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize(
    "code",
    ["import agent; agent.Recommender", "import store; store.Catalog", "import agent.terminal.cli", "import prompts"],
)
def test_nothing_slow_is_loaded_at_import(code: str) -> None:
    script = f"{code}\nimport sys\nprint([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_what_looks_at_no_validation_case_opens_a_catalog_by_itself() -> None:
    opening = {
        str(file.relative_to(ROOT / "eval"))
        for file in (ROOT / "eval").rglob("*.py")
        if "Catalog.open(" in file.read_text(encoding="utf-8")
    }
    # To put something in force for use, or to serve; all else goes through `measured_catalog` in eval/data/leakage.py.
    assert opening <= {
        "data/leakage.py",
        "tuning/tune.py",
        "training/retriever.py",
        "bench/gpu.py",
        "bench/load.py",
    }
