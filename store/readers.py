"""Read rows of JSONL, CSV and Parquet files, each with its place in the file; report broken rows."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from store.errors import BadData, MissingExtra

FORMATS = (".jsonl", ".csv", ".parquet")
_FIRST_CASES = 3
_ARROW_BATCH = 1024
_LONGEST_CELL = 16 << 20


class RowFault(Exception):
    """A fault in one row: the reason, which is counted, the detail of this row, and the remedy."""

    def __init__(
        self, reason: str, detail: str = "", remedy: str = "correct the row, or go on with --on-error skip"
    ) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.remedy = reason, detail, remedy


@dataclass
class Problems:
    """The faults of a file's rows: `stop` raises at the first; `skip` counts them and keeps the first cases of each reason."""

    on_error: Literal["stop", "skip"] = "stop"
    counts: Counter[str] = field(default_factory=Counter)
    cases: dict[str, list[str]] = field(default_factory=dict)
    duplicates: int = 0

    def report(self, place: str, wrong: RowFault) -> None:
        """Raise BadData with "FILE:LINE: reason; remedy", or count the row as skipped."""
        case = f"{place}: {wrong.reason}{f' ({wrong.detail})' if wrong.detail else ''}"
        if self.on_error == "stop":
            raise BadData(f"{case}; {wrong.remedy}")
        self.counts[wrong.reason] += 1
        cases = self.cases.setdefault(wrong.reason, [])
        if len(cases) < _FIRST_CASES:
            cases.append(case)

    @property
    def skipped(self) -> int:
        """Return the number of skipped rows."""
        return self.counts.total()


def read_rows(
    path: Path, needed: Sequence[str], columns: Sequence[str], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of the file as (place, values by column), one at a time.

    Args:
        path: the file; its ending names the format.
        needed: the columns that a table must have.
        columns: the columns that are read.
        problems: takes the broken rows.

    Raises BadData if the file is missing or unreadable, or its columns are missing or unknown, and MissingExtra for Parquet
    without pyarrow.
    """
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(path.suffix)
    if reader is None:
        raise BadData(f"{path}: the format {path.suffix or 'without ending'} is not read; give {', '.join(FORMATS)}")
    try:
        yield from reader(path, needed, columns, problems)
    except OSError as error:
        raise BadData(f"{path}: {error.strerror or error}; give a file that can be read") from error


def _jsonl(
    path: Path, _needed: Sequence[str], columns: Sequence[str], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                _check_utf8(line)
                row = _json(line)
                if not isinstance(row, dict):
                    raise RowFault("the row is not an object", remedy='write {"id": ..., ...} on each line')
                _check_columns(row, columns)
            except RowFault as wrong:
                problems.report(place, wrong)
                continue
            yield place, row


def _csv(
    path: Path, needed: Sequence[str], columns: Sequence[str], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_CELL)
    with _open(path) as lines:
        cells = csv.reader(lines, strict=True)
        header: list[str] | None = None
        while True:
            first = cells.line_num + 1
            try:
                values = next(cells, None)
                if values is None:
                    break
                _check_utf8("".join(values))
                if header is None:
                    header = _header(path, values, needed, columns)
                    continue
                if not values:
                    continue
                row = _parse_cells(header, values)
            except (csv.Error, RowFault) as error:
                wrong = error if isinstance(error, RowFault) else RowFault("broken CSV", str(error))
                if (read := cells.line_num - first + 1) > 1:
                    # Probably a quote was never closed; the lines up to the next quote are lost with the row.
                    over = f"over {read} lines, to line {cells.line_num}: is a quote left open?"
                    wrong.detail = f"{wrong.detail}, {over}" if wrong.detail else over
                problems.report(f"{path}:{first}", wrong)
                continue
            yield f"{path}:{first}", row
    if header is None:
        raise BadData(f"{path}:1: there is no header; begin the file with {','.join(columns)}")


def _open(path: Path) -> TextIO:
    """Open a text file. Bytes that are not UTF-8 become half surrogate pairs, so that only their row is refused."""
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _header(path: Path, names: list[str], needed: Sequence[str], columns: Sequence[str]) -> list[str]:
    missing = [name for name in needed if name not in names]
    if missing:
        raise BadData(f"{path}:1: missing column {', '.join(missing)}; the columns are {','.join(columns)}")
    unknown = [name for name in names if name not in columns]
    if unknown or len(set(names)) < len(names):
        what = f"unknown column {unknown[0]!r}" if unknown else "the same column twice"
        remedy = 'put other fields into "metadata" as a JSON object' if "metadata" in columns else "remove it"
        raise BadData(f"{path}:1: {what}; the columns are {','.join(columns)}: {remedy}")
    return names


def _parse_cells(header: list[str], values: list[str]) -> dict[str, Any]:
    """Return a row of a CSV file, with numbers, booleans and JSON parsed in the columns that hold them."""
    if len(values) != len(header):
        raise RowFault("a row of another length than the header", f"{len(values)} cells, not {len(header)}")
    row: dict[str, Any] = {name: value for name, value in zip(header, values, strict=True) if value != ""}
    for name in ("rating", "timestamp"):
        if name in row:
            row[name] = _number(name, row[name])
    if "hidden" in row:
        row["hidden"] = {"true": True, "false": False, "1": True, "0": False}.get(row["hidden"].lower(), row["hidden"])
    if "metadata" in row:
        row["metadata"] = _json(row["metadata"])
    return row


def _parquet(
    path: Path, needed: Sequence[str], columns: Sequence[str], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("reading Parquet", "parquet") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            _header(path, table.schema_arrow.names, needed, columns)
            for batch in table.iter_batches(batch_size=_ARROW_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        yield f"{path}:{number}", _without_nulls(row)
                    except RowFault as wrong:
                        problems.report(f"{path}:{number}", wrong)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise BadData(f"{path}:{number + 1}: not readable as Parquet ({detail}); write the file again") from error


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its metadata as a dict (from a struct, a map or JSON text) and without nulls."""
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        row["metadata"] = _json(metadata)
    elif isinstance(metadata, list) and all(isinstance(pair, tuple) for pair in metadata):
        row["metadata"] = dict(metadata)  # a map; other lists are refused later
    return {name: value for name, value in row.items() if value is not None}


def _check_columns(row: Mapping[str, Any], columns: Sequence[str]) -> None:
    unknown = next((name for name in row if name not in columns), None)
    if unknown is not None:
        raise RowFault("an unknown field", str(unknown), f"the fields are {', '.join(columns)}")


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowFault("not UTF-8", f"after {text[: error.start][-20:]!r}", "save the file as UTF-8") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RowFault:
        raise
    except (ValueError, RecursionError) as error:
        raise RowFault("broken JSON", str(error).partition(":")[0]) from None


def _refuse_constant(name: str) -> None:
    raise RowFault("a number that is not finite", name)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RowFault(f'"{name}" is not a number', repr(text[:40])) from None
