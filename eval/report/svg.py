"""What the plots are drawn with: scales, axes, and labels that keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from eval.report.formatting import duration, share

WIDTH = 440

LINE = 13.0  # the least distance between two labels
LETTER = 6.6  # the mean width of one at the size of a label


class Scale(NamedTuple):
    """Takes a number to its place in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def drawing(height: int, label: str, parts: Sequence[str]) -> str:
    """The parts as one SVG element, `height` to a width of `WIDTH`; `label` is read out."""
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def write(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    """A piece of text, escaped; `kind` is a class of the page's style."""
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def short(name: str) -> str:
    """The name, cut to what a label has room for; not escaped."""
    return name if len(name) <= 18 else f"{name[:17]}…"


def up_to(highest: float, start: float, end: float) -> Scale:
    """A scale from nought to a round number at or above the highest value."""
    return Scale(0.0, round_steps(highest)[-1], start, end)


def round_steps(highest: float) -> list[float]:
    """Round numbers from nought, three to six of them, to the first one at or above the highest."""
    rough = max(highest, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [step * n for n in range(math.ceil(max(highest, 1e-3) / step - 1e-6) + 1)]


def grid_y(y: Scale, left: float, right: float) -> str:
    """Lines across at round values, with the values at their left."""
    return "".join(
        f'<path class="grid" d="M{left} {y(value):.1f}H{right:.1f}"/>'
        + write(left - 6, y(value) + 4, share(value), "end")
        for value in round_steps(y.high)
    )


def ticks_x(ticks: Sequence[tuple[float, str]], y: float) -> str:
    """Marks with texts below, at places along an axis at the height `y`."""
    return "".join(
        f'<path class="grid" d="M{x:.1f} {y:.1f}v4"/>' + write(x, y + 17, text, "middle") for x, text in ticks
    )


def power_of_ten(power: int) -> str:
    """Ten to this power in milliseconds, as a tick of a time axis."""
    return duration(10.0**power).replace(".0", "")


def apart(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Places near those wanted, in the same order, none nearer to another than a line where there is room."""
    order = sorted(range(len(wanted)), key=lambda row: wanted[row])
    gap = min(LINE, (high - low) / max(len(wanted) - 1, 1))
    places = [0.0] * len(wanted)
    floor = low
    for row in order:
        places[row] = max(wanted[row], floor)
        floor = places[row] + gap
    ceiling = high
    for row in reversed(order):
        places[row] = min(places[row], ceiling)
        ceiling = places[row] - gap
    return places


def name_beside(arm: str, x: float, y: float, taken: list[tuple[float, float, float, float]], height: int) -> str:
    """The arm's name beside its point, at the first place where it covers nothing."""
    text = short(arm)
    wide = LETTER * len(text)
    tries = [(x + 9, y + 4, "start"), (x - 9, y + 4, "end"), (x, y - 10, "middle"), (x, y + 19, "middle")]
    tries += [(x + 9, y + 4 + step, "start") for step in (-12, 13, -24, 25)]
    tries += [(x - 9, y + 4 + step, "end") for step in (-12, 13, -24, 25)]
    boxes = []
    for at_x, at_y, anchor in tries:
        start = at_x - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
        boxes.append((start, at_y - 10, start + wide, at_y + 2))
    free = [
        row
        for row, box in enumerate(boxes)
        if box[0] >= 34 and box[2] <= WIDTH and box[3] <= height - 38 and not any(_cover(box, other) for other in taken)
    ]
    chosen = free[0] if free else 0 if boxes[0][2] <= WIDTH else 1
    taken.append(boxes[chosen])
    at_x, at_y, anchor = tries[chosen]
    return write(at_x, at_y, text, anchor, "name")


def _cover(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
