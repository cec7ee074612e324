"""The tables of a run, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.formatting import Cell, Table, difference_cell, format_interval, format_value, measure_name
from eval.report.run import RunData


def measure_table(
    run: RunData, measures: Sequence[str], *, marks: bool = False, intervals: bool = False
) -> Table | None:
    """Return the measures of each arm, best arm first; None if no arm has any of them.

    Args:
        run: the run.
        measures: the measures, one column each.
        marks: mark the best arm of each measure and those not significantly below it.
        intervals: show the 95 % intervals.
    """
    present = [measure for measure in measures if any(arm.get(measure) is not None for arm in run.arms.values())]
    mark_of = {measure: run.mark_arms(measure) if marks else {} for measure in present}
    rows = []
    for arm in run.rank_arms():
        bounds = run.intervals.get(arm, {}) if intervals else {}
        cells = [
            Cell(
                format_value(measure, run.arms[arm].get(measure)),
                format_interval(*bounds.get(measure, (None, None)), brackets="", between="–"),
                mark_of[measure].get(arm, ""),
            )
            for measure in present
        ]
        rows.append((arm, cells))
    return Table(["arm", *map(measure_name, present)], rows) if present else None


def difference_table(run: RunData, measures: Sequence[str]) -> Table | None:
    """Return how far the arm that is best in nDCG@10 is ahead of each other arm; None if it was compared with none."""
    order = run.rank_arms()
    compared = {measure: run.comparisons_of(order[0], measure) for measure in measures} if order else {}
    compared = {measure: comparisons for measure, comparisons in compared.items() if comparisons}
    rows = []
    for arm in order:
        tests = [comparisons.get(arm) for comparisons in compared.values()]
        if any(tests):
            cells = [difference_cell(t.difference, t.low, t.high, t.p_final) if t else Cell("–") for t in tests]
            rows.append((arm, cells))
    return Table(["ahead of", *map(measure_name, compared)], rows) if rows else None
