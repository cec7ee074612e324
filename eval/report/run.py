"""One comparison of arms with all that is needed to repeat it: as an object, as JSON, in the terminal and as a page."""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from eval.errors import EvalError
from eval.significance import Comparison
from store.paths import write_atomically

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

    from eval.report.diff import Changes

PRIMARY = ("ndcg@10", "recall@10", "recall@50", "recall@100")
ALPHA = 0.05

_LIBRARIES = (
    "evoke-rec",
    "numpy",
    "chromadb",
    "sentence-transformers",
    "bm25s",
    "lightgbm",
    "ir_measures",
    "xllamacpp",
)

Numbers = dict[str, float | None]


@dataclass
class Run:
    """One run of `compare`. `arms` holds for each arm its measures (see `eval.metrics`), and where known "exclusive@100",
    "ms_p50", "ms_p90", "calls", "tokens_in", "tokens_out", "tokens". `intervals` are 95 % intervals by arm and measure.
    `strata` is what `metrics.within` gives, `overlap` what `metrics.overlap` gives. `values` are the per-case values of
    some measures by arm, (n_cases,), and `case_users` a code for each case's user: saved beside the JSON, so that a later run can
    be compared case by case, where `asked`, a hash of the cases, says that they are the same. `changes` are those since an earlier
    run (see `eval.report.diff`), where one was given."""

    dataset: str
    on: str
    cases: int
    users: int
    arms: dict[str, Numbers]
    comparisons: list[Comparison] = field(default_factory=list)
    union_ceiling: float | None = None
    data: str = ""
    asked: str = ""
    seed: int = 0
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    intervals: dict[str, dict[str, tuple[float | None, float | None]]] = field(default_factory=dict)
    overlap: dict[str, dict[str, float | None]] = field(default_factory=dict)
    strata: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    arms_not_run: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] | None = None
    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    case_users: np.ndarray | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Everything but the per-case values, ready for `json.dumps`; what is not finite is null."""
        run = {_KEYS.get(name, name): getattr(self, name) for name in _FIELDS}
        run["comparisons"] = [comparison.as_json() for comparison in self.comparisons]
        return _plain(run)

    @classmethod
    def from_json(cls, run: dict[str, Any]) -> Run:
        """The run that `as_json` gave. Raises EvalError where fields are missing."""
        known = {name: value for name, value in run.items() if name in _FIELDS}
        try:
            known["comparisons"] = [Comparison(**comparison) for comparison in run["comparisons"]]
            known["union_ceiling"] = run["union_ceiling@100"]
            known["intervals"] = {
                arm: {measure: tuple(bounds) for measure, bounds in own.items()}
                for arm, own in run.get("intervals", {}).items()
            }
            return cls(**known)
        except (KeyError, TypeError, AttributeError) as error:
            raise EvalError(
                f"this is no saved run ({error}); give the folder or run.json that compare wrote"
            ) from error

    def save(self, folder: Path) -> Path:
        """Write run.json, report.html and the per-case values (values.npz) into the folder, each whole or not at all; gives the
        path of run.json. Raises EvalError where that is not possible."""
        try:
            return self._save(Path(folder))
        except OSError as error:
            raise EvalError(f"{folder} cannot be written ({error.strerror}); choose another folder") from error

    def _save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if self.case_users is not None:
            columns: dict[str, Any] = {
                f"{arm}/{measure}": values.astype(np.float32)
                for arm, measures in self.values.items()
                for measure, values in measures.items()
            }
            np.savez_compressed(file := BytesIO(), users=self.case_users, **columns)
            write_atomically(folder / "values.npz", file.getvalue())
        write_atomically(folder / "report.html", self.html().encode())
        path = folder / "run.json"
        write_atomically(path, (json.dumps(self.as_json(), ensure_ascii=False, indent=1) + "\n").encode())
        return path

    @classmethod
    def load(cls, path: Path) -> Run:
        """A saved run, from its folder or its run.json. Raises EvalError where there is none."""
        path = Path(path)
        file = path / "run.json" if path.is_dir() else path
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EvalError(f"{file}: no saved run to read; give the folder or run.json that compare wrote") from error
        if not isinstance(saved, dict):
            raise EvalError(f"{file}: this is no saved run; give the folder or run.json that compare wrote")
        run = cls.from_json(saved)
        beside = file.parent / "values.npz"
        if beside.exists():
            try:
                run._read(beside)
            except (OSError, ValueError, KeyError, BadZipFile) as error:
                raise EvalError(f"{beside} cannot be read ({error}); run compare again, or take it away") from error
        return run

    def _read(self, values: Path) -> None:
        with np.load(values, allow_pickle=False) as columns:
            self.case_users = columns["users"]
            for name in columns.files:
                if name != "users":
                    arm, _, measure = name.rpartition("/")
                    self.values.setdefault(arm, {})[measure] = columns[name].astype(np.float64)

    def ordered(self, measure: str = PRIMARY[0]) -> list[str]:
        """The arms, the best of the measure first."""
        return sorted(self.arms, key=lambda arm: -(self.arms[arm].get(measure) or 0.0))

    def marks(self, measure: str) -> dict[str, str]:
        """By arm: "best" for the best one of the measure, "level" for those whose distance from it may be chance.

        That is where the p value of the comparison, with Holm's correction where there is one, is 0.05 or more. Arms never
        compared with the best have no mark, and a measure in which nothing was compared has none at all.
        """
        arms = [arm for arm in self.ordered(measure) if self.arms[arm].get(measure) is not None]
        if not any(comparison.measure == measure for comparison in self.comparisons):
            return {}
        marks = {arms[0]: "best"}
        for arm, comparison in self.compared(arms[0], measure).items():
            if chance(comparison) >= ALPHA:
                marks[arm] = "level"
        return marks

    def compared(self, arm: str, measure: str) -> dict[str, Comparison]:
        """The comparisons of this arm in this measure, by the other arm, each turned so that this arm is `a`."""
        found = {}
        for each in self.comparisons:
            if each.measure != measure or arm not in (each.a, each.b):
                continue
            if each.a == arm:
                found[each.b] = each
            else:
                low, high = (None if bound is None else -bound for bound in (each.high, each.low))
                found[each.a] = Comparison(arm, each.a, measure, -each.difference, low, high, each.p, each.p_holm)
        return found

    def against(self, other: Run) -> Changes:
        """What changed since the other, earlier run: settings, data, model, versions and measures."""
        from eval.report.diff import changes

        return changes(other, self)

    def html(self) -> str:
        """One self-contained page: tables, plots, and what is needed to repeat the run."""
        from eval.report.html import page

        return page(self)

    def __str__(self) -> str:
        return in_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from eval.report.console import tables

        yield from tables(self)


_FIELDS = [name for name in Run.__dataclass_fields__ if name not in ("values", "case_users")]
_KEYS = {"union_ceiling": "union_ceiling@100"}


def chance(comparison: Comparison) -> float:
    """The p value that counts: the corrected one where there is one."""
    return comparison.p if comparison.p_holm is None else comparison.p_holm


def versions() -> dict[str, str]:
    """The versions of what measures and is measured, where installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def in_text(renderable: Any) -> str:
    """What rich shows of this in a terminal of this width, without colours."""
    from rich.console import Console

    width = max(shutil.get_terminal_size((100, 40)).columns, 80)
    console = Console(file=StringIO(), width=width, no_color=True, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, StringIO)  # noqa: S101
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _plain(value: Any) -> Any:
    """The value in types that JSON has."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
