"""A run as one page of HTML that stands alone: it loads nothing, so it can be sent to a colleague as a file."""

from __future__ import annotations

from typing import Any

from eval.metrics import KS
from eval.report import plots
from eval.report.formatting import COST, QUALITY, SHOWN, bounds, name_of, probability, share, signed, written
from eval.report.run import ALPHA, PRIMARY, Run, chance

_STRATA_MEASURES = ("recall@100", "recall@10", "ndcg@10")


def page(run: Run) -> str:
    """The page of a run; every name in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("eval.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    order = run.ordered()
    arms = {arm: run.arms[arm] for arm in order}
    measure = next((each for each in _STRATA_MEASURES if any(each in own for own in arms.values())), "")
    strata_arms = order[: plots.COLOURS]
    return environment.get_template("report.html.j2").render(
        run=run,
        headline=headline(run),
        quality=_table(run, QUALITY, marked=True),
        cost=_table(run, COST, marked=False),
        shown=_table(run, SHOWN, marked=False),
        differences=_differences(run),
        changes=_changes(run),
        ceiling=share(run.union_ceiling) if run.union_ceiling is not None else "",
        curves=Markup(plots.recall_curves(arms, KS)),  # noqa: S704 - plots escape every name
        costs=Markup(plots.quality_and_cost(arms, PRIMARY[0])),  # noqa: S704
        overlap=Markup(plots.overlap_matrix(run.overlap)),  # noqa: S704
        strata=Markup(plots.strata_dots(run.strata, strata_arms, measure)),  # noqa: S704
        strata_measure=name_of(measure),
        strata_arms=[(arm, plots.colour_of(row)) for row, arm in enumerate(strata_arms)],
        details=_details(run),
    )


def headline(run: Run) -> str:
    """What the run says in one sentence: the best arm, and which of the others it is surely ahead of."""
    measure = PRIMARY[0]
    order = [arm for arm in run.ordered() if run.arms[arm].get(measure) is not None]
    if not order:
        return "No arm was measured."
    best, others = order[0], order[1:]
    said = f"{best} is best in {name_of(measure)} with {share(run.arms[best][measure])}"
    compared = run.compared(best, measure)
    if not others or not compared:
        return f"{said}."
    level = [arm for arm in order if arm in compared and chance(compared[arm]) >= ALPHA]
    ahead = len(compared) - len(level)
    if not level:
        whom = (
            "the other arm"
            if len(others) == 1
            else next(iter(compared))
            if ahead == 1
            else f"all {ahead} compared with it"
        )
        untold = f"; {len(others) - ahead} were not compared with it" if ahead < len(others) else ""
        return f"{said}, significantly ahead of {whom}{untold}."
    return f"{said}, but {' and '.join(level)} may be as good: the difference could be chance."


def _table(run: Run, measures: tuple[str, ...], *, marked: bool) -> dict[str, Any] | None:
    """Headings and rows of cells (text, interval, mark); None where no arm has any of the measures."""
    there = [measure for measure in measures if any(arm.get(measure) is not None for arm in run.arms.values())]
    if not there:
        return None
    marks = {measure: run.marks(measure) if marked else {} for measure in there}
    rows = []
    for arm in run.ordered():
        around = run.intervals.get(arm, {})
        cells = [
            (
                written(measure, run.arms[arm].get(measure)),
                bounds(*around[measure]).strip("[]").replace(", ", "–") if marked and measure in around else "",
                marks[measure].get(arm, ""),
            )
            for measure in there
        ]
        rows.append((arm, cells))
    return {"head": [name_of(measure) for measure in there], "rows": rows}


def _differences(run: Run) -> dict[str, Any] | None:
    best = next(iter(run.ordered()), "")
    by_measure = {measure: found for measure in PRIMARY if (found := run.compared(best, measure))}
    rows = []
    for arm in run.ordered():
        cells = []
        for found in by_measure.values():
            each = found.get(arm)
            cells.append(
                ("–", "", "", False)
                if each is None
                else (
                    signed(each.difference),
                    bounds(each.low, each.high),
                    probability(chance(each)),
                    chance(each) < ALPHA,
                )
            )
        if any(arm in found for found in by_measure.values()):
            rows.append((arm, cells))
    return {"best": best, "head": [name_of(measure) for measure in by_measure], "rows": rows} if rows else None


def _changes(run: Run) -> dict[str, Any] | None:
    """What changed since an earlier run: rows of what went in, and of the measures that moved."""
    if not run.changes:
        return None
    inputs = [
        (name, *("–" if value is None else str(value) for value in pair))
        for name, pair in run.changes["inputs"].items()
    ]
    moved = []
    for delta in run.changes["measures"]:
        if delta["before"] != delta["after"]:
            p = "" if delta["p"] is None else probability(delta["p"])
            moved.append(
                (
                    delta["arm"],
                    name_of(delta["measure"]),
                    written(delta["measure"], delta["before"]),
                    written(delta["measure"], delta["after"]),
                    signed(delta["after"] - delta["before"]),
                    f"{bounds(delta['low'], delta['high'])} {p}".strip(),
                    delta["p"] is not None and delta["p"] < ALPHA,
                )
            )
    told = {"only before": run.changes["arms_gone"], "only after": run.changes["arms_new"]}
    return {"inputs": inputs, "moved": moved, "arms": {word: ", ".join(arms) for word, arms in told.items() if arms}}


def _details(run: Run) -> dict[str, dict[str, str]]:
    """What is needed to repeat the run, by heading."""
    data = {"dataset": run.dataset, "part": run.on, "cases": f"{run.cases:,}", "users": f"{run.users:,}"}
    data |= {"data hash": run.data or "–", "seed": str(run.seed), "model": run.model or "none", "date": run.date}
    parts = {"Run": data, "Settings": run.settings, "Prompts": run.prompts, "Versions": run.versions}
    return {title: {name: str(value) for name, value in part.items()} for title, part in parts.items() if part}
