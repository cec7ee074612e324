"""The catalog, with the same tests on a Chroma folder and on a real Chroma server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import Catalog, Embedder, Item, StoreBusy, StoreError
from store.filters import Field, fields_of, normalise_filter

HEAT = Item("heat", "Heat", "A detective hunts a crew of bank robbers.", {"year": 1995, "genres": ["Crime", "Drama"]})
RONIN = Item("ronin", "Ronin", "Spies chase a case through Nice.", {"year": 1998, "genres": ["Thriller"], "score": 7.2})
ALIEN = Item("alien", "Alien", "A crew meets a monster in space.", {"year": 1979, "genres": ["Horror"], "color": True})
CASINO = Item("casino", "Casino", "", {"year": 1995, "genres": []}, hidden=True)
FILMS = [HEAT, RONIN, ALIEN, CASINO]


def nested(levels: int, name: str = "$or", **beside: Any) -> dict[str, Any]:
    """Return a filter with this number of levels."""
    where: dict[str, Any] = {"year": 1995}
    for _ in range(levels):
        where = {name: [where, {"genres": "Crime"}]} | beside
    return where


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("chroma_url")


@pytest.fixture
def catalog(place: str, embedder: Embedder) -> Iterator[Catalog]:
    with Catalog.open(place, embedder=embedder) as opened:
        opened.upsert(FILMS)
        yield opened


@pytest.fixture(scope="module", params=["folder", "server"])
def read_only(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedder: Embedder
) -> Iterator[Callable[[Sequence[Item]], Catalog]]:
    """Make catalogs that tests only read, in a folder or on a server."""
    with ExitStack() as opened:

        def made(items: Sequence[Item]) -> Catalog:
            if request.param == "folder":
                place = str(tmp_path_factory.mktemp("catalog"))
            else:
                place = f"{request.getfixturevalue('chroma_server')}/catalog-{uuid4().hex[:8]}"
            catalog = opened.enter_context(Catalog.open(place, embedder=embedder))
            catalog.upsert(items)
            return catalog

        yield made


@pytest.fixture(scope="module")
def films(read_only: Callable[[Sequence[Item]], Catalog]) -> Catalog:
    return read_only(FILMS)


@pytest.fixture(scope="module")
def mixed(read_only: Callable[[Sequence[Item]], Catalog]) -> Catalog:
    """A catalog in which the type of a field differs between items."""
    shapes = {"other": ["Drama"], "one": "Horror", "list": ["Horror"], "number": 7}
    return read_only(
        [Item(name, name, metadata={"genres": value}) for name, value in shapes.items()] + [Item("none", "none")]
    )


class Counting(Embedder):
    """The real embedder, which counts the texts it embeds."""

    embedded = 0

    def encode_documents(self, texts: Any) -> np.ndarray:
        self.embedded += len(texts)
        return super().encode_documents(texts)


def test_items_are_read_back_exactly(catalog: Catalog) -> None:
    odd = Item(
        "ø/1 é", "Ü", "line\nbreak \u202e", {"empty": [], "mixed": [1, 2.5], "n": 2**53 + 1, "f": 1.0, "no": False}
    )
    catalog.upsert([odd, Item("bare", "Bare")])
    assert catalog.get(["ø/1 é", "nothing", "heat", "bare"]) == {
        "ø/1 é": odd,
        "heat": HEAT,
        "bare": Item("bare", "Bare"),
    }
    assert type(catalog.get(["heat"])["heat"].metadata["year"]) is int
    assert sorted(item.id for item in catalog.items()) == catalog.ids()
    assert len(catalog) == 6
    assert "heat" in catalog
    assert "nothing" not in catalog


def test_unchanged_items_are_not_embedded_again(place: str, embedder: Embedder) -> None:
    counting = Counting()
    with Catalog.open(place, embedder=counting) as catalog:
        assert catalog.upsert(FILMS).added == 4
        version, counting.embedded = catalog.version, 0
        assert catalog.upsert(FILMS).unchanged == 4
        assert (counting.embedded, catalog.version) == (0, version)
        done = catalog.upsert([replace(HEAT, metadata={"year": 1996}), replace(ALIEN, text="A new text."), RONIN])
        assert (done.updated, done.unchanged, counting.embedded) == (2, 1, 1)
        assert catalog.version != version
        assert "genres" not in catalog.schema() or "heat" not in (catalog.matching({"genres": "Crime"}) or set())
        assert catalog.matching({"year": 1996}) == {"heat"}


def test_last_item_of_an_id_is_stored(catalog: Catalog) -> None:
    catalog.upsert([replace(HEAT, title="First"), replace(HEAT, title="Last")])
    assert catalog.get(["heat"])["heat"].title == "Last"


def test_deleted_items_are_gone(catalog: Catalog) -> None:
    version = catalog.version
    assert catalog.delete(["heat", "nothing"]) == 1
    assert catalog.ids() == ["alien", "casino", "ronin"]
    assert catalog.version != version
    assert all(hit.id != "heat" for hit in catalog.query(catalog.embedder.encode_queries(["robbers"]), 4)[0])
    assert catalog.delete(catalog.ids()) == 3
    assert catalog.query(np.ones((2, 384)), 4) == [[], []]
    assert catalog.upsert([HEAT]).added == 1


def test_query_returns_the_nearest_items_first_and_no_hidden_ones(films: Catalog) -> None:
    found = films.query(films.embedder.encode_queries(["bank robbers and police", "monsters in space"]), 10)
    assert [hits[0].id for hits in found] == ["heat", "alien"]
    assert all(len(hits) == 3 and "casino" not in {hit.id for hit in hits} for hits in found)
    exact = films.embedder.encode_queries(["bank robbers and police"]) @ films.vectors(["heat"]).T
    assert found[0][0].score == pytest.approx(float(exact[0, 0]), abs=1e-5)
    assert films.query(np.ones((1, 384)), 0) == [[]]


def test_many_vectors_are_one_chroma_call(films: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    from chromadb import Collection

    films.snapshot()
    calls, query = [], Collection.query
    monkeypatch.setattr(Collection, "query", lambda self, **given: (calls.append(1), query(self, **given))[1])
    films.query(np.ones((30, 384)), 2)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"year": 1995}, {"heat"}),
        ({"year": 1995.0}, {"heat"}),
        ({"year": {"$gte": 1979, "$lt": 1998}}, {"heat", "alien"}),
        ({"year": {"$gte": 1990}, "genres": "Crime"}, {"heat"}),
        ({"genres": {"$in": ["Crime", "Horror"]}}, {"heat", "alien"}),
        ({"genres": {"$nin": ["Crime", "Horror"]}}, {"ronin"}),
        ({"genres": {"$ne": "Crime"}}, {"ronin", "alien"}),
        ({"$and": [{"score": {"$gt": 7}}]}, {"ronin"}),
        ({"$or": [{"color": True}, {"$and": [{"year": 1998}, {"score": {"$lte": 7.2}}]}]}, {"alien", "ronin"}),
        ({"year": {"$gt": 2000}}, set()),
        ({}, None),
        (None, None),
        ({"$and": [{}, {}]}, None),
    ],
)
def test_filters_select_the_right_items(films: Catalog, where: Any, expected: set[str] | None) -> None:
    assert films.matching(where) == expected
    shown = {"heat", "ronin", "alien"} if expected is None else expected
    assert {hit.id for hit in films.query(np.ones((1, 384)), 10, where)[0]} == shown


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"yeer": 1995}, "no item has that field: there are year"),
        ({"year": "1995"}, "the field holds numbers"),
        ({"genres": {"$gt": 1}}, "lists of text"),
        ({"color": 1}, "true or false"),
        ({"score": {"$contains": 7.2}}, "needs a field of lists"),
        ({"year": {"$near": 1995}}, "is no filter operator"),
        ({"year": {"$in": []}}, "at least one value"),
        ({"$or": {}}, "at least one filter"),
        ({"year": {}}, "is empty"),
        (["year"], "a filter is an object"),
        ({"evoke:hidden": True}, "no item has that field"),
        ({"year": 10**400}, '"year" got a number that is not finite or beyond 64 bits'),
        ({"year": {"$lt": 2**63}}, "beyond 64 bits"),
        ({"color": [10**5000]}, '"color" got a list'),
        ({"score": float("inf")}, "not finite"),
        ({"score": {"$in": [7.2, float("nan")]}}, '"score" got a number that is not finite'),
        ({"genres": "\ud800"}, '"genres" got a text that holds half a surrogate pair'),
        ({"genres": {"$in": [str(n) for n in range(1200)]}}, '"genres" got 1200 values, and 500 are the most'),
        ({"year": {"$in": list(range(40_000))}}, '"year" got 40000 values, and 10000 are the most'),
        ({"$or": [{"year": {"$in": list(range(9000))}}] * 4}, "4 conditions and 36000 values"),
        ({"$or": [{"year": n} for n in range(1000)]}, "1000 conditions"),
        (nested(100), "nested too deep"),
        (nested(100_000), "nested too deep"),
        ({"year": 1, "$or": [nested(40, "$and", year=1995), {"year": 2}]}, "nested too deep"),
    ],
)
def test_wrong_filter_is_refused_in_one_line(films: Catalog, where: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message) as refused:
        films.query(np.ones((1, 384)), 3, where)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "where",
    [
        {"genres": {"$in": [*(str(n) for n in range(499)), "Crime"]}},
        {"year": {"$in": [float(n) for n in range(9999)]}},
        {"$or": [{"year": n} for n in range(1200, 2000)]},
        nested(48),
        nested(24, "$and", year=1995),
    ],
)
def test_the_largest_filters_are_answered(films: Catalog, where: dict[str, Any]) -> None:
    assert "heat" in (films.matching(where) or set())


def test_query_that_fails_on_any_connection_is_not_repeated(films: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def call(collection: Any) -> Any:
        asked.append(collection)
        return collection.get(where={"year": float("inf")} if len(asked) == 1 else {"year": {"$in": [1.0] * 40_000}})

    for _ in range(2):
        with pytest.raises(StoreError) as refused:
            films._chroma.ask(call)
        assert "run `evoke index`" not in str(refused.value)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"genres": "Horror"}, {"one", "list"}),
        ({"genres": {"$ne": "Horror"}}, {"other", "none", "number"}),
        ({"genres": {"$in": ["Horror", "Drama"]}}, {"one", "list", "other"}),
        ({"genres": {"$nin": ["Horror"]}}, {"other", "none", "number"}),
        ({"genres": {"$contains": "Horror"}}, {"one", "list"}),
        ({"genres": {"$not_contains": "Horror"}}, {"other", "none", "number"}),
    ],
)
def test_single_value_in_a_field_of_lists_counts_as_a_list_of_one(
    mixed: Catalog, where: Any, expected: set[str]
) -> None:
    assert mixed.matching(where) == expected
    assert {hit.id for hit in mixed.query(np.ones((1, 384)), 10, where)[0]} == expected


SCHEMA = fields_of(FILMS)
CLAUSES = st.one_of(
    st.fixed_dictionaries(
        {"year": st.sampled_from([1979, 1995, {"$gte": 1990}, {"$gt": 1979, "$lt": 1998}, {"$in": [1995]}])}
    ),
    st.fixed_dictionaries({"genres": st.sampled_from(["Crime", {"$in": ["Horror", "Drama"]}, {"$nin": ["Crime"]}])}),
    st.fixed_dictionaries({"score": st.sampled_from([7.2, {"$ne": 1}])}, optional={"color": st.booleans()}),
    st.just({}),
)
FILTERS = st.recursive(
    CLAUSES,
    lambda inner: st.builds(
        lambda name, parts: {name: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


@given(where=FILTERS)
def test_any_filter_selects_the_items_that_match_it(films: Catalog, where: dict[str, Any]) -> None:
    passing = {item.id for item in FILMS if not item.hidden and _matches(item, where)}
    found = films.matching(where)
    assert ({"heat", "ronin", "alien"} if found is None else found) == passing


def _matches(item: Item, where: dict[str, Any]) -> bool:
    """Return whether the item matches the filter, by the definition of the filter language."""
    for name, asked in where.items():
        if name in ("$and", "$or"):
            if not (all if name == "$and" else any)(_matches(item, part) for part in asked):
                return False
            continue
        value: Any = item.metadata.get(name)
        among = value if isinstance(value, list) else [] if value is None else [value]
        for operator, operand in (asked if isinstance(asked, dict) else {"$eq": asked}).items():
            wanted = operand if isinstance(operand, list) else [operand]
            holds = {
                "$eq": operand in among,
                "$ne": operand not in among,
                "$in": any(one in among for one in wanted),
                "$nin": not any(one in among for one in wanted),
                "$gt": any(one > operand for one in among if operator == "$gt"),
                "$gte": any(one >= operand for one in among if operator == "$gte"),
                "$lt": any(one < operand for one in among if operator == "$lt"),
            }
            if not holds[operator]:
                return False
    return True


@given(
    st.dictionaries(
        st.text(max_size=3), st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.lists(st.none())
    )
)
def test_any_input_as_a_filter_is_accepted_or_refused_in_one_line(where: dict[str, Any]) -> None:
    try:
        normalise_filter(where, SCHEMA)
    except StoreError as refused:
        assert "\n" not in str(refused)


def test_schema_describes_the_metadata(films: Catalog) -> None:
    schema = films.schema()
    assert next(iter(schema)) in ("genres", "year")
    assert schema["year"] == Field("int", 4, low=1979, high=1998)
    assert schema["genres"].type == "list"
    assert dict(schema["genres"].values) == {"Crime": 1, "Drama": 1, "Thriller": 1, "Horror": 1}
    assert schema["color"].type == "bool"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item("", "t"), '"id" is empty'),
        (Item(7, "t"), '"id" is not text'),  # type: ignore[arg-type]
        (Item("a", "t", metadata={"x": {}}), 'metadata "x" is not text, a finite number'),  # type: ignore[dict-item]
        (Item("a", "t", metadata={"x": float("nan")}), "finite"),
        (Item("a", "t", metadata={"x": 2**64}), "finite"),
        (Item("a", "t", metadata={"x": [1, "a"]}), "neither texts alone nor finite numbers"),  # type: ignore[list-item]
        (Item("a", "t", metadata={"evoke:x": 1}), "no usable name"),
        (Item("a", "\ud800"), "surrogate"),
        (Item("a", "t\x00"), "NUL"),
    ],
)
def test_item_that_cannot_be_stored_is_refused_in_one_line(films: Catalog, item: Item, message: str) -> None:
    version = films.version
    with pytest.raises(StoreError, match=message) as refused:
        films.upsert([item])
    assert "\n" not in str(refused.value)
    assert films.version == version


def test_bad_item_leaves_no_write_open(place: str, embedder: Embedder) -> None:
    good = [Item(f"n{n}", f"Film {n}") for n in range(400)]
    bad = [*good, Item("bad", "Bad", metadata={"x": float("nan")})]
    with Catalog.open(place, embedder=embedder) as catalog:
        with pytest.raises(StoreError, match="finite"):
            catalog.upsert(bad)
        assert (len(catalog), catalog.settled) == (0, True)
        version = catalog.version
        with pytest.raises(StoreError, match="finite"):
            catalog.upsert(iter(bad))
        assert (len(catalog), catalog.settled) == (256, True)
        assert catalog.version != version
        assert len(catalog.snapshot()) == 256


def test_failed_change_leaves_the_write_open_for_the_next_one(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chromadb import Collection

    with Catalog.open(tmp_path, embedder=embedder) as catalog:
        upsert = Collection.upsert

        def torn(collection: Collection, **given: Any) -> None:
            upsert(collection, **given)
            raise StoreError("no answer")

        monkeypatch.setattr(Collection, "upsert", torn)
        with pytest.raises(StoreError, match="no answer"):
            catalog.upsert([HEAT])
        monkeypatch.undo()
        assert not catalog.settled
        assert catalog.upsert([HEAT]).unchanged == 1
        assert catalog.settled


def test_texts_beyond_the_models_limit_are_counted(catalog: Catalog) -> None:
    done = catalog.upsert([Item("long", "Long", "word " * 5000), Item("short", "Short", "word " * 20)])
    assert (done.added, done.truncated) == (2, 1)


def test_other_embedding_model_is_refused(catalog: Catalog, place: str, tmp_path: Path, embedder: Embedder) -> None:
    copy = shutil.copytree(embedder.folder, tmp_path / "tuned")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    with pytest.raises(StoreError, match=r"made with the embedding model all-MiniLM-L6-v2 .*not tuned"):
        Catalog.open(place, embedder=Embedder(str(copy)))


def test_same_weights_in_another_folder_are_the_same_model(
    catalog: Catalog, place: str, tmp_path: Path, embedder: Embedder
) -> None:
    (tmp_path / "moved").symlink_to(embedder.folder)
    with Catalog.open(place, embedder=Embedder(str(tmp_path / "moved"))) as again:
        assert len(again) == 4


def test_opening_a_missing_catalog_creates_nothing(tmp_path: Path, chroma_server: str) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(StoreError, match="evoke index"):
            Catalog.open(place, create=False)
    with pytest.raises(StoreError, match="evoke index"):
        Catalog.open(f"{chroma_server}/not-there", create=False)
    assert list(tmp_path.iterdir()) == []


def test_server_that_does_not_answer_is_reported_in_one_line() -> None:
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9") as refused:
        Catalog.open("http://127.0.0.1:9")
    assert "\n" not in str(refused.value)


def test_threads_read_at_the_same_time(films: Catalog) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def read(n: int) -> list[Any]:
        vector = films.embedder.encode_queries([f"robbers {n}"])
        return [films.query(vector, 1)[0][0].id, films.get(["heat"])["heat"], films.matching({"year": 1979})]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(24))) == [["heat", HEAT, {"alien"}]] * 24


# The vectors of the other process do not matter, so it loads no model.
WRITE = """
import sys
import numpy as np
from store import Catalog, Embedder, Item

class Blank(Embedder):
    def encode_documents(self, texts):
        return np.ones((len(texts), 384), dtype=np.float32)

    def truncated(self, texts):
        return 0

with Catalog.open(sys.argv[1], embedder=Blank()) as catalog:
    catalog.upsert([Item(f"n{n}", f"Film {n}", metadata={"year": 2000 + n}) for n in range(40)])
"""


def test_reader_sees_what_another_process_wrote(catalog: Catalog, place: str) -> None:
    assert len(catalog.query(np.ones((1, 384)), 100)[0]) == 3
    subprocess.run([sys.executable, "-c", WRITE, place], check=True, capture_output=True)
    assert len(catalog.query(np.ones((1, 384)), 100)[0]) == 43
    assert len(catalog.matching({"year": {"$gte": 2000}}) or ()) == 40
    assert catalog.vectors(["n7"]).shape == (1, 384)
    assert len(catalog.snapshot()) == 44


HOLD = """
import sys
from pathlib import Path
from store.locks import write_lock
with write_lock(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_second_writer_is_refused_with_the_pid_of_the_first(tmp_path: Path, embedder: Embedder) -> None:
    with Catalog.open(tmp_path, embedder=embedder) as catalog:
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout and other.stdout.readline()
        with pytest.raises(StoreBusy, match=rf"another process \(pid {other.pid}\)"):
            catalog.upsert([HEAT])
        assert len(catalog) == 0
        other.communicate("\n")
        assert catalog.upsert([HEAT]).added == 1


def test_index_save_interrupted_by_a_crash_is_recovered_without_embedding(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.checkpoint.WORTH_SAVING", 1)
    with Catalog.open(tmp_path, embedder=embedder) as catalog:
        catalog.upsert([HEAT])
        index = next((tmp_path / "chroma").glob("*-*-*-*-*"))
        catalog.upsert([RONIN, ALIEN])
    before = shutil.copytree(tmp_path, tmp_path.with_name("before"))
    for name in ("data_level0.bin", "index_metadata.pickle", "link_lists.bin", "header.bin"):
        torn = shutil.copytree(before, tmp_path.with_name(f"torn-{name}"))
        folder = torn / "chroma"
        shutil.copytree(folder / index.name, torn / "chroma.before" / index.name)
        with (folder / index.name / name).open("r+b") as file:
            file.truncate(30)
        _write_facts(folder, writing=True, saving=_saved_position(folder))
        counting = Counting()
        with Catalog.open(torn, embedder=counting) as catalog:
            assert catalog.upsert([HEAT, RONIN, ALIEN]).unchanged == 3
            assert catalog.settled
            assert len(catalog.query(np.ones((1, 384)), 5)[0]) == 3
            assert counting.embedded == 0
            assert not (torn / "chroma.before").exists()


def _saved_position(folder: Path) -> int:
    from store import checkpoint

    return checkpoint._log_state(folder)[0]


def _write_facts(folder: Path, **facts: Any) -> None:
    """Write the collection's own metadata as a crashed writer leaves it; the index is not touched."""
    import sqlite3

    with sqlite3.connect(folder / "chroma.sqlite3") as db:
        collection = db.execute("SELECT id FROM collections").fetchone()[0]
        for name, value in facts.items():
            db.execute("DELETE FROM collection_metadata WHERE collection_id = ? AND key = ?", (collection, name))
            column = "bool_value" if isinstance(value, bool) else "int_value"
            db.execute(
                f"INSERT INTO collection_metadata (collection_id, key, {column}) VALUES (?, ?, ?)",
                (collection, name, value),
            )


def test_two_catalogs_of_one_folder_share_a_connection(tmp_path: Path, embedder: Embedder) -> None:
    with Catalog.open(tmp_path, embedder=embedder) as one:
        with Catalog.open(tmp_path, embedder=embedder) as two:
            one.upsert([HEAT])
            assert two.ids() == ["heat"]
        assert one.ids() == ["heat"]


def test_store_holds_no_path_of_this_machine(tmp_path: Path, embedder: Embedder) -> None:
    with Catalog.open(tmp_path, embedder=embedder) as catalog:
        catalog.upsert([HEAT])
        facts = catalog._chroma.facts
    assert facts["model"] == "all-MiniLM-L6-v2"
    assert "/" not in json.dumps(facts)
