"""Conditions in words, for chips and answers: "from 1990 on", "under 120 minutes", "no Horror"."""

from __future__ import annotations

from typing import Any

from agent.dialogue.units import time_unit


def worded(name: str, op: str, value: Any, kind: str | None = None) -> str:
    """The condition in a few words. `kind` is what a number is about, where that is known."""
    if kind == "time":
        return _time(op, value)
    unit = time_unit(name).name if kind == "length" else None
    if isinstance(value, str) or op in ("$in", "$nin"):
        return _text(op, value)
    tail = f" {unit[:-1] if value == 1 else unit}" if unit else ""
    head = "" if unit else f"{name.replace('_', ' ')} "
    said = {
        "$lt": "under {}", "$lte": "at most {}", "$gt": "over {}", "$gte": "at least {}", "$eq": "{}", "$ne": "not {}",
    }  # fmt: skip
    if op == "$between":
        return f"{head}{_number(value[0])} to {_number(value[1])}{tail}"
    if op == "$outside":
        return f"not {head}{_number(value[0])} to {_number(value[1])}{tail}"
    if isinstance(value, bool):
        return f"{head}{'yes' if value else 'no'}".strip()
    return f"{head}{said[op].format(_number(value))}{tail}"


def _time(op: str, value: Any) -> str:
    if op in ("$between", "$outside"):
        return f"{'not ' if op == '$outside' else ''}{_stretch(value)}"
    if op == "$ranges":
        return " or ".join(_stretch(one) for one in value)
    said = {
        "$lt": "before {}", "$lte": "up to {}", "$gt": "after {}", "$gte": "from {} on", "$eq": "from {}", "$ne": "not from {}",
    }  # fmt: skip
    return said[op].format(_number(value))


def _stretch(value: Any) -> str:
    low, high = value
    if low % 10 == 0 and high == low + 9:
        return f"the {low:g}s"
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Return a number with up to 12 digits, so that the words name the filter's own value: 7200000, not 7.2e+06."""
    return f"{value:.12g}"


def _text(op: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    said = " or ".join(values)
    return f"no {said}" if op in ("$nin", "$ne", "$not_contains") else said
