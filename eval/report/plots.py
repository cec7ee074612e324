"""The plots of the report as inline SVG, drawn by matplotlib and coloured by the CSS variables of the page."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import Any

import numpy as np

from eval.report.formatting import format_duration, format_share, measure_name
from store.errors import MissingExtra

COLOURS = 8
"""Colours that the page defines for arms."""

_WIDTH = 440  # pixels, narrow enough for a phone
_HEIGHT = 300
_AROUND = 70  # pixels of a figure's height that are not plot, about
_LINE = 14  # pixels between two lines of text
# Matplotlib knows no CSS variables, so it draws with these colours, which `_svg` replaces by the variables.
_VARIABLES = [*(f"c{row}" for row in range(COLOURS)), "rest", "ink", "soft", "line", "page", "tint"]
_COLOUR = {name: f"#0d00{row:02x}" for row, name in enumerate(_VARIABLES)}
_STYLE: dict[str, Any] = (
    dict.fromkeys(("xtick.color", "ytick.color", "axes.labelcolor"), _COLOUR["soft"])
    | dict.fromkeys(("figure.facecolor", "axes.facecolor", "axes.edgecolor"), "none")
    | {"text.color": _COLOUR["ink"], "font.size": 12, "axes.labelsize": 12, "font.sans-serif": ["DejaVu Sans"]}
    | {"axes.grid": True, "axes.axisbelow": True, "grid.color": _COLOUR["line"]}
    | {"lines.linewidth": 2.2, "lines.markersize": 11, "lines.markeredgecolor": _COLOUR["page"]}
    # Text stays text, "$" included, and the same plot always gives the same bytes.
    | {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "evoke"}
)
_STRATA = {
    "history": "items in the history",
    "popularity": "popularity of the target",
    "item": "target seen in training",
}


def colour_of(row: int) -> str:
    """Return the CSS variable for the arm at this place of the order: grey after the last colour."""
    return f"c{row}" if row < COLOURS else "rest"


def recall_curves(arms: Mapping[str, Mapping[str, float | None]], ks: Sequence[int]) -> str:
    """Draw recall by the number of items kept, one line for each arm; the order of the arms sets the colours."""
    curves = {
        arm: [(k, value) for k in ks if (value := own.get(f"recall@{k}")) is not None] for arm, own in arms.items()
    }
    curves = {arm: points for arm, points in curves.items() if points}
    if not curves:
        return ""
    with _axes(max(_HEIGHT, _AROUND + _LINE * len(curves))) as axes:
        axes.set(xscale="log", xlim=(min(ks), max(ks)), xlabel="items kept (logarithmic)")
        axes.set_xticks(ks, map(str, ks))
        axes.minorticks_off()
        for row, (arm, points) in enumerate(curves.items()):
            tip = f"{arm}: {', '.join(f'R@{k} {format_share(value)}' for k, value in points)}"
            axes.plot(*zip(*points, strict=True), color=_COLOUR[colour_of(row)], clip_on=False, gid=_tooltip(tip))
        _scale_shares(axes, "y", (value for points in curves.values() for _, value in points))
        _label(axes, {arm: points[-1] for arm, points in curves.items()})
        return _svg(axes, "Recall by the number of items kept, for each arm")


def quality_and_cost(arms: Mapping[str, Mapping[str, float | None]], measure: str) -> str:
    """Draw the measure against the median milliseconds of a request, one point for each arm; diamonds call a model."""
    points = {
        arm: (max(own["ms_p50"] or 0.0, 0.1), own[measure] or 0.0)
        for arm, own in arms.items()
        if own.get("ms_p50") is not None and own.get(measure) is not None
    }
    if not points:
        return ""
    times, values = zip(*points.values(), strict=True)
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 1e-9)
    powers = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    with _axes(max(_HEIGHT, _AROUND + _LINE * len(points))) as axes:
        axes.set(xscale="log", xlim=(powers[0], powers[-1]), xlabel="median time of one request (logarithmic)")
        axes.set_xticks(powers, [format_duration(power).replace(".0", "") for power in powers])
        axes.minorticks_off()
        for row, arm in enumerate(arms):
            if arm in points:
                time, value = points[arm]
                shape = "D" if arms[arm].get("calls") or arms[arm].get("tokens") else "o"
                tip = f"{arm}: {measure_name(measure)} {format_share(value)}, {format_duration(time)}"
                axes.plot(time, value, shape, color=_COLOUR[colour_of(row)], clip_on=False, gid=_tooltip(tip))
        _scale_shares(axes, "y", values)
        _label(axes, points)
        return _svg(axes, f"{measure_name(measure)} against the time of a request, for each arm")


def overlap_matrix(overlap: Mapping[str, Mapping[str, float | None]]) -> str:
    """Draw for each row's channel which share of the targets it finds the column's channel finds too."""
    if len(overlap) < 2:
        return ""
    places, names = range(len(overlap)), [_shorten(name) for name in overlap]
    with _axes(90 + 34 * len(overlap)) as axes:
        axes.grid(False)
        axes.xaxis.tick_top()
        axes.set_xticks(places, names, rotation=40, ha="left", rotation_mode="anchor", color=_COLOUR["ink"])
        axes.set_yticks(places, names, color=_COLOUR["ink"])
        axes.invert_yaxis()
        for (row, name), (column, other) in itertools.product(enumerate(overlap), repeat=2):
            share = None if row == column else overlap[name].get(other)
            tip = "" if row == column else _tooltip(f"{other} finds {format_share(share)} of what {name} finds")
            colour, alpha = ("tint", 1.0) if share is None else ("c0", 0.06 + 0.84 * share)
            axes.barh(row, 0.95, 0.94, column - 0.475, color=_COLOUR[colour], alpha=alpha)[0].set_gid(tip)
            text = "" if row == column else "–" if share is None else f"{share:.0%}"
            ink = _COLOUR["page" if (share or 0) > 0.55 else "ink"]
            axes.text(column, row, text, ha="center", va="center", color=ink, gid=tip)
        return _svg(axes, "How much of what one channel finds the others find too")


def strata_dots(strata: Mapping[str, Mapping[str, Mapping[str, Any]]], arms: Sequence[str], measure: str) -> str:
    """Draw the measure of each arm within each group of cases, one row for each group."""
    rows: list[tuple[str, dict[str, float] | None]] = []
    for kind, groups in strata.items():
        rows.append((_STRATA.get(kind, kind), None))
        for label, group in groups.items():
            own = {arm: value for arm in arms if (value := group["arms"].get(arm, {}).get(measure)) is not None}
            rows.append((f"{label} ({group['cases']:,})", own))
    values = [value for _, found in rows for value in (found or {}).values()]
    if not values:
        return ""
    with _axes(50 + 25 * len(rows)) as axes:
        for at, (label, found) in enumerate(rows):
            if found is None:
                axes.text(0, at, label, weight="bold", va="center")
            for row, arm in reversed(list(enumerate(arms))):
                if found and arm in found:
                    # A little apart, so that equal values do not hide each other.
                    place = at + 0.06 * (row - (len(arms) - 1) / 2)
                    tip = _tooltip(f"{arm}, {label}: {measure_name(measure)} {format_share(found[arm])}")
                    axes.plot(found[arm], place, "o", color=_COLOUR[colour_of(row)], clip_on=False, gid=tip)
        axes.set_ylim(len(rows) - 0.4, -0.4)
        ticks = {at: label for at, (label, found) in enumerate(rows) if found is not None}
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.grid(axis="x", visible=False)
        _scale_shares(axes, "x", values)
        return _svg(axes, f"{measure_name(measure)} within groups of cases, for each arm")


@contextmanager
def _axes(height: int) -> Iterator[Any]:
    """Give empty axes in the style of the page, on a figure `height` pixels high. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("the report page", "eval") from error
    with warnings.catch_warnings(), style.context(_STYLE, after_reset=True):
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the browser has fonts for what DejaVu lacks
        axes = Figure((_WIDTH / 72, height / 72), dpi=72, layout="constrained").add_subplot()
        axes.tick_params(length=0, pad=6)
        yield axes


def _scale_shares(axes: Any, along: str, values: Iterable[float]) -> None:
    """Let an axis of shares begin at 0 and end at a round number above the highest value."""
    axis = getattr(axes, f"{along}axis")
    axis.set_major_formatter(lambda value, _: format_share(value))
    axes.set(**{f"{along}lim": (0, axis.get_major_locator().tick_values(0, max(*values, 1e-3))[-1])})


def _label(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Write the name of each point to the right of it, moved up or down with a line to the point where names would overlap."""
    pixels = (axes.figure.bbox.height - _AROUND) / axes.get_ylim()[1]
    wanted = np.array([y for _, y in points.values()]) * pixels
    order = np.argsort(wanted, kind="stable")
    steps = _LINE * np.arange(len(points))
    rising = np.maximum.accumulate(wanted[order] - steps) + steps
    moves = np.empty(len(points))
    moves[order] = np.minimum(rising, axes.get_ylim()[1] * pixels - steps[::-1]) - wanted[order]
    line = {
        "arrowstyle": "-",
        "color": _COLOUR["soft"],
        "linewidth": 0.8,
        "relpos": (0, 0.5),
        "shrinkA": 0,
        "shrinkB": 0,
    }
    style = {"textcoords": "offset points", "va": "center", "annotation_clip": False, "arrowprops": line}
    for (arm, point), move in zip(points.items(), moves, strict=True):
        axes.annotate(_shorten(arm), point, (11, move), **style)


def _shorten(name: str, most: int = 18) -> str:
    """Return the name as one printable line of at most so many characters."""
    name = "".join(char if char.isprintable() else " " for char in name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _tooltip(text: str) -> str:
    """Return the id by which `_svg` finds the element that shows this text when the pointer is over it."""
    return f"tooltip:{_shorten(text, 500)}"


def _svg(axes: Any, label: str) -> str:
    """Return the figure as one SVG element that loads nothing; a screen reader reads the `label`."""
    axes.figure.savefig(file := StringIO(), format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue().partition("<svg")[2].partition(">")[2]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # These patterns match tags only: in texts "<" is escaped. A page has several plots, so ids without a reference go.
    svg = re.sub(r'<g id="tooltip:([^"]+)">', r"<g><title>\1</title>", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"#0d00([0-9a-f]{2})", lambda found: f"var(--{_VARIABLES[int(found[1], 16)]})", svg)
    width, height = axes.figure.bbox.size
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{svg}'
