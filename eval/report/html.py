"""A run as one HTML page that loads nothing, so that it can be sent as a file."""

from __future__ import annotations

from eval.metrics import KS
from eval.report import plots
from eval.report.diff import Changes
from eval.report.formatting import COST, QUALITY, SHOWN_ITEMS, format_share, measure_name
from eval.report.run import PRIMARY, RunData
from eval.report.tables import difference_table, measure_table

_STRATA_MEASURES = ("recall@100", "recall@10", "ndcg@10")


def render_page(run: RunData) -> str:
    """Return the page of a run; every name in it is escaped. Raises MissingExtra without matplotlib."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eval.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    order = run.rank_arms()
    arms = {arm: run.arms[arm] for arm in order}
    measure = next((each for each in _STRATA_MEASURES if any(each in own for own in arms.values())), "")
    strata_arms = order[: plots.COLOURS]
    return environment.get_template("report.html.j2").render(
        run=run,
        headline=summarize(run),
        quality=measure_table(run, QUALITY, marks=True, intervals=True),
        cost=measure_table(run, COST),
        shown=measure_table(run, SHOWN_ITEMS),
        best=order[0] if order else None,
        differences=difference_table(run, PRIMARY),
        changes=Changes.from_json(run.changes) if run.changes else None,
        ceiling=format_share(run.union_ceiling) if run.union_ceiling is not None else "",
        curves=plots.recall_curves(arms, KS),
        costs=plots.quality_and_cost(arms, PRIMARY[0]),
        overlap=plots.overlap_matrix(run.overlap),
        strata=plots.strata_dots(run.strata, strata_arms, measure),
        strata_measure=measure_name(measure),
        strata_arms=[(arm, plots.colour_of(row)) for row, arm in enumerate(strata_arms)],
        details=_details(run),
    )


def summarize(run: RunData) -> str:
    """Return one sentence: the best arm in nDCG@10, and which of the other arms it is significantly ahead of."""
    measure = PRIMARY[0]
    order = [arm for arm in run.rank_arms() if run.arms[arm].get(measure) is not None]
    if not order:
        return "No arm was measured."
    best, others = order[0], order[1:]
    start = f"{best} is best in {measure_name(measure)} with {format_share(run.arms[best][measure])}"
    compared = run.comparisons_of(best, measure)
    if not others or not compared:
        return f"{start}."
    if level := [arm for arm in order if arm in compared and not compared[arm].significant]:
        return f"{start}, but {' and '.join(level)} may be as good: the difference could be chance."
    rest = len(others) - len(compared)
    behind = f"all {len(compared)} compared with it"
    if len(compared) == 1:
        behind = next(iter(compared)) if rest else "the other arm"
    return f"{start}, significantly ahead of {behind}{f'; {rest} were not compared with it' if rest else ''}."


def _details(run: RunData) -> dict[str, dict[str, str]]:
    """Return what is needed to repeat the run, by heading."""
    data = {"dataset": run.dataset, "split": run.on, "cases": f"{run.cases:,}", "users": f"{run.users:,}"}
    data |= {"data hash": run.data or "–", "seed": str(run.seed), "model": run.model or "none", "date": run.date}
    parts = {"Run": data, "Settings": run.settings, "Prompts": run.prompts, "Versions": run.versions}
    return {title: {name: str(value) for name, value in part.items()} for title, part in parts.items() if part}
