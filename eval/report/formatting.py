"""Formats of numbers, names of measures, and the table that both the terminal and the HTML page show."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal, NamedTuple

from eval.significance import ALPHA

# The main measures first: a phone shows only the first columns.
QUALITY = ("ndcg@10", "recall@10", "recall@100", "mrr", "recall@5", "recall@50", "exclusive@100")
COST = ("ms_p50", "ms_p90", "calls", "tokens_in", "tokens_out")
SHOWN_ITEMS = ("coverage@10", "novelty@10", "diversity@10", "gini@10", "popularity@10")

_NAMES = {
    "recall": "R",
    "ndcg": "nDCG",
    "mrr": "MRR",
    "exclusive": "excl",
    "ms_p50": "p50",
    "ms_p90": "p90",
    "tokens_in": "tokens in",
    "tokens_out": "tokens out",
}


def measure_name(measure: str) -> str:
    """Return the measure as a heading: "nDCG@10" for "ndcg@10"."""
    family, at, k = measure.partition("@")
    return f"{_NAMES.get(family, family)}{at}{k}"


def format_value(measure: str, value: float | None) -> str:
    """Format a value in the unit of its measure: ".191", "4.2 ms", "1,204"; a dash for None."""
    if value is None:
        return "–"
    if measure.startswith("ms"):
        return format_duration(value)
    if measure.startswith(("tokens", "calls", "popularity")):
        return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"
    if measure.startswith("novelty"):
        return f"{value:.1f}"
    return format_share(value)


def format_share(value: float | None) -> str:
    """Format with three decimals and without the leading zero; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def format_difference(value: float) -> str:
    """Format a difference with its sign; "+.000" if it rounds to zero."""
    value = round(value, 3) + 0.0  # never -0.0
    return format_share(value) if value < 0 else f"+{format_share(value)}"


def format_duration(milliseconds: float) -> str:
    """Format as milliseconds, or as seconds from 1,000 ms on."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def format_interval(low: float | None, high: float | None, brackets: str = "[]", between: str = ", ") -> str:
    """Format an interval as "[.010, .030]"; an empty text if there is none."""
    inner = "" if low is None or high is None else f"{format_share(low)}{between}{format_share(high)}"
    return inner and f"{brackets[:1]}{inner}{brackets[1:]}"


class Cell(NamedTuple):
    """A cell of a table: its text, in small print how certain that is, and a mark ("best", "level", "sure" or none)."""

    text: str
    certainty: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table for the terminal and for the page.

    Args:
        headings: headings of the columns, the one of the names first.
        rows: the name and the cells of each row.
        numeric: True if the cells are numbers, which stand to the right and are never wrapped.
    """

    headings: list[str]
    rows: list[tuple[str, list[Cell]]]
    numeric: bool = True

    def __rich__(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        signs = {"best": "*", "level": "="}
        space = " " * any(cell.mark in signs for _, cells in self.rows for cell in cells)
        justify: Literal["left", "right"] = "right" if self.numeric else "left"
        table = RichTable(self.headings[0], box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in self.headings[1:]:
            table.add_column(heading + space, justify=justify, no_wrap=self.numeric)
        for name, cells in self.rows:
            texts = []
            for cell in cells:
                style = "bold" if cell.mark in ("best", "sure") else ""
                texts.append(Text(f"{cell.text} {cell.certainty}".rstrip() + signs.get(cell.mark, space), style))
            table.add_row(Text(name), *texts)
        return table


def difference_cell(difference: float, low: float | None, high: float | None, p: float | None) -> Cell:
    """Return the cell of a difference with its interval and p value (None if it was not tested)."""
    if p is None:
        return Cell(format_difference(difference))
    chance = "p<.001" if p < 0.001 else f"p={format_share(p)}"
    certainty = f"{format_interval(low, high)} {chance}".strip()
    return Cell(format_difference(difference), certainty, "sure" if p < ALPHA else "")


def as_text(renderable: Any) -> str:
    """Return what rich shows of an object in this terminal's width (at least 80 columns), without colours."""
    from rich.console import Console

    width = max(shutil.get_terminal_size((100, 40)).columns, 80)
    console = Console(file=(file := StringIO()), width=width, no_color=True, highlight=False)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
