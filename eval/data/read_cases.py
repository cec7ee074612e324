"""Load evaluation cases: read them from a dataset's `valid` and `test` files, or make them from its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.data.cases import FITTED, Case, Cases, check_part, target_pairs
from eval.data.dataset import Data, case_file, data_hash, read_data, warn_of_hidden_targets
from eval.data.splits import make_cases, make_cases_from
from eval.errors import EvalError
from store.readers import Problems, RowFault, read_rows
from store.records import Event

__all__ = ["Case", "Cases", "EvalError", "data_hash", "load_cases", "load_production_cases", "make_cases", "read_cases"]

_FIELDS = ("user", "history", "targets", "dialogue", "mentioned")
_ROLES = ("user", "assistant", "system")
_REMEDY = (
    'write {"user": ..., "history": [ids], "targets": [ids]} or {"dialogue": [...], "mentioned": [], "targets": [ids]}'
)
_PARTS = ("valid", "test")


def load_cases(dataset: Path, on: str, how: str | None = None) -> Cases:
    """Return the cases of this part ("valid" or "test"), from the dataset's case files or, without such files, from its events.

    `how` makes them from the events in the given way (see `make_cases`), even if there are files. Without `how`, events are
    split by their own `split`, else by time if times are a clock, else per user with a warning. Raises EvalError if only the
    other part has a case file, because cases made for this part could overlap with it.
    """
    check_part(on)
    if how is not None:
        return make_cases(dataset, on, how)
    there = {part: path for part in _PARTS if (path := case_file(dataset, part))}
    if on in there:
        return read_cases(dataset, on)
    for part, path in there.items():
        raise EvalError(f"{dataset}: {path.name} exists but {on}.jsonl does not; add it, or measure on {part}")
    return make_cases_from(read_data(dataset), on)


def load_production_cases(dataset: Path) -> Cases:
    """Return the test cases with all events that a model in production may learn from: those before the test cut.

    Without test cases it returns no cases, and all events except those of split "test", which may become targets one day.
    """
    if case_file(dataset, "test"):
        return read_cases(dataset, "test")
    data = read_data(dataset)
    if not case_file(dataset, "valid"):
        # An EvalError here means that the events leave no targets for test.
        with suppress(EvalError):
            return make_cases_from(data, "test")
    return Cases(data.name, "test", (), tuple(_select_events(data, "test", dataset, [])))


def read_cases(dataset: Path, on: str) -> Cases:
    """Read the cases of `valid.jsonl` or `test.jsonl` (or .parquet), with the events of the splits before the cut.

    Raises BadData "FILE:LINE: reason; remedy" for a broken case. Raises EvalError if there is no such file, or if events
    without a split contain targets.
    """
    check_part(on)
    path = case_file(dataset, on)
    if path is None:
        raise EvalError(f"{dataset}: there is no {on}.jsonl; add it, or let cases be made from the events")
    data = read_data(dataset)
    cases = _read(path, data.items)
    if not cases:
        raise EvalError(f"{path}: there are no cases; add one line for each request with a known answer")
    warnings = [*data.warnings, *warn_of_hidden_targets(data, cases)]
    events = _select_events(data, on, dataset, warnings)
    return Cases(data.name, on, cases, tuple(events), warnings)


def _select_events(data: Data, on: str, dataset: Path, warnings: list[str]) -> Iterable[Event]:
    """Return the events before the cut by their split. If no event has a split, all of them count as training data; EvalError is
    raised then if they contain a target of either part."""
    if not data.events:
        warnings.append("there are no events: arms that need fitting cannot run")
        return []
    known = {*_PARTS, "train"}
    if all(event.split is None for event in data.events):
        files = [path for part in _PARTS if (path := case_file(dataset, part))]
        targets = target_pairs(tuple(case for path in files for case in _read(path, data.items)))
        if any((event.user, event.item) in targets for event in data.events):
            raise EvalError(
                f'{dataset}: the events have no split and contain targets of the cases; add the column "split" '
                "(train, valid, test), or remove the events after the cut"
            )
        warnings.append("the events have no split: all of them are taken to lie before the cut")
        return [replace(event, split="train") for event in data.events]
    if unknown := sum(event.split not in known for event in data.events):
        warnings.append(f"{unknown} events without a known split were left out; the splits are train, valid, test")
    fitted = [event for event in data.events if event.split in FITTED[on]]
    if not fitted:
        warnings.append(
            f"no event lies before the cut (split {' or '.join(sorted(FITTED[on]))}): arms that need fitting cannot run"
        )
    return fitted


def _read(path: Path, items: frozenset[str]) -> tuple[Case, ...]:
    cases: list[Case] = []
    problems = Problems("stop")
    for place, row in read_rows(path, ("targets",), _FIELDS, problems):
        try:
            cases.append(_case(row, items, place, cases[-1] if cases else None))
        except RowFault as wrong:
            problems.report(place, wrong)
    return tuple(cases)


def _case(row: Mapping[str, Any], items: frozenset[str], place: str, previous: Case | None) -> Case:
    if row.get("history") is None and row.get("dialogue") is None:
        raise RowFault('neither "history" nor "dialogue"', remedy=_REMEDY)
    ids = {name: _ids(row, name, items) for name in ("history", "mentioned", "targets")}
    if not ids["targets"]:
        raise RowFault('no "targets"', remedy=_REMEDY)
    dialogue = _dialogue(row.get("dialogue"))
    user = row.get("user")
    if user is None:
        user = _find_user(dialogue, place, previous)
    elif not isinstance(user, str) or not user:
        raise RowFault('"user" is not a string', repr(user)[:40], _REMEDY)
    return Case(user, ids["history"], tuple(dict.fromkeys(ids["targets"])), dialogue, ids["mentioned"])


def _ids(row: Mapping[str, Any], name: str, items: frozenset[str]) -> tuple[str, ...]:
    values = row.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise RowFault(f'"{name}" is not a list of ids', remedy=f'ids are strings: write "{name}": ["id", ...]')
    unknown = next((value for value in values if value not in items), None)
    if unknown is not None:
        raise RowFault(f'"{name}" names an unknown item', unknown, "add the item, or remove the case")
    return tuple(values)


def _dialogue(turns: Any) -> tuple[dict[str, str], ...]:
    if turns is None:
        return ()
    if not isinstance(turns, list):
        raise RowFault('"dialogue" is not a list', remedy=_REMEDY)
    for turn in turns:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"} or turn["role"] not in _ROLES:
            raise RowFault(
                "a turn of the dialogue is not a role and a content", remedy='write {"role": "user", "content": ...}'
            )
        if not isinstance(turn["content"], str):
            raise RowFault('the "content" of a turn is not a string', remedy='write {"role": "user", "content": "..."}')
    return tuple(turns)


def _find_user(dialogue: tuple[dict[str, str], ...], place: str, previous: Case | None) -> str:
    """Return the user of a dialogue without a user id: the same as in the previous case if this dialogue continues it."""
    if previous is not None and previous.dialogue and dialogue[: len(previous.dialogue)] == previous.dialogue:
        return previous.user
    return f"dialogue {place.rpartition(':')[2]}"
