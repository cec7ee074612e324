"""Constraints as people read them, for chips and answers: "from 1990 on", "under 120 minutes", "no Horror"."""

from __future__ import annotations

from typing import Any

from agent.dialogue.units import time_unit


def describe_constraint(name: str, op: str, value: Any, kind: str | None = None) -> str:
    """Return a condition in a few words.

    Args:
        name: the field.
        op: the operator, as in `agent.dialogue.events.Constraint`.
        value: the operand; of a length of time, in the field's own unit.
        kind: what a number measures (a key of `agent.dialogue.nlu.lexicon.KINDS`), if that is known.
    """
    if kind == "time":
        return _describe_years(op, value)
    if isinstance(value, str) or op in ("$in", "$nin"):
        return _describe_values(op, value)
    unit = time_unit(name).name if kind == "length" else None
    tail = f" {unit[:-1] if value == 1 else unit}" if unit else ""
    head = "" if unit else f"{name.replace('_', ' ')} "
    if op == "$between":
        return f"{head}{_format(value[0])} to {_format(value[1])}{tail}"
    if op == "$outside":
        return f"not {head}{_format(value[0])} to {_format(value[1])}{tail}"
    if isinstance(value, bool):
        return f"{head}{'yes' if value else 'no'}".strip()
    patterns = {
        "$lt": "under {}", "$lte": "at most {}", "$gt": "over {}", "$gte": "at least {}", "$eq": "{}", "$ne": "not {}",
    }  # fmt: skip
    return f"{head}{patterns[op].format(_format(value))}{tail}"


def _describe_years(op: str, value: Any) -> str:
    if op in ("$between", "$outside"):
        return f"{'not ' if op == '$outside' else ''}{_describe_range(value)}"
    if op == "$ranges":
        return " or ".join(_describe_range(one) for one in value)
    patterns = {
        "$lt": "before {}", "$lte": "up to {}", "$gt": "after {}", "$gte": "from {} on", "$eq": "from {}", "$ne": "not from {}",
    }  # fmt: skip
    return patterns[op].format(_format(value))


def _describe_range(value: Any) -> str:
    low, high = value
    if low % 10 == 0 and high == low + 9:
        return f"the {low:g}s"
    return f"{_format(low)} to {_format(high)}"


def _describe_values(op: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    joined = " or ".join(values)
    return f"no {joined}" if op in ("$nin", "$ne", "$not_contains") else joined


def _format(number: float) -> str:
    """Return a number with up to 12 digits, so that the words name the filter's own value: 7200000, not 7.2e+06."""
    return f"{number:.12g}"
