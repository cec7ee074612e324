"""Reading datasets: every format, and every fault that a row may have."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import BadData, Event, Item, MissingExtra
from store.load import find_dataset, read_events, read_items
from store.readers import Problems
from store.records import KINDS, as_json

pa = pytest.importorskip("pyarrow")

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
NAME = TEXT.filter(lambda text: text != "" and not text.startswith(("$", "#", "chroma:", "evoke:")))
NUMBER = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUE = TEXT | NUMBER | st.booleans() | st.lists(TEXT, max_size=3) | st.lists(NUMBER, max_size=3)
ITEMS = st.lists(
    st.builds(Item, NAME, TEXT, TEXT, st.dictionaries(NAME, VALUE, max_size=3), st.booleans()),
    min_size=1,
    max_size=5,
    unique_by=lambda item: item.id,
)
EVENTS = st.lists(
    st.builds(
        Event,
        NAME,
        NAME,
        st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.sampled_from(sorted(KINDS)),
        st.none() | NAME,
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@given(items=ITEMS)
def test_items_are_read_back_from_jsonl(items: list[Item], folder: Path) -> None:
    path = jsonl(folder / "items.jsonl", [as_json(item) for item in items])
    assert list(read_items(path, Problems())) == items


@given(items=ITEMS)
def test_items_are_read_back_from_csv(items: list[Item], folder: Path) -> None:
    items = [item for item in items if item.title]
    rows = [[i.id, i.title, i.text, json.dumps(dict(i.metadata)), str(i.hidden).lower()] for i in items]
    path = table(folder / "items.csv", ["id", "title", "text", "metadata", "hidden"], rows)
    assert list(read_items(path, Problems())) == items


@given(items=ITEMS)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_items_are_read_back_from_parquet(items: list[Item], folder: Path) -> None:
    from pyarrow import parquet

    rows = [as_json(item) | {"hidden": item.hidden, "metadata": json.dumps(dict(item.metadata))} for item in items]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
    assert list(read_items(folder / "items.parquet", Problems())) == items


@given(events=EVENTS)
def test_events_are_read_back_from_csv_and_jsonl(events: list[Event], folder: Path) -> None:
    known = {event.item for event in events}
    rows = [[e.user, e.item, e.rating, repr(e.timestamp), e.split, e.kind] for e in events]
    columns = ["user", "item", "rating", "timestamp", "split", "kind"]
    assert list(read_events(table(folder / "events.csv", columns, rows), known, Problems())) == events
    lines = [{name: getattr(event, name) for name in columns} for event in events]
    assert list(read_events(jsonl(folder / "events.jsonl", lines), known, Problems())) == events


def test_parquet_metadata_is_read_from_structs_and_maps(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = [
        {"id": "a", "title": "A", "metadata": {"year": 1995}},
        {"id": "b", "title": "B", "metadata": {"year": None}},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "struct.parquet")
    kind = pa.schema([("id", pa.string()), ("title", pa.string()), ("metadata", pa.map_(pa.string(), pa.int64()))])
    mapped = [{"id": "a", "title": "A", "metadata": [("year", 1995)]}, {"id": "b", "title": "B", "metadata": []}]
    parquet.write_table(pa.Table.from_pylist(mapped, schema=kind), tmp_path / "map.parquet")
    for name in ("struct", "map"):
        found = list(read_items(tmp_path / f"{name}.parquet", Problems()))
        assert found == [Item("a", "A", metadata={"year": 1995}), Item("b", "B")]


@pytest.mark.parametrize("value", [["ab", "cd"], ["Drama"], [{"x": 1}, {"y": 2}]])
def test_parquet_metadata_that_is_a_list_makes_a_broken_row(tmp_path: Path, value: list[Any]) -> None:
    from pyarrow import parquet

    path = tmp_path / "items.parquet"
    parquet.write_table(pa.Table.from_pylist([{"id": "a", "title": "A", "metadata": value}]), path)
    with pytest.raises(BadData, match=re.escape(f'{path}:1: "metadata" is not an object; ')):
        list(read_items(path, Problems()))
    problems = Problems("skip")
    assert list(read_items(path, problems)) == []
    assert problems.skipped == 1


def test_parquet_without_pyarrow_names_the_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=re.escape('pip install "evoke-rec[parquet]"')):
        list(read_items(tmp_path / "items.parquet", Problems()))


GOOD = '{"id": "good", "title": "Good"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "title": ', "broken JSON"),
        ('["a", "b"]', "the row is not an object"),
        ('"a"', "the row is not an object"),
        ('{"title": "A"}', "no id"),
        ('{"id": null, "title": "A"}', "no id"),
        ('{"id": "a"}', "no title"),
        ('{"id": 7, "title": "A"}', '"id" is not text'),
        ('{"id": "", "title": "A"}', '"id" is empty'),
        ('{"id": "a", "title": ["A"]}', '"title" is not text'),
        ('{"id": "a", "title": "A", "text": 1}', '"text" is not text'),
        ('{"id": "a", "title": "A", "hidden": "yes"}', '"hidden" is not true or false'),
        ('{"id": "a", "title": "A", "hidden": 1}', '"hidden" is not true or false'),
        ('{"id": "a", "title": "A", "metadata": []}', '"metadata" is not an object'),
        ('{"id": "a", "title": "A", "metadata": {"x": {"y": 1}}}', 'metadata "x" is not text'),
        ('{"id": "a", "title": "A", "metadata": {"x": NaN}}', "a number that is not finite (NaN)"),
        ('{"id": "a", "title": "A", "metadata": {"x": 1e999}}', "finite"),
        ('{"id": "a", "title": "A", "metadata": {"x": [1, "b"]}}', "neither texts alone nor finite numbers alone"),
        ('{"id": "a", "title": "A", "titel": "B"}', "an unknown field (titel)"),
        ('{"id": "a", "title": "\\ud800"}', "half a surrogate pair"),
        ('{"id": "good", "title": "Another"}', "the same id with different content (good)"),
        ("[" * 100_000, "broken JSON"),
        ('{"id": "a", "title": "A", "metadata": {"x": ' + "9" * 5000 + "}}", "broken JSON"),
    ],
)
def test_broken_item_is_skipped_or_refused_with_file_line_and_remedy(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(GOOD + line + "\n" + '{"id": "last", "title": "Last"}\n')
    with pytest.raises(BadData, match=re.escape(f"{path}:2: ") + ".*" + re.escape(message) + ".*; ") as refused:
        list(read_items(path, Problems()))
    assert "\n" not in str(refused.value)
    problems = Problems("skip")
    assert [item.id for item in read_items(path, problems)] == ["good", "last"]
    assert problems.skipped == 1
    assert [len(cases) for cases in problems.cases.values()] == [1]


def test_bytes_that_are_not_utf_8_make_a_broken_row(tmp_path: Path) -> None:
    for name, content in (
        ("items.jsonl", b'{"id": "a", "title": "A"}\n{"id": "b", "title": "\xe9"}\n'),
        ("items.csv", b"id,title\na,A\nb,\xe9\n"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match=rf"{name}:[23]: not UTF-8"):
            list(read_items(tmp_path / name, Problems()))
        problems = Problems("skip")
        assert [item.id for item in read_items(tmp_path / name, problems)] == ["a"]
        assert problems.counts == {"not UTF-8": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ann,good,5", "a row of another length than the header (3 cells, not 4)"),
        ("ann,good,nan,1", '"rating" is not a finite number'),
        ("ann,good,five,1", "\"rating\" is not a number ('five')"),
        ("ann,good,,nan", '"timestamp" is not a finite number'),
        ("ann,good,,", "no timestamp"),
        (",good,,1", "no user"),
        ("ann,,,1", "no item"),
        ("ann,other,,1", "an event of an unknown item (other)"),
        ('ann,"good,,1', "broken CSV"),
        (
            'ann,"good,,1' + "\nann,good,,2" * 1000,
            "broken CSV (unexpected end of data, over 1001 lines, to line 1003: is a quote left open?)",
        ),
        ('ann,"good,,1\nann,good",,1', "an event of an unknown item (good,,1"),
    ],
)
def test_broken_event_is_skipped_or_refused_with_file_line_and_remedy(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text(f"user,item,rating,timestamp\nann,good,,1\n{row}\n")
    with pytest.raises(BadData, match=re.escape(f"{path}:3: {message}") + ".*; "):
        list(read_events(path, {"good"}, Problems()))
    problems = Problems("skip")
    assert [event.item for event in read_events(path, {"good"}, problems)] == ["good"]
    assert problems.skipped == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user": 7, "item": "good", "timestamp": 1}, '"user" is not text'),
        ({"user": "ann", "item": "good", "timestamp": "1"}, '"timestamp" is not a finite number'),
        ({"user": "ann", "item": "good", "timestamp": True}, '"timestamp" is not a finite number'),
        ({"user": "ann", "item": "good", "timestamp": 1, "rating": "5"}, '"rating" is not a finite number'),
        ({"user": "ann", "item": "good", "timestamp": 1, "kind": "love"}, '"kind" is none of'),
        ({"user": "ann", "item": "good", "timestamp": 1, "kind": ["view"]}, '"kind" is none of'),
        ({"user": "ann", "item": "good", "timestamp": 1, "split": 3}, '"split" is not text'),
    ],
)
def test_values_are_not_converted_to_another_type(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=re.escape(message)):
        list(read_events(jsonl(tmp_path / "events.jsonl", [row]), {"good"}, Problems()))
    problems = Problems("skip")
    assert list(read_events(tmp_path / "events.jsonl", {"good"}, problems)) == []
    assert problems.skipped == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", "id,text\na,b\n", "items.csv:1: missing column title"),
        ("items.csv", "id,title,brand\na,b,c\n", "unknown column 'brand'.*metadata"),
        ("items.csv", "id,title,id\n", "the same column twice"),
        ("items.csv", "", "there is no header"),
        ("events.csv", "user,item\n", "events.csv:1: missing column rating, timestamp"),
        ("items.parquet", "PAR1 no", "items.parquet:1: not readable as Parquet"),
        ("items.txt", "", "the format .txt is not read"),
    ],
)
def test_fault_of_a_whole_file_stops_even_with_skip(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    reading = read_events(path, (), Problems("skip")) if name == "events.csv" else read_items(path, Problems("skip"))
    with pytest.raises(BadData, match=message):
        list(reading)


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("\ufeff" + GOOD + "\n" + GOOD + GOOD, encoding="utf-8")
    problems = Problems()
    assert [item.id for item in read_items(path, problems)] == ["good"]
    assert (problems.duplicates, problems.skipped) == (2, 0)


def test_nulls_and_empty_cells_count_as_absent_fields(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "items.jsonl", [{"id": "a", "title": "A", "text": None, "metadata": {"x": None, "y": 1}}])
    assert list(read_items(path, Problems())) == [Item("a", "A", metadata={"y": 1})]
    path = table(tmp_path / "events.csv", ["user", "item", "rating", "timestamp", "kind"], [["u", "a", "", "1", ""]])
    assert list(read_events(path, {"a"}, Problems())) == [Event("u", "a", 1.0)]


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(GOOD + "broken\n")
    assert next(read_items(path, Problems())).id == "good"


def test_dataset_files_are_found(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"no items file; add items\.jsonl"):
        find_dataset(tmp_path)
    with pytest.raises(BadData, match="no such file or folder"):
        find_dataset(tmp_path / "nowhere")
    items = jsonl(tmp_path / "items.jsonl", [])
    assert find_dataset(tmp_path) == (items, None)
    events = table(tmp_path / "events.csv", ["user"], [])
    assert find_dataset(tmp_path) == (items, events)
    assert find_dataset(items) == (items, None)
    assert find_dataset(events) == (None, events)
    jsonl(tmp_path / "events.jsonl", [])
    with pytest.raises(BadData, match=r"both .* are there; keep one"):
        find_dataset(tmp_path)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_in_one_line(folder: Path, content: bytes) -> None:
    for name in ("items.jsonl", "items.csv", "items.parquet"):
        (folder / name).write_bytes(content)
        for on_error in ("stop", "skip"):
            try:
                list(read_items(folder / name, Problems(on_error)))  # type: ignore[arg-type]
            except BadData as refused:
                assert "\n" not in str(refused)


def test_row_over_several_lines_is_named_by_its_first_line(tmp_path: Path) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["id", "title", "text"], ["a", "A", "one\ntwo"], ["b", "", "three\nfour"]])
    path = tmp_path / "items.csv"
    path.write_text(out.getvalue(), newline="")
    with pytest.raises(BadData, match=r"items\.csv:4: no title"):
        list(read_items(path, Problems()))
    assert [item.text for item in read_items(path, Problems("skip"))] == ["one\ntwo"]
