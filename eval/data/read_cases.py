"""Cases to measure on: read from a dataset's `valid` and `test` files, or made from its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.data.cases import FITTED, Case, Cases, check_part, told_targets
from eval.data.dataset import Data, case_file, data_hash, hidden_targets, read_data
from eval.data.splits import make_cases, make_cases_of
from eval.errors import EvalError
from store.readers import Problems, Wrong, rows
from store.records import Event

__all__ = ["Case", "Cases", "EvalError", "data_hash", "known_in_use", "load_cases", "make_cases", "read_cases"]

_FIELDS = ("user", "history", "targets", "dialogue", "mentioned")
_ROLES = ("user", "assistant", "system")
_REMEDY = (
    'write {"user": ..., "history": [ids], "targets": [ids]} or {"dialogue": [...], "mentioned": [], "targets": [ids]}'
)
_PARTS = ("valid", "test")


def load_cases(dataset: Path, on: str, how: str | None = None) -> Cases:
    """The cases of this part: read where the dataset has case files, else made from its events.

    `how` names a way of making them (see `make_cases`), files or not. Without it: by the split that the events name, else
    by time where times are a clock, else per user with a warning. Raises EvalError where the dataset has cases for
    the other part alone: cases made for this one would not go with them.
    """
    check_part(on)
    if how is not None:
        return make_cases(dataset, on, how)
    there = {part: path for part in _PARTS if (path := case_file(dataset, part))}
    if on in there:
        return read_cases(dataset, on)
    for part, path in there.items():
        raise EvalError(f"{dataset}: there is {path.name} but no {on}.jsonl; add it, or measure on {part}")
    return make_cases_of(read_data(dataset), on)


def known_in_use(dataset: Path) -> Cases:
    """The test cases, with all events that may be learned from for use: those before the test cut. Where there are no test
    cases none, with all events but those whose own split is test: these may be asked for one day."""
    if case_file(dataset, "test"):
        return read_cases(dataset, "test")
    data = read_data(dataset)
    if not case_file(dataset, "valid"):
        # Refused are events that leave nothing to ask for in test.
        with suppress(EvalError):
            return make_cases_of(data, "test")
    return Cases(data.name, "test", (), tuple(_fitted(data, "test", dataset, [])))


def read_cases(dataset: Path, on: str) -> Cases:
    """The cases of `valid.jsonl` or `test.jsonl` (or .parquet), with the events that lie before the cut by their split.

    Raises BadData "FILE:LINE: reason; remedy" for a broken case, EvalError where there is no such file, or where
    events without a split hold what the cases ask for.
    """
    check_part(on)
    path = case_file(dataset, on)
    if path is None:
        raise EvalError(f"{dataset}: there is no {on}.jsonl; add it, or have cases made from the events")
    data = read_data(dataset)
    cases = _read(path, data.items)
    if not cases:
        raise EvalError(f"{path}: there is no case; add one line for each request whose answer is known")
    warnings = [*data.warnings, *hidden_targets(data, cases)]
    events = _fitted(data, on, dataset, warnings)
    return Cases(data.name, on, cases, tuple(events), warnings)


def _fitted(data: Data, on: str, dataset: Path, warnings: list[str]) -> Iterable[Event]:
    """The events before the cut, by their split. Events that name no split at all are taken for training data, unless
    they hold a target of either part."""
    if not data.events:
        warnings.append("there are no events: arms that are fitted on events cannot run")
        return []
    known = {*_PARTS, "train"}
    if all(event.split is None for event in data.events):
        files = [path for part in _PARTS if (path := case_file(dataset, part))]
        told = told_targets(tuple(case for path in files for case in _read(path, data.items)))
        if any((event.user, event.item) in told for event in data.events):
            raise EvalError(
                f'{dataset}: the events name no split and hold targets of the cases; add the column "split" '
                "(train, valid, test), or leave out the events after the cut"
            )
        warnings.append("the events name no split: all of them are taken to lie before the cut")
        return [replace(event, split="train") for event in data.events]
    strange = sum(event.split not in known for event in data.events)
    if strange:
        warnings.append(
            f"{strange} events of no split or an unknown one were left out; the splits are train, valid, test"
        )
    fitted = [event for event in data.events if event.split in FITTED[on]]
    if not fitted:
        warnings.append(
            f"no event lies before the cut (split {' or '.join(sorted(FITTED[on]))}): nothing can be fitted"
        )
    return fitted


def _read(path: Path, items: frozenset[str]) -> tuple[Case, ...]:
    cases: list[Case] = []
    problems = Problems("stop")
    for place, row in rows(path, ("targets",), _FIELDS, problems):
        try:
            cases.append(_case(row, items, place, cases[-1] if cases else None))
        except Wrong as wrong:
            problems.report(place, wrong)
    return tuple(cases)


def _case(row: Mapping[str, Any], items: frozenset[str], place: str, before: Case | None) -> Case:
    if row.get("history") is None and row.get("dialogue") is None:
        raise Wrong('neither "history" nor "dialogue"', remedy=_REMEDY)
    ids = {name: _ids(row, name, items) for name in ("history", "mentioned", "targets")}
    if not ids["targets"]:
        raise Wrong('no "targets"', remedy=_REMEDY)
    dialogue = _dialogue(row.get("dialogue"))
    user = row.get("user")
    if user is None:
        user = _speaker(dialogue, place, before)
    elif not isinstance(user, str) or not user:
        raise Wrong('"user" is not text', repr(user)[:40], _REMEDY)
    return Case(user, ids["history"], tuple(dict.fromkeys(ids["targets"])), dialogue, ids["mentioned"])


def _ids(row: Mapping[str, Any], name: str, items: frozenset[str]) -> tuple[str, ...]:
    values = row.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Wrong(f'"{name}" is not a list of ids', remedy="ids are texts: write " + f'"{name}": ["id", ...]')
    unknown = next((value for value in values if value not in items), None)
    if unknown is not None:
        raise Wrong(f'"{name}" names an unknown item', unknown, "add the item, or remove the case")
    return tuple(values)


def _dialogue(turns: Any) -> tuple[dict[str, str], ...]:
    if turns is None:
        return ()
    if not isinstance(turns, list):
        raise Wrong('"dialogue" is not a list', remedy=_REMEDY)
    for turn in turns:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"} or turn["role"] not in _ROLES:
            raise Wrong(
                "a turn of the dialogue is not a role and content", remedy='write {"role": "user", "content": ...}'
            )
        if not isinstance(turn["content"], str):
            raise Wrong('the "content" of a turn is not text', remedy='write {"role": "user", "content": "..."}')
    return tuple(turns)


def _speaker(dialogue: tuple[dict[str, str], ...], place: str, before: Case | None) -> str:
    """Whose dialogue this is where nobody is named: turns that go on from the case before are one person's."""
    if before is not None and before.dialogue and dialogue[: len(before.dialogue)] == before.dialogue:
        return before.user
    return f"dialogue {place.rpartition(':')[2]}"
