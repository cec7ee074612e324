"""What changed between two runs: in what went in, and, case by case where both kept them, in what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.report.run import PRIMARY, Run, in_text
from eval.significance import compare, holm

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_INPUTS = ("dataset", "data", "on", "cases", "users", "seed", "model")
_MAPPINGS = ("settings", "prompts", "versions", "arms_not_run")


@dataclass(frozen=True, slots=True)
class Delta:
    """One arm's measure before and after; the interval and p value (with Holm's correction) where the cases are the same ones."""

    arm: str
    measure: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """`inputs`: what differs of dataset, settings (by dotted name), model, versions, as (before, after). `measures`: the arms of
    both runs. `arms_gone` and `arms_new`: those of one run only."""

    inputs: dict[str, tuple[Any, Any]]
    measures: list[Delta]
    arms_gone: list[str]
    arms_new: list[str]

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        measures = [{name: getattr(delta, name) for name in Delta.__slots__} for delta in self.measures]
        inputs = {name: list(pair) for name, pair in self.inputs.items()}
        return {"inputs": inputs, "measures": measures, "arms_gone": self.arms_gone, "arms_new": self.arms_new}

    @classmethod
    def from_json(cls, changes: Mapping[str, Any]) -> Changes:
        """The changes that `as_json` gave."""
        inputs = {name: (before, after) for name, (before, after) in changes["inputs"].items()}
        measures = [Delta(**delta) for delta in changes["measures"]]
        return cls(inputs, measures, list(changes["arms_gone"]), list(changes["arms_new"]))

    def __str__(self) -> str:
        return in_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from eval.report.console import changes_tables

        yield from changes_tables(self)


def changes(before: Run, after: Run) -> Changes:
    """What changed from one run to the other."""
    inputs = {
        name: (getattr(before, name), getattr(after, name))
        for name in _INPUTS
        if getattr(before, name) != getattr(after, name)
    }
    for name in _MAPPINGS:
        inputs |= _differences(_flat(getattr(before, name), name), _flat(getattr(after, name), name))
    shared = [arm for arm in after.ordered() if arm in before.arms]
    deltas = [delta for arm in shared for measure in PRIMARY if (delta := _delta(before, after, arm, measure))]
    return Changes(
        inputs,
        _tested(before, after, deltas),
        [arm for arm in before.arms if arm not in after.arms],
        [arm for arm in after.arms if arm not in before.arms],
    )


def _delta(before: Run, after: Run, arm: str, measure: str) -> Delta | None:
    old, new = before.arms[arm].get(measure), after.arms[arm].get(measure)
    return None if old is None or new is None else Delta(arm, measure, old, new)


def _tested(before: Run, after: Run, deltas: list[Delta]) -> list[Delta]:
    """The deltas with their significance, where both runs kept the values of the very same cases."""
    users = after.case_users
    if users is None or before.case_users is None or (before.data, before.asked) != (after.data, after.asked):
        return deltas
    tests = {}
    for row, delta in enumerate(deltas):
        old = before.values.get(delta.arm, {}).get(delta.measure)
        new = after.values.get(delta.arm, {}).get(delta.measure)
        if old is not None and new is not None and len(old) == len(new) == len(users):
            # Saved values are rounded to single precision, so both are compared rounded.
            rounded = new.astype(np.float32).astype(np.float64)
            tests[row] = compare(rounded, old, users.tolist(), measure=delta.measure, a="after", b="before")
    for row, tested in zip(tests, holm(list(tests.values())), strict=True):
        delta = deltas[row]
        deltas[row] = Delta(delta.arm, delta.measure, delta.before, delta.after, tested.low, tested.high, tested.p_holm)
    return deltas


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}.{name}")
        else:
            flat[f"{prefix}.{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (old.get(name), new.get(name))
        for name in [*old, *(n for n in new if n not in old)]
        if old.get(name) != new.get(name)
    }
