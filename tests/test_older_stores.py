"""Stores of older versions, written by `tests/older_stores/make.py`: the present code opens them, and loses nothing."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import Recommender
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from store import Catalog, Event, History, StoreError, paths
from store.compatibility import known_entries
from tests.older_stores.make import HISTORIES, MODEL, SESSION

STORES = Path(__file__).parent / "older_stores"
VERSIONS = sorted(folder.name for folder in STORES.iterdir() if (folder / "store.tar.gz").is_file())
DEAD = "http://127.0.0.1:9/v1"


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, version: str, tmp_path: Path) -> Path:
    """The store of an older version, with its histories in SQLite or in PostgreSQL."""
    folder = tmp_path / "store"
    with tarfile.open(STORES / version / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        _restore(url, STORES / version / "history.sql")
        (folder / "history.db").unlink()
        paths.update_store_json(folder, {"database": url})
    return folder


def _restore(url: str, dump: Path) -> None:
    import psycopg

    with psycopg.connect(url) as db:
        db.execute(dump.read_bytes())


@pytest.fixture
def catalog(store: Path) -> Iterator[Catalog]:
    with Catalog.open(store, create=False) as opened:
        yield opened


@pytest.fixture
def history(store: Path) -> Iterator[History]:
    with History.open(store) as opened:
        yield opened


@pytest.fixture
def recommender(catalog: Catalog, history: History) -> Iterator[Any]:
    """A recommender whose model does not answer."""
    made = Recommender(catalog, history, base_url=DEAD, deadline=0.5)
    yield made
    made.close()


def test_items_events_and_profiles_of_an_older_store_are_read(catalog: Catalog, history: History) -> None:
    assert len(catalog) == 9
    assert catalog.get(["withdrawn"])["withdrawn"].hidden
    assert catalog.matching({"year": {"$lt": 1980}}) == {"lamp-oath"}
    assert history.users() == sorted(HISTORIES)
    for user, items in HISTORIES.items():
        assert [event.item for event in history.positive(history.of(user))] == items
    with history._read() as db:
        fingerprint = db.exec_driver_sql("SELECT fingerprint FROM evoke_profiles").scalar()
    found = history.profile("ann", HISTORIES["ann"], MODEL, fingerprint)
    assert found and found.exact and found.profile["queries"] == ["a crime aboard a ship"]


def test_older_store_recommends(recommender: Any, store: Path) -> None:
    result = recommender.recommend(user="ann", n=3)
    known = {event.item for event in recommender._core.history.of("ann")} | {"withdrawn"}
    assert len(result) == 3 and not known & {entry.item.id for entry in result}
    assert all(entry.explanation for entry in result)


def test_older_tuning_result_is_used_and_its_unknown_keys_are_named_once(
    recommender: Any, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = json.loads((store / "tuned" / "tuned.json").read_text())
    settings = tuned["settings"]
    used = {name: value for name, value in settings.items() if name in Settings.model_fields}
    assert {name: getattr(recommender._core.settings, name) for name in used} == used
    logged = [record.getMessage() for record in caplog.get_records("setup") + caplog.records]
    for name in [*(settings.keys() - used.keys()), *(tuned.keys() - set(Tuned.__slots__))]:
        assert sum(name in message for message in logged) == 1, f"{name} is named once"


def test_session_of_an_older_store_resumes(recommender: Any) -> None:
    session = recommender.session(id=SESSION)
    assert session.user == "ann"
    turn = session.send("another one, please")
    assert [constraint.field for constraint in turn.constraints] == ["year", "genres"]
    assert [entry.item.id for entry in turn.items] == ["brass-alibi"], "the other crime novels from 1990 on are known"


def test_user_of_an_older_store_can_be_forgotten(recommender: Any, history: History) -> None:
    assert recommender.forget("ann").rows == {"events": 5, "profiles": 1, "sessions": 1}
    assert not history.knows("ann")
    assert history.users() == ["bob", "cem", "dot", "eve"]


def test_older_store_takes_new_items_and_events(catalog: Catalog, history: History) -> None:
    items = list(catalog.items())
    assert catalog.upsert(items).unchanged == len(items), "an older item is not embedded again"
    assert catalog.delete(["lamp-oath"]) == 1
    assert history.add([Event("fay", "tin-comet", 1.0, split="test")]).added == 1
    assert history.add([Event("bob", "salt-ledger", 1.5e9)]).duplicates == 1
    assert history.of("fay")[0].split == "test"
    assert history.save_session("a-new-session", "fay", "{}", 0) == 1


def test_derived_data_of_an_older_store_is_rebuilt(recommender: Any, store: Path) -> None:
    older = {path.name for path in (store / "derived").iterdir()}
    recommender.recommend(user="ann")
    present = {path.name for path in (store / "derived").iterdir()}
    rebuilt = {name.partition("-")[0] for name in present - older}
    assert {"snapshot", "cooccurrence", "linear"} <= rebuilt
    assert not rebuilt & {name.partition("-")[0] for name in present & older}, (
        "what was rebuilt replaces the older files"
    )


def test_columns_that_an_older_database_lacks_are_added(store: Path, history: History) -> None:
    with history._write() as db:
        db.exec_driver_sql("ALTER TABLE evoke_events DROP COLUMN split")
        db.exec_driver_sql("DROP TABLE evoke_answers")
        db.exec_driver_sql("DROP INDEX evoke_session_of")
    opening = "import sys; from store import History; print(len(History.open(sys.argv[1])))"
    processes = [
        subprocess.Popen([sys.executable, "-c", opening, str(store)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=240)[0] for process in processes] == ["18\n"] * 4
    history.add([Event("fay", "tin-comet", 1.0, split="test")])
    assert [event.split for event in history.of("fay")] == ["test"]
    assert [event.split for event in history.of("eve")] == [None] * 3
    assert history.add_once("a-post", "its-digest", [], {"accepted": 0}) == {"accepted": 0}


def test_unreadable_profile_counts_as_missing(history: History) -> None:
    history.save_profile("ann", ["tin-comet"], "a model", "a prompt", {})
    with history._write() as db:
        db.exec_driver_sql("UPDATE evoke_profiles SET profile = '{\"summary' WHERE model = 'a model'")
    assert history.profile("ann", ["tin-comet"], "a model", "a prompt") is None


def test_unknown_keys_of_store_json_are_ignored_named_once_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths.update_store_json(tmp_path, {"items": 3})
    file = tmp_path / "store.json"
    file.write_text(json.dumps({"shards": 4, "layout": "wide"} | json.loads(file.read_text())))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert paths.read_store_json(tmp_path) == {"format": 1, "items": 3}
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: ignored shards, layout, which this version does not use"
    ]
    paths.update_store_json(tmp_path, {"items": 5})
    assert json.loads(file.read_text()) == {"format": 1, "items": 5, "shards": 4, "layout": "wide"}


def test_removed_key_is_named_with_its_successor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "settings.json"
    found = known_entries({"depth": 3, "width": 1}, ["width"], file, {"depth": "use rank_depth", "height": "none"})
    assert found == {"width": 1}
    assert caplog.messages == [f"{file}: ignored depth, which this version does not use; depth: use rank_depth"]


@pytest.mark.parametrize("content", ['{"format": 2}', '{"items": 3}', "[]"])
def test_store_of_a_later_format_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StoreError, match=r"store\.json is not of format 1; .* update evoke") as refused:
        Catalog.open(tmp_path)
    assert "\n" not in str(refused.value)


def test_older_stores_hold_no_path_of_the_machine_they_were_made_on(version: str, tmp_path: Path) -> None:
    with tarfile.open(STORES / version / "store.tar.gz") as archive:
        assert all(member.uname == member.gname == "" and member.mtime == 0 for member in archive)
        archive.extractall(tmp_path, filter="data")
    files = [path for path in tmp_path.rglob("*") if path.is_file()] + [STORES / version / "history.sql"]
    for file in files:
        content = file.read_bytes()
        found = [root for root in (b"/tmp", b"/home", b"/root", b"/usr", b"/var", b"/opt") if root in content]
        assert not found, f"{file.name} names {found}"
    assert sqlite3.connect(tmp_path / "history.db").execute("SELECT count(*) FROM evoke_events").fetchone() == (18,)


def test_unreadable_session_begins_anew_and_says_so(recommender: Any, history: History) -> None:
    for state in ("{", "[]", '{"constraints": 7}'):
        with history._write() as db:
            db.exec_driver_sql(f"UPDATE evoke_sessions SET state = '{state}', version = version + 1")
        turn = recommender.session(id=SESSION).send("a crime novel from 1990 on")
        assert turn.items
        assert any("could not be read" in note for stage in turn.trace.stages for note in stage.notes)
    assert recommender.session(id=SESSION).state.messages


def test_unreadable_cached_profile_counts_as_missing(recommender: Any, history: History) -> None:
    with history._write() as db:
        db.exec_driver_sql("UPDATE evoke_profiles SET profile = '{\"queries\": 7}'")
    assert recommender.recommend(user="ann", n=3).items
