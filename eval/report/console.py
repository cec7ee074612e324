"""A run as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from eval.report.diff import Changes
from eval.report.formatting import COST, QUALITY, SHOWN_ITEMS, format_share
from eval.report.run import RunData
from eval.report.tables import difference_table, measure_table

_TESTED = ("ndcg@10", "recall@100")  # measures whose differences fit next to each other


def render_run(run: RunData) -> Iterator[RenderableType]:
    """Yield the parts of a run from top to bottom: quality, cost and shown items of each arm, differences, warnings."""
    yield Text(f"{run.dataset}, {run.on}: {run.cases:,} cases of {run.users:,} users", style="bold")
    if quality := measure_table(run, QUALITY, marks=True):
        yield quality
    if run.union_ceiling is not None:
        yield Text(f"All single channels together find {format_share(run.union_ceiling)} of the targets in 100 each.")
    yield Text(
        "* best   = not significantly below the best (p≥.05, paired randomisation over users, Holm)", style="dim"
    )
    for title, measures in (("Cost of one request", COST), ("Items shown in the first ten places", SHOWN_ITEMS)):
        if table := measure_table(run, measures):
            yield Text(title, style="italic")
            yield table
    if differences := difference_table(run, _TESTED):
        yield Text.assemble((run.rank_arms()[0], "bold"), " ahead of each, with the 95 % interval (bold: p<.05)")
        yield differences
    if run.changes:
        yield Text("Changes since the earlier run", style="bold")
        yield Changes.from_json(run.changes)
    for name, reason in run.arms_not_run.items():
        yield Text(f"not run: {name}: {reason}", style="yellow")
    for warning in run.warnings:
        yield Text(f"note: {warning}", style="yellow")
