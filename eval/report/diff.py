"""The differences between two runs: in their inputs and, case by case where both kept the cases, in their measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from eval.report.formatting import Cell, Table, as_text, difference_cell, format_value, measure_name
from eval.report.run import PRIMARY, RunData
from eval.significance import compare_all, correct_by_holm

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_INPUTS = (
    "dataset",
    "data",
    "on",
    "cases",
    "users",
    "seed",
    "model",
    "settings",
    "prompts",
    "versions",
    "arms_not_run",
)


@dataclass(frozen=True, slots=True)
class Delta:
    """One arm's measure before and after. The interval and the p value (with Holm's correction) are None unless both runs have the
    same cases."""

    arm: str
    measure: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """The differences between two runs; `print` shows them.

    Args:
        inputs: (before, after) of each input that differs, by name; settings, prompts and versions by dotted name.
        measures: the measures of the arms that both runs have.
        arms_gone: arms of the earlier run only.
        arms_new: arms of the later run only.
    """

    inputs: dict[str, tuple[Any, Any]]
    measures: list[Delta]
    arms_gone: list[str]
    arms_new: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the fields, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, changes: Mapping[str, Any]) -> Changes:
        """Return the changes of a dict from `as_json`."""
        return TypeAdapter(cls).validate_python(changes)

    def notes(self) -> list[str]:
        """Return sentences about what stands in no table: arms of one run only, and what did not change."""
        same = sum(delta.after == delta.before for delta in self.measures)
        notes = {
            "No input changed.": not self.inputs,
            f"Arms of the earlier run only: {', '.join(self.arms_gone)}": self.arms_gone,
            f"Arms of this run only: {', '.join(self.arms_new)}": self.arms_new,
            f"Unchanged measures of arms in both runs: {same}": same,
        }
        return [note for note, holds in notes.items() if holds]

    def tables(self) -> list[Table]:
        """Return a table of the inputs that changed and one of the measures that changed, without empty ones."""
        inputs = [
            (name, [Cell("–" if value is None else str(value)) for value in (before, after)])
            for name, (before, after) in self.inputs.items()
        ]
        measures = []
        for delta in self.measures:
            if delta.after != delta.before:
                values = [Cell(format_value(delta.measure, value)) for value in (delta.before, delta.after)]
                difference = difference_cell(delta.after - delta.before, delta.low, delta.high, delta.p)
                measures.append((delta.arm, [Cell(measure_name(delta.measure)), *values, difference]))
        tables = [
            Table(["input", "before", "after"], inputs, numeric=False),
            Table(["arm", "measure", "before", "after", "difference"], measures),
        ]
        return [table for table in tables if table.rows]

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        yield from map(Text, self.notes())
        yield from self.tables()


def compare_runs(before: RunData, after: RunData) -> Changes:
    """Return what changed from one run to the other."""
    old, new = (_flatten({name: getattr(run, name) for name in _INPUTS}) for run in (before, after))
    names = dict.fromkeys([*old, *new])
    inputs = {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
    deltas = []
    for arm in after.rank_arms():
        for measure in PRIMARY:
            was, now = before.arms.get(arm, {}).get(measure), after.arms[arm].get(measure)
            if was is not None and now is not None:
                deltas.append(Delta(arm, measure, was, now))
    return Changes(
        inputs,
        _test(before, after, deltas),
        [arm for arm in before.arms if arm not in after.arms],
        [arm for arm in after.arms if arm not in before.arms],
    )


def _test(before: RunData, after: RunData, deltas: list[Delta]) -> list[Delta]:
    """Return the deltas with their significance, where both runs kept the values of the same cases."""
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
            (tests[row],) = compare_all({"after": rounded, "before": old}, users.tolist(), measure=delta.measure)
    tested = dict(zip(tests, correct_by_holm(list(tests.values())), strict=True))
    return [
        replace(delta, low=tested[row].low, high=tested[row].high, p=tested[row].p_holm) if row in tested else delta
        for row, delta in enumerate(deltas)
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names; tuples as lists, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
