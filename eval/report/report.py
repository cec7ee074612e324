"""The result of a comparison: a run that prints itself, draws itself as a page, and tells what changed since another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eval.report.console import render_run
from eval.report.diff import Changes, compare_runs
from eval.report.formatting import as_text
from eval.report.html import render_page
from eval.report.run import RunData, write_file

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


class Run(RunData):
    """One run of `compare`: `print` shows its tables, `html` and `save` make its page. See `RunData` for the fields."""

    def save(self, folder: Path) -> Path:
        """Write the data of the run and its page (report.html) into the folder, and return the path of run.json.

        Raises EvalError if the folder cannot be written. Raises MissingExtra without matplotlib; the data is then saved.
        """
        path = super().save(folder)
        write_file(path.with_name("report.html"), self.html().encode())
        return path

    def changes_since(self, earlier: RunData) -> Changes:
        """Return what changed since an earlier run: dataset, settings, prompts, model, versions and measures."""
        return compare_runs(earlier, self)

    def html(self) -> str:
        """Return one self-contained HTML page: tables, plots, and what is needed to repeat the run.

        Raises MissingExtra without matplotlib.
        """
        return render_page(self)

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from render_run(self)
