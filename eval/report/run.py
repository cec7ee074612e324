"""The data of one comparison run: how good each arm is, what it costs, and all that is needed to repeat the run."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from eval.errors import EvalError
from eval.significance import Comparison
from store.paths import write_atomically

PRIMARY = ("ndcg@10", "recall@10", "recall@50", "recall@100")
"""Measures that are tested for significance and compared between runs."""

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
class RunData:
    """The data of one comparison run. `eval.report.report.Run` adds how it is printed and drawn.

    Args:
        dataset: name of the dataset.
        on: split of the cases, "test" or "valid".
        cases: number of cases.
        users: number of users with a case.
        arms: measures of each arm (see `eval.metrics`); where known also "exclusive@100", "ms_p50", "ms_p90", "calls",
            "tokens_in", "tokens_out" and "tokens".
        comparisons: significance tests between arms.
        union_ceiling: share of the targets that the single channels find together in 100 each.
        data: hash of the dataset's files.
        asked: hash of the cases; two runs with the same hash can be compared case by case.
        seed: seed by which cases were drawn.
        model: name of the language model, if one was called.
        settings: settings that the results depend on.
        prompts: fingerprint of each prompt.
        versions: versions of the libraries.
        date: time of the run, ISO 8601 in UTC.
        intervals: 95 % intervals (low, high) by arm and measure.
        overlap: result of `metrics.overlap`.
        strata: result of `metrics.within`.
        warnings: sentences that a reader of the results must know.
        arms_not_run: for each arm that could not run, the reason.
        changes: differences from an earlier run (`eval.report.diff.Changes` as JSON), if one was given.
        values: values of some measures for each case by arm and measure, (n_cases,) each.
        case_users: integer code of each case's user, (n_cases,).
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

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
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
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
        """Return everything but the values of single cases, ready for `json.dumps`; numbers that are not finite are null."""
        run = {"union_ceiling@100" if name == "union_ceiling" else name: getattr(self, name) for name in _FIELDS}
        known: dict[str, Any] = to_jsonable_python(run, inf_nan_mode="null", fallback=_as_json)
        return known

    @classmethod
    def from_json(cls, run: dict[str, Any]) -> Self:
        """Return the run of a dict from `as_json`; unknown keys are ignored. Raises EvalError if required keys are missing."""
        try:
            return TypeAdapter(cls).validate_python(run | {"union_ceiling": run["union_ceiling@100"]})
        except (KeyError, ValidationError) as error:
            why = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else error
            raise EvalError(f"not a saved run ({why}); give the folder or run.json that compare wrote") from error

    def save(self, folder: Path) -> Path:
        """Write run.json and the values of single cases (values.npz) into the folder, and return the path of run.json.

        Each file is written whole or not at all. Raises EvalError if the folder cannot be written.
        """
        folder = Path(folder)
        if self.case_users is not None:
            columns: dict[str, Any] = {
                f"{arm}/{measure}": values.astype(np.float32)
                for arm, measures in self.values.items()
                for measure, values in measures.items()
            }
            np.savez_compressed(file := BytesIO(), users=self.case_users, **columns)
            write_file(folder / "values.npz", file.getvalue())
        text = json.dumps(self.as_json(), ensure_ascii=False, indent=1) + "\n"
        write_file(folder / "run.json", text.encode())
        return folder / "run.json"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved run from its folder or its run.json. Raises EvalError if it is missing or damaged."""
        path = Path(path)
        file = path / "run.json" if path.is_dir() else path
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EvalError(f"{file}: no saved run to read; give the folder or run.json that compare wrote") from error
        if not isinstance(saved, dict):
            raise EvalError(f"{file}: not a saved run; give the folder or run.json that compare wrote")
        run = cls.from_json(saved)
        values = file.with_name("values.npz")
        if values.exists():
            try:
                run._read_values(values)
            except (OSError, ValueError, KeyError, BadZipFile) as error:
                raise EvalError(f"{values} cannot be read ({error}); run compare again, or delete the file") from error
        return run

    def _read_values(self, file: Path) -> None:
        with np.load(file, allow_pickle=False) as columns:
            self.case_users = columns["users"]
            for name in columns.files:
                if name != "users":
                    arm, _, measure = name.rpartition("/")
                    self.values.setdefault(arm, {})[measure] = columns[name].astype(np.float64)

    def rank_arms(self, measure: str = PRIMARY[0]) -> list[str]:
        """Return the arms, best in this measure first."""
        return sorted(self.arms, key=lambda arm: -(self.arms[arm].get(measure) or 0.0))

    def mark_arms(self, measure: str) -> dict[str, str]:
        """Return a mark for some arms: "best" for the best one, "level" for those not significantly below it.

        An arm that was never compared with the best one has no mark. If nothing was compared in this measure, there are no marks.
        """
        arms = [arm for arm in self.rank_arms(measure) if self.arms[arm].get(measure) is not None]
        if not any(comparison.measure == measure for comparison in self.comparisons):
            return {}
        others = self.comparisons_of(arms[0], measure)
        return {arms[0]: "best"} | {arm: "level" for arm, each in others.items() if not each.significant}

    def comparisons_of(self, arm: str, measure: str) -> dict[str, Comparison]:
        """Return this arm's comparisons in this measure by the other arm, each with this arm as `a`."""
        both = [each for each in self.comparisons if each.measure == measure and arm in (each.a, each.b)]
        return {each.b if each.a == arm else each.a: each if each.a == arm else each.swapped() for each in both}


_FIELDS = [name for name in RunData.__dataclass_fields__ if name not in ("values", "case_users")]


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a saved run, whole or not at all. Raises EvalError if its folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise EvalError(f"{path.parent} cannot be written ({error.strerror}); choose another folder") from error


def library_versions() -> dict[str, str]:
    """Return the versions of Evoke and of the libraries that results depend on, as far as installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _as_json(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
