"""Measuring: `compare` arms on held-out cases, `evoke tune`, demo data, benchmarks. `from eval import compare` is the way in."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.comparison.runner import compare
    from eval.errors import EvalError
    from eval.report.report import Run

__all__ = ["EvalError", "Run", "compare"]

_HOME = {"EvalError": "errors", "Run": "report.report", "compare": "comparison.runner"}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that importing the package costs nothing.
    if name not in _HOME:
        raise AttributeError(f"module 'eval' has no attribute {name!r}")
    return getattr(import_module(f"eval.{_HOME[name]}"), name)
