"""Evaluation cases: reading and making them, with leaks planted wherever one could be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.data.read_cases import Case, Cases, EvalError, data_hash, load_cases, make_cases, read_cases
from store.cooccurrence import is_clock
from store.errors import BadData
from store.records import Event

DAY = 86_400
NOON = 1_600_000_000  # in 2020

Dataset = Callable[..., Path]
Row = tuple[Any, ...]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Write a dataset: items a to z, events as rows (user, item, rating, timestamp[, split]), cases by part."""

    def write(events: Sequence[Row] = (), **cases: Sequence[Any]) -> Path:
        items = [
            {"id": letter, "title": letter.upper(), "hidden": letter == "z"} for letter in "abcdefghijklmnopqrstuvwxyz"
        ]
        _lines(tmp_path / "items.jsonl", items)
        if events:
            header = "user,item,rating,timestamp" + (",split" if len(events[0]) > 4 else "")
            rows = [",".join("" if cell is None else str(cell) for cell in row) for row in events]
            (tmp_path / "events.csv").write_text("\n".join([header, *rows]) + "\n")
        for part, lines in cases.items():
            _lines(tmp_path / f"{part}.jsonl", lines)
        return tmp_path

    return write


def _lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def case(user: str, history: str, targets: str) -> dict[str, Any]:
    return {"user": user, "history": list(history), "targets": list(targets)}


SPLIT = [("u", "a", None, 1, "train"), ("v", "b", None, 1, "train"), ("u", "b", None, 2, "valid")]
GIVEN = {"valid": [case("u", "a", "b")], "test": [case("u", "ab", "c"), case("u", "abc", "d"), case("w", "a", "be")]}


def test_cases_are_read_with_events_before_the_cut(dataset: Dataset) -> None:
    folder = dataset([*SPLIT, ("u", "c", None, 3, "test")], **GIVEN)
    valid, test = read_cases(folder, "valid"), read_cases(folder, "test")
    assert valid.cases == (Case("u", ("a",), ("b",)),)
    assert [event.item for event in valid.events] == ["a", "b"]
    assert (len(test), test.users, test.dataset, test.on) == (3, 2, folder.name, "test")
    assert [(event.user, event.item) for event in test.events] == [("u", "a"), ("v", "b"), ("u", "b")]
    assert valid.warnings == test.warnings == []


def test_parquet_cases_are_read(dataset: Dataset) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    folder = dataset(SPLIT)
    parquet.write_table(arrow.Table.from_pylist([case("u", "ab", "c")]), folder / "test.parquet")
    assert read_cases(folder, "test").cases == (Case("u", ("a", "b"), ("c",)),)


def test_dialogue_that_continues_the_previous_one_has_the_same_user(dataset: Dataset) -> None:
    turns = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "A thriller."}]
    first, second = turns, [*turns, {"role": "user", "content": "Old."}]
    other = [turns[0], {"role": "user", "content": "A comedy."}]
    lines = [{"dialogue": each, "mentioned": ["a"], "targets": ["b"]} for each in (first, second, other)]
    cases = read_cases(dataset(test=lines), "test")
    assert cases.users == 2 and cases.cases[0].user == cases.cases[1].user
    assert cases.cases[1].dialogue == tuple(second) and cases.cases[1].mentioned == ("a",)
    assert "no events" in cases.warnings[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "broken JSON"),
        ("[1]", "not an object"),
        ('{"user": "u", "targets": ["a"]}', 'neither "history" nor "dialogue"'),
        ('{"user": "u", "history": ["a"]}', 'no "targets"'),
        ('{"user": "u", "history": ["a"], "targets": []}', 'no "targets"'),
        ('{"user": "u", "history": "a", "targets": ["b"]}', "not a list of ids"),
        ('{"user": "u", "history": [1], "targets": ["b"]}', "not a list of ids"),
        ('{"user": 7, "history": [], "targets": ["b"]}', '"user" is not a string'),
        ('{"user": "u", "history": [], "targets": ["nope"]}', "unknown item"),
        ('{"dialogue": [{"role": "admin", "content": "x"}], "targets": ["b"]}', "not a role and a content"),
        ('{"dialogue": [{"role": "user", "content": 1}], "targets": ["b"]}', "not a string"),
        ('{"user": "u", "history": [], "targets": ["b"], "extra": 1}', "unknown field"),
    ],
)
def test_broken_case_is_refused_with_its_line_number(dataset: Dataset, line: str, words: str) -> None:
    folder = dataset(SPLIT, test=[case("u", "ab", "c"), line])
    with pytest.raises(BadData) as error:
        read_cases(folder, "test")
    message = str(error.value)
    assert message.startswith(f"{folder / 'test.jsonl'}:2: ") and words in message
    assert "; " in message and "\n" not in message


def test_missing_files_and_cases_are_reported(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="not a dataset folder"):
        load_cases(tmp_path / "nowhere", "test")
    folder = dataset()
    with pytest.raises(EvalError, match="cannot be measured on"):
        load_cases(folder, "train")
    with pytest.raises(EvalError, match="no events to make cases from"):
        load_cases(folder, "test")
    dataset(test=GIVEN["test"])
    with pytest.raises(EvalError, match=r"valid\.jsonl does not"):
        load_cases(folder, "valid")
    _lines(folder / "test.jsonl", [])
    with pytest.raises(EvalError, match="no cases"):
        load_cases(folder, "test")


def test_hidden_targets_and_broken_events_give_warnings(dataset: Dataset) -> None:
    folder = dataset([*SPLIT, ("u", "nope", None, 1, "train")], test=[case("u", "ab", "cz")])
    assert [each.partition(":")[0] for each in read_cases(folder, "test").warnings] == [
        "1 rows were left out",
        "1 targets are hidden items, which are never returned",
    ]


# Leaks


def test_events_after_the_cut_are_never_fitted_on(dataset: Dataset) -> None:
    folder = dataset(
        [*SPLIT, ("x", "c", None, 9, "test"), ("x", "d", None, 9, "holdout"), ("x", "e", None, 9, None)], **GIVEN
    )
    assert read_cases(folder, "test").events == read_cases(dataset(SPLIT, **GIVEN), "test").events
    folder = dataset([*SPLIT, ("x", "c", None, 9, "valid")], **GIVEN)
    assert {event.split for event in read_cases(folder, "valid").events} == {"train"}


@pytest.mark.parametrize("split", ["train", "valid"])
def test_target_planted_in_an_earlier_split_is_removed(dataset: Dataset, split: str) -> None:
    clean = read_cases(dataset(SPLIT, **GIVEN), "test")
    planted = read_cases(dataset([*SPLIT, ("u", "c", None, 2.5, split), ("w", "e", None, 0, split)], **GIVEN), "test")
    assert planted.events == clean.events
    assert "2 events that give away" in planted.warnings[0]


def test_target_that_is_in_the_history_is_not_removed_from_events(dataset: Dataset) -> None:
    cases = read_cases(dataset(SPLIT, test=[case("u", "ab", "a")]), "test")
    assert len(cases.events) == 3 and cases.warnings == []


def test_events_after_the_cut_cannot_be_added_to_cases(dataset: Dataset) -> None:
    cases = read_cases(dataset(SPLIT, **GIVEN), "valid")
    for split in ("valid", "test", None):
        late = Event("x", "c", 9, split=split)
        with pytest.raises(EvalError, match="may not be fitted on"):
            replace(cases, events=(*cases.events, late))
        with pytest.raises(EvalError, match="may not be fitted on"):
            Cases("d", "valid", cases.cases, (late,))
    with pytest.raises(AttributeError):
        cases.events.append(Event("u", "b", 9))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        cases.events = ()  # type: ignore[misc]
    assert replace(cases, events=(Event("u", "b", 9, split="train"),)).events == ()


def test_events_without_split_are_refused_if_they_contain_targets(dataset: Dataset) -> None:
    plain = [("u", "a", None, 1), ("u", "b", None, 2), ("v", "b", None, 2)]
    cases = read_cases(dataset(plain, test=GIVEN["test"]), "test")
    assert len(cases.events) == 3 and "taken to lie before the cut" in cases.warnings[0]
    folder = dataset([*plain, ("u", "d", None, 3)], test=GIVEN["test"])
    with pytest.raises(EvalError, match='add the column "split"'):
        read_cases(folder, "test")
    # A test target is a leak for the validation cases, too.
    with pytest.raises(EvalError, match='add the column "split"'):
        read_cases(dataset([*plain, ("u", "d", None, 3)], **GIVEN), "valid")


# Made from events

CLOCK = [(f"u{i % 4}", "abcdefghijklmnopqrst"[i % 20], 5, NOON + i * DAY) for i in range(40)]


def test_cut_by_time_separates_fitted_events_from_targets(dataset: Dataset) -> None:
    folder = dataset(CLOCK)
    when = {(user, item): at for user, item, _, at in CLOCK}
    bounds = {}
    for on in ("valid", "test"):
        cases = load_cases(folder, on)
        assert cases.warnings == [] and cases.users == 4
        last_fitted = max(event.timestamp for event in cases.events)
        first_asked = min(when[each.user, target] for each in cases.cases for target in each.targets)
        assert last_fitted < first_asked
        bounds[on] = (last_fitted, first_asked)
        for each in cases.cases:
            liked = [item for user, item, _, at in CLOCK if user == each.user and at < when[each.user, each.targets[0]]]
            assert list(each.history) == liked
    assert bounds["valid"][1] <= bounds["test"][0] < bounds["test"][1]


def test_only_positive_events_are_history_or_target(dataset: Dataset) -> None:
    rows = [(user, item, 2 if item in "ej" else 5, at) for user, item, _, at in CLOCK]
    cases = make_cases(dataset(rows), "test")
    shown = {item for each in cases.cases for item in (*each.history, *each.targets)}
    assert not shown & set("ej")
    assert {"e", "j"} & {event.item for event in cases.events}  # still events, which mark items as seen


def test_later_events_do_not_change_earlier_cases_or_fitted_events(dataset: Dataset) -> None:
    """Other events in the test period change neither the fitted events nor the validation cases."""
    before = {on: make_cases(dataset(CLOCK), on) for on in ("valid", "test")}
    cut = max(event.timestamp for event in before["test"].events)
    other = [(user, "z" if at > cut else item, 1 if at > cut else rating, at) for user, item, rating, at in CLOCK]
    assert make_cases(dataset(other), "valid").cases == before["valid"].cases
    assert make_cases(dataset(other), "valid").events == before["valid"].events


def test_times_that_are_not_a_clock_are_split_per_user_with_a_warning(dataset: Dataset) -> None:
    steps = [(f"u{i % 4}", "abcdefghij"[i // 4], None, i // 4) for i in range(40)]
    folder = dataset(steps)
    with pytest.raises(EvalError, match="not a clock"):
        make_cases(folder, "test")
    cases = load_cases(folder, "test")
    assert [each.history for each in cases.cases] == [tuple("abcdefghi")] * 4
    assert [each.targets for each in cases.cases] == [("j",)] * 4
    assert "not a clock" in cases.warnings[0] and "sees the future" in cases.warnings[1]


@pytest.mark.parametrize(
    ("times", "clock"),
    [
        ([NOON + i * DAY for i in range(50)], True),
        ([(NOON + i * DAY) * 1000 for i in range(50)], True),
        (list(range(1005)), False),
        ([1990 + i % 30 for i in range(50)], False),
        ([NOON] * 50, False),
        ([], False),
    ],
)
def test_clock_times_are_recognised(times: list[float], clock: bool) -> None:
    assert is_clock(times) is clock


def test_leave_last_out_split_gives_a_warning(dataset: Dataset) -> None:
    cases = load_cases(dataset(CLOCK, **GIVEN), "test", "last-out")
    assert [(len(each.history), len(each.targets)) for each in cases.cases] == [(9, 1)] * 4
    assert len(cases.events) == 36 and "leave-last-out sees the future" in cases.warnings[0]
    assert len(make_cases(dataset(CLOCK), "valid", "last-out").events) == 32


def test_split_column_of_the_events_is_used(dataset: Dataset) -> None:
    rows = [
        (user, item, None, step, split)
        for step, (user, item, split) in enumerate(
            [
                ("u", "a", "train"),
                ("u", "b", "train"),
                ("u", "c", "valid"),
                ("u", "d", "test"),
                ("v", "a", "test"),
                ("v", "b", "test"),
            ]
        )
    ]
    valid, test = (load_cases(dataset(rows), on) for on in ("valid", "test"))
    assert valid.cases == (Case("u", ("a", "b"), ("c",)),) and len(valid.events) == 2
    assert test.cases == (Case("u", ("a", "b", "c"), ("d",)), Case("v", ("a",), ("b",))) and len(test.events) == 3
    with pytest.raises(EvalError, match="leaves no targets"):
        load_cases(dataset(rows[:3]), "test")


def test_user_with_many_events_gets_five_cases_spread_over_the_period(dataset: Dataset) -> None:
    rows = [("u", "ab"[i % 2], None, NOON + i * DAY) for i in range(1500)]
    cases = make_cases(dataset(rows), "test").cases
    assert len(cases) == 5 and len(cases[0].history) == 1350 and len(cases[-1].history) == 1490
    assert all(each.targets == ("a", "b") for each in cases)


def test_unknown_split_is_refused(dataset: Dataset) -> None:
    with pytest.raises(EvalError, match="not a way to split"):
        make_cases(dataset(CLOCK), "test", "random")


# Samples and hashes


def test_sample_contains_all_cases_of_its_users_and_depends_on_seed() -> None:
    cases = Cases("d", "test", tuple(Case(f"u{i // 3}", (), ("a",)) for i in range(300)), ())
    small, large = cases.sample(30, seed=4), cases.sample(90, seed=4)
    assert (len(small), small.users) == (30, 10)
    assert small == cases.sample(30, seed=4) != cases.sample(30, seed=5)
    assert set(small.cases) <= set(large.cases)
    assert cases.sample(1000) is cases


def test_data_hash_changes_with_any_file(dataset: Dataset) -> None:
    hashes = {data_hash(dataset(SPLIT)), data_hash(dataset(CLOCK)), data_hash(dataset(CLOCK, **GIVEN))}
    assert len(hashes) == 3 and data_hash(dataset(CLOCK, **GIVEN)) in hashes
