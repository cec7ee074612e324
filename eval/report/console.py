"""A run, and the changes between two, as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from eval.report.formatting import COST, QUALITY, SHOWN, bounds, name_of, probability, share, signed, written
from eval.report.run import ALPHA, Run, chance
from eval.significance import Comparison

if TYPE_CHECKING:
    from eval.report.diff import Changes

_SHORT = ("ndcg@10", "recall@100")  # of the primary measures, those that fit side by side
_MARKS = {"best": "*", "level": "=", "": " "}


def tables(run: Run) -> Iterator[Table | Text]:
    """The run from top to bottom: what it is, how good each arm is, what it costs, what it shows, how sure that is."""
    yield Text(f"{run.dataset}, {run.on}: {run.cases:,} cases of {run.users:,} users", style="bold")
    yield _measures(run, "", QUALITY, marked=True)
    if run.union_ceiling is not None:
        yield Text(f"All single channels together find {share(run.union_ceiling)} of the targets in 100 each.")
    yield Text(
        "* best   = not significantly below the best (p≥.05, paired randomisation over users, Holm)", style="dim"
    )
    for title, measures in (("Cost of one request", COST), ("What the first ten places show", SHOWN)):
        if any(measure in arm for arm in run.arms.values() for measure in measures):
            yield _measures(run, title, measures, marked=False)
    if differences := _differences(run):
        yield differences
    if run.changes:
        from eval.report.diff import Changes

        yield Text("Since the earlier run", style="bold")
        yield from changes_tables(Changes.from_json(run.changes))
    for name, reason in run.arms_not_run.items():
        yield Text(f"not run: {name}: {reason}", style="yellow")
    for warning in run.warnings:
        yield Text(f"note: {warning}", style="yellow")


def _measures(run: Run, title: str, measures: Sequence[str], *, marked: bool) -> Table:
    shown = [measure for measure in measures if any(arm.get(measure) is not None for arm in run.arms.values())]
    table = Table("arm", title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for measure in shown:
        table.add_column(name_of(measure) + (" " if marked else ""), justify="right", no_wrap=True)
    marks = {measure: run.marks(measure) if marked else {} for measure in shown}
    for arm in run.ordered():
        cells = []
        for measure in shown:
            mark = marks[measure].get(arm, "")
            text = written(measure, run.arms[arm].get(measure)) + (_MARKS[mark] if marked else "")
            cells.append(Text(text, style="bold" if mark == "best" else ""))
        table.add_row(escape(arm), *cells)
    return table


def _differences(run: Run) -> Table | None:
    """How far the best arm is ahead of each other one."""
    best = next(iter(run.ordered()), None)
    by_measure = {measure: run.compared(best, measure) for measure in _SHORT} if best else {}
    by_measure = {measure: found for measure, found in by_measure.items() if found}
    if not by_measure:
        return None
    title = Text.assemble((best or "", "bold"), " ahead of each, with the 95 % interval (bold: more than chance)")
    table = Table("ahead of", title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for measure in by_measure:
        table.add_column(name_of(measure), no_wrap=True)
    for arm in run.ordered():
        if any(arm in found for found in by_measure.values()):
            table.add_row(escape(arm), *(_difference(found.get(arm)) for found in by_measure.values()))
    return table


def _difference(comparison: Comparison | None) -> Text:
    if comparison is None:
        return Text("–")
    p = chance(comparison)
    text = f"{signed(comparison.difference)} {bounds(comparison.low, comparison.high)} {probability(p)}"
    return Text(" ".join(text.split()), style="bold" if p < ALPHA else "")


def changes_tables(changes: Changes) -> Iterator[Table | Text]:
    """What went in differently, then what came out differently."""
    if changes.inputs:
        table = Table("changed", "before", "after", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name, (before, after) in changes.inputs.items():
            table.add_row(escape(name), *("–" if value is None else escape(str(value)) for value in (before, after)))
        yield table
    else:
        yield Text("Nothing that went in has changed.")
    for word, arms in (("only before", changes.arms_gone), ("only after", changes.arms_new)):
        if arms:
            yield Text(f"{word}: {', '.join(arms)}")
    moved = [delta for delta in changes.measures if delta.after != delta.before]
    if same := len(changes.measures) - len(moved):
        yield Text(f"{same} measures of the arms in both are as before.")
    if not moved:
        return
    table = Table("arm", "measure", "before", "after", "difference", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for delta in moved:
        sure = "" if delta.p is None else f" {bounds(delta.low, delta.high)} {probability(delta.p)}"
        style = "bold" if delta.p is not None and delta.p < ALPHA else ""
        table.add_row(
            escape(delta.arm),
            name_of(delta.measure),
            written(delta.measure, delta.before),
            written(delta.measure, delta.after),
            Text(signed(delta.after - delta.before) + sure, style=style),
        )
    yield table
