"""Data derived from catalog and history: the snapshot, co-occurrence, BM25, and the cache that holds them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.retrieval.sources import Sources
from store import Catalog, Cooccurrence, Embedder, Event, History, Item, Lexical, Snapshot
from store.cache import FORMAT, load_or_build
from store.history import Interactions

NAMES = "abcdef"


@pytest.fixture
def catalog(tmp_path: Path, embedder: Embedder) -> Iterator[Catalog]:
    with Catalog.open(tmp_path, embedder=embedder) as opened:
        opened.upsert(
            [
                Item("heat", "Heat", "A crew robs banks.", {"year": 1995, "genres": ["Crime"]}),
                Item("bag", "Messenger Bag", "Holds a laptop.", {"brand": "Nordwand", "price": 12.5}),
                Item("old", "Old", "Gone.", hidden=True),
                Item("bare", "Bare"),
            ]
        )
        yield opened


def test_snapshot_holds_the_whole_catalog(catalog: Catalog) -> None:
    snapshot = catalog.snapshot()
    assert snapshot.ids == ["bag", "bare", "heat", "old"]
    assert [snapshot.ids[row] for row in (snapshot.rows[an_id] for an_id in snapshot.ids)] == snapshot.ids
    assert snapshot.titles == ["Messenger Bag", "Bare", "Heat", "Old"]
    assert snapshot.facets == ["Nordwand", "", "1995", ""]
    assert snapshot.hidden.tolist() == [False, False, False, True]
    assert snapshot.vectors.dtype == np.float32
    np.testing.assert_allclose(snapshot.vectors, catalog.vectors(snapshot.ids), atol=1e-6)


def test_snapshot_is_mapped_from_disk_and_rebuilt_for_each_version(catalog: Catalog, tmp_path: Path) -> None:
    first = catalog.snapshot()
    assert isinstance(first.vectors, np.memmap)
    assert catalog.snapshot() is first
    catalog.upsert([Item("new", "New")])
    second = catalog.snapshot()
    assert "new" in second.rows
    assert [path.name for path in (tmp_path / "derived").iterdir()] == [f"snapshot-{FORMAT}.{second.version}"]
    assert first.vectors[0, 0] == second.vectors[0, 0]  # the memory map outlives its file


def test_damaged_snapshot_is_built_again(catalog: Catalog, tmp_path: Path, embedder: Embedder) -> None:
    version = catalog.snapshot().version
    for file, content in (("ids.json", "{"), ("hidden.npy", ""), ("vectors.npy", "")):
        (tmp_path / "derived" / f"snapshot-{FORMAT}.{version}" / file).write_text(content)
        with Catalog.open(tmp_path, embedder=embedder) as again:
            assert len(again.snapshot()) == 4


def test_nothing_derived_is_cached_during_a_write(catalog: Catalog, tmp_path: Path) -> None:
    catalog._chroma.update_facts(writing=True)
    with History.open(tmp_path) as history:
        history.add([Event("ann", "heat", 1.0), Event("ann", "bag", 2.0)])
        assert Sources.of(catalog, history, signals=True).signals
    assert len(catalog.snapshot()) == 4
    assert catalog.schema()["year"].count == 1
    assert not (tmp_path / "derived").exists()


def test_empty_catalog_has_an_empty_snapshot(tmp_path: Path, embedder: Embedder) -> None:
    with Catalog.open(tmp_path, embedder=embedder) as catalog, History.open(tmp_path) as history:
        snapshot = catalog.snapshot()
        assert snapshot.vectors.shape == (0, 384)
        assert Lexical.of(catalog, snapshot).search(["heat"], 3) == [[]]
        assert Cooccurrence.of(history, snapshot, tmp_path).popularity.shape == (0,)


def test_nothing_is_cached_without_a_writable_folder(tmp_path: Path) -> None:
    made = rows_of("a", "b")
    for folder in (None, tmp_path / "not-there"):
        assert load_or_build(folder, "x", "1", Snapshot, lambda: made) is made
    assert not list(tmp_path.iterdir())


def rows_of(*ids: str) -> Snapshot:
    n = len(ids)
    return Snapshot("v", list(ids), list(ids), [""] * n, np.zeros(n, bool), np.zeros((n, 2), np.float32))


def events(*histories: str, times: list[float] | None = None) -> Interactions:
    """Return the events of one user for each word, one for each letter."""
    users = [user for user, word in enumerate(histories) for _ in word]
    items = [NAMES.index(letter) for word in histories for letter in word]
    clock = times or [float(at) for word in histories for at in range(len(word))]
    return Interactions(np.array(users, np.int32), np.array(items, np.int32), np.array(clock), [], list(NAMES))


def test_items_of_the_same_users_co_occur() -> None:
    fitted = Cooccurrence.fit(events("ab", "ab", "ac", "d"), rows_of(*NAMES))
    scores = fitted.together(np.array([0]), np.array([1.0]))
    assert scores[1] > scores[2] > 0
    assert scores[[0, 3, 4, 5]].tolist() == [0] * 4
    both = fitted.together(np.array([0, 1]), np.array([1.0, 0.5]))
    assert both[2] == pytest.approx(scores[2])
    assert fitted.together(np.array([], dtype=int), np.array([])).tolist() == [0] * 6
    assert fitted.popularity.tolist() == [3, 2, 1, 1, 0, 0]


def test_nearer_transitions_count_more() -> None:
    fitted = Cooccurrence.fit(events("abc"), rows_of(*NAMES))
    after = fitted.followed_by.toarray()[0]
    assert after[1] > after[2] > 0
    assert fitted.followed_by.toarray()[2].tolist() == [0] * 6  # nothing came after it


def test_items_outside_the_catalog_do_not_count() -> None:
    fitted = Cooccurrence.fit(events("acb", "ab"), rows_of("a", "b"))
    assert fitted.popularity.tolist() == [2, 2]
    after = fitted.followed_by.toarray()[0]
    assert after[1] > after[0] == 0


def test_recent_events_are_those_of_the_last_quarter_of_the_time_range() -> None:
    def recent(*times: float) -> list[float]:
        return [float(count) for count in Cooccurrence.fit(events("abcdef", times=list(times)), rows_of(*NAMES)).recent]

    year = 365 * 86400.0
    assert recent(*(1.5e9 + year * at for at in (0, 1, 5, 7, 9, 10))) == [0, 0, 0, 0, 1, 1]


@given(st.lists(st.text(NAMES, max_size=9), max_size=6))
def test_two_items_co_occur_if_and_only_if_they_share_a_user(histories: list[str]) -> None:
    fitted = Cooccurrence.fit(events(*histories), rows_of(*NAMES))
    for row in range(len(NAMES)):
        together = fitted.together(np.array([row]), np.array([1.0]))
        after = fitted.followed_by.toarray()[row]
        assert together[row] == after[row] == 0
        assert (together >= 0).all()
        assert (after >= 0).all()
        users = [set(word) for word in histories if NAMES[row] in word]
        for other in range(len(NAMES)):
            shared = sum(NAMES[other] in found for found in users)
            assert (together[other] > 0) == (shared > 0 and other != row)


def test_statistics_are_cached_until_items_or_events_change(catalog: Catalog, tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        history.add([Event("u", "heat", 1.0), Event("u", "bag", 2.0)])
        names = []
        for change in (lambda: None, lambda: None, lambda: history.forget("u"), lambda: catalog.delete(["bare"])):
            change()
            fitted = Cooccurrence.of(history, catalog.snapshot(), tmp_path)
            names.append(next(path.name for path in (tmp_path / "derived").glob("cooccurrence-*")))
            assert len(list((tmp_path / "derived").glob("cooccurrence-*"))) == 1
        assert names[0] == names[1]
        assert len(set(names)) == 3
        assert fitted.popularity.sum() == 0


def test_bm25_finds_items_by_title_text_and_metadata(catalog: Catalog) -> None:
    snapshot = catalog.snapshot()
    for lexical in (Lexical.of(catalog, snapshot), Lexical.of(catalog, snapshot)):  # built, then loaded
        found = lexical.search(["nordwand", "BANKS crime", "1995", "laptop", "nothing like it", ""], 2)
        first = [snapshot.ids[hits[0][0]] if hits else None for hits in found]
        assert first == ["bag", "heat", "heat", "bag", None, None]
        assert all(score > 0 for hits in found for _, score in hits)
    assert lexical.search([], 5) == []
    assert len(lexical.search(["heat messenger bag bare"], 1)[0]) == 1


def test_unfinished_files_of_a_crash_are_removed(catalog: Catalog, tmp_path: Path) -> None:
    left = tmp_path / "derived" / ".snapshot-abc"
    left.mkdir(parents=True)
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    catalog.snapshot()
    assert not left.exists()
