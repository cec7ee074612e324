"""The plots of the report as inline SVG: narrow enough to be read on a phone, coloured by the page's own variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from eval.report.formatting import duration, name_of, share
from eval.report.svg import (
    LETTER,
    LINE,
    WIDTH,
    Scale,
    apart,
    drawing,
    grid_y,
    name_beside,
    power_of_ten,
    round_steps,
    short,
    ticks_x,
    up_to,
    write,
)

COLOURS = 8  # as many as the page defines


def recall_curves(arms: Mapping[str, Mapping[str, float | None]], ks: Sequence[int]) -> str:
    """Recall by how many items are kept, one line for each arm, in the order given (which sets the colours)."""
    curves = {
        arm: [(k, value) for k in ks if (value := own.get(f"recall@{k}")) is not None] for arm, own in arms.items()
    }
    curves = {arm: points for arm, points in curves.items() if points}
    if not curves:
        return ""
    height = max(300, 70 + int(LINE * len(curves)))
    # An arm's label begins where its line ends.
    right = WIDTH - 14 - LETTER * min(max(map(len, curves)), 18)
    x = Scale(0.0, math.log(max(ks)) or 1.0, 38, right)
    y = up_to(max(value for points in curves.values() for _, value in points), height - 40, 16)
    parts = [grid_y(y, 38, right), ticks_x([(x(math.log(k)), str(k)) for k in ks], height - 40)]
    parts.append(write((38 + right) / 2, height - 6, "items kept (logarithmic)", "middle"))
    ends = apart([y(points[-1][1]) for points in curves.values()], 12, height - 36)
    for row, ((arm, points), at) in enumerate(zip(curves.items(), ends, strict=True)):
        colour = colour_of(row)
        path = " ".join(f"{x(math.log(k)):.1f},{y(value):.1f}" for k, value in points)
        title = escape(f"{arm}: " + ", ".join(f"R@{k} {share(value)}" for k, value in points))
        last = y(points[-1][1])
        end = x(math.log(points[-1][0]))
        parts.append(f'<g class="{colour}"><title>{title}</title><polyline points="{path}"/>')
        parts.append(f'<path class="lead" d="M{end:.1f} {last:.1f}L{right + 8:.1f} {at:.1f}"/>')
        parts.append(write(right + 10, at + 4, short(arm), "start", "name") + "</g>")
    return drawing(height, "Recall by the number of items kept, for each arm", parts)


def quality_and_cost(arms: Mapping[str, Mapping[str, float | None]], measure: str) -> str:
    """The measure against the milliseconds of a request (median), one point for each arm; diamonds call a model."""
    points = {
        arm: (max(own["ms_p50"] or 0.0, 0.1), own[measure] or 0.0)
        for arm, own in arms.items()
        if own.get("ms_p50") is not None and own.get(measure) is not None
    }
    if not points:
        return ""
    height = 300
    times = [time for time, _ in points.values()]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 1e-9)
    x = Scale(low, max(high, low + 1), 46, WIDTH - 22)
    y = up_to(max(value for _, value in points.values()), height - 40, 16)
    powers = range(low, max(high, low + 1) + 1)
    parts = [grid_y(y, 38, WIDTH - 8), ticks_x([(x(p), power_of_ten(p)) for p in powers], height - 40)]
    parts.append(write((38 + WIDTH) / 2, height - 6, "median time of one request (logarithmic)", "middle"))
    places = {arm: (x(math.log10(time)), y(value)) for arm, (time, value) in points.items()}
    taken = [(at_x - 5, at_y - 5, at_x + 5, at_y + 5) for at_x, at_y in places.values()]
    order = list(arms)
    for arm, (at_x, at_y) in places.items():
        own = arms[arm]
        shape = (
            f'<path d="M{at_x:.1f} {at_y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
            if own.get("calls") or own.get("tokens")
            else f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5"/>'
        )
        title = escape(f"{arm}: {name_of(measure)} {share(own[measure])}, {duration(points[arm][0])}")
        label = name_beside(arm, at_x, at_y, taken, height)
        parts.append(f'<g class="dot {colour_of(order.index(arm))}"><title>{title}</title>{shape}{label}</g>')
    return drawing(height, f"{name_of(measure)} against the time of a request, for each arm", parts)


def overlap_matrix(overlap: Mapping[str, Mapping[str, float | None]]) -> str:
    """Each row's channel: what share of the targets it finds the channel of the column finds too."""
    if len(overlap) < 2:
        return ""
    names = list(overlap)
    left = 12 + LETTER * min(max(map(len, names)), 18)
    # The last name stands aslant over the right edge.
    aslant = LETTER * 0.77 * min(len(names[-1]), 18)
    cell = min((WIDTH - left - aslant) / (len(names) - 0.5), 64.0)
    top = 12 + LETTER * 0.72 * min(max(map(len, names)), 18)
    parts = []
    for column, name in enumerate(names):
        at = left + cell * (column + 0.5)
        parts.append(
            f'<text class="name" transform="translate({at:.1f} {top - 6:.1f}) rotate(-40)">{escape(short(name))}</text>'
        )
    for row, name in enumerate(names):
        at_y = top + 34 * row
        parts.append(write(left - 6, at_y + 21, short(name), "end", "name"))
        for column, other in enumerate(names):
            value = overlap[name].get(other)
            own = "own" if name == other else ""
            fill = 0.0 if value is None or own else value
            at_x = left + cell * column
            title = "" if own else escape(f"{other} finds {share(value)} of what {name} finds")
            parts.append(
                f'<g><title>{title}</title><rect class="cell {own}" x="{at_x:.1f}" y="{at_y:.1f}" width="{cell - 2:.1f}" '
                f'height="32" rx="3" style="--share:{fill:.3f}"/>'
            )
            shown = "" if own else "–" if value is None else f"{100 * value:.0f}%"
            dark = "on" if fill > 0.55 else ""
            parts.append(write(at_x + cell / 2 - 1, at_y + 21, shown, "middle", dark) + "</g>")
    return drawing(int(top + 34 * len(names) + 4), "How much of what one channel finds the others find too", parts)


def strata_dots(strata: Mapping[str, Mapping[str, Mapping[str, object]]], arms: Sequence[str], measure: str) -> str:
    """The measure of each arm within each group of cases, a row for each group."""
    rows: list[tuple[str, str, dict[str, float]]] = []
    for kind, groups in strata.items():
        for label, group in groups.items():
            means = group["arms"]
            assert isinstance(means, Mapping)  # noqa: S101
            found = {arm: means[arm][measure] for arm in arms if means.get(arm, {}).get(measure) is not None}
            rows.append((kind, f"{label} ({group['cases']:,})", found))
    if not any(found for _, _, found in rows):
        return ""
    left, top, step = 112, 8, 24
    x = up_to(max(value for _, _, found in rows for value in found.values()), left + 8, WIDTH - 16)
    parts, at, before = [], float(top), None
    for kind, label, found in rows:
        if kind != before:
            at += 18
            parts.append(write(0, at, _KINDS.get(kind, kind), "start", "head"))
            before = kind
        at += step
        parts.append(f'<path class="grid" d="M{left} {at - 4:.1f}H{WIDTH - 8}"/>')
        parts.append(write(left - 8, at, label, "end"))
        for row, arm in reversed(list(enumerate(arms))):
            if arm in found:
                title = escape(f"{arm}, {label}: {name_of(measure)} {share(found[arm])}")
                # A little apart, so that equal values do not hide each other.
                beside = at - 4 + 1.6 * (row - (len(arms) - 1) / 2)
                circle = f'<circle cx="{x(found[arm]):.1f}" cy="{beside:.1f}" r="5"/>'
                parts.append(f'<g class="dot {colour_of(row)}"><title>{title}</title>{circle}</g>')
        at += 4
    bottom = at + 8
    parts.append(ticks_x([(x(value), share(value)) for value in round_steps(x.high)], bottom))
    return drawing(int(bottom + 24), f"{name_of(measure)} within groups of cases, for each arm", parts)


_KINDS = {
    "history": "items in the history",
    "popularity": "popularity of the target",
    "item": "target seen in training",
}


def colour_of(row: int) -> str:
    """The page's class for the colour of the arm in this place of the order; grey beyond the last colour."""
    return f"c{row}" if row < COLOURS else "rest"
