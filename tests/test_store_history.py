"""The history, with the same tests on SQLite in a folder and on a real PostgreSQL."""

from __future__ import annotations

import re
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import Event, History, StoreError, tables
from store.feedback import Scale, positive_events

ANN = [Event("ann", "heat", 1.0, 5.0), Event("ann", "ronin", 2.0, 3.0), Event("ann", "alien", 3.0, 4.0)]
BOB = [Event("bob", "heat", 1.0, split="train"), Event("bob", "alien", 2.0, kind="dislike"), Event("bob", "ronin", 2.0)]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def history(place: str) -> Iterator[History]:
    with History.open(place) as opened:
        yield opened


def test_adding_the_same_events_again_adds_nothing(history: History) -> None:
    assert history.add(ANN + BOB).added == 6
    again = history.add([*ANN, Event("ann", "heat", 1.0, 1.0), Event("ann", "heat", 1.0, kind="like")])
    assert (again.added, again.duplicates) == (1, 4)
    assert len(history) == 7
    assert history.users() == ["ann", "bob"]


def test_events_are_read_back_whole_oldest_first(history: History) -> None:
    history.add(reversed(BOB))
    assert history.of("bob") == [BOB[0], BOB[2], BOB[1]]  # events of the same time stay in the order they were added in
    assert history.of("bob", limit=1) == [BOB[1]]
    assert history.of("nobody") == []


def test_version_changes_only_with_the_events(history: History, place: str) -> None:
    versions = [history.version]
    history.add(ANN)
    versions.append(history.version)
    history.add(ANN)
    assert history.version == versions[-1]
    history.forget("ann")
    versions.append(history.version)
    history.forget("ann")
    assert history.version == versions[-1]
    assert len(set(versions)) == 3
    with History.open(place) as other:
        assert other.version == versions[-1]


def test_future_events_are_stored_and_counted(history: History) -> None:
    later = Event("ann", "heat", time.time() + 1e6)
    assert history.add([later, ANN[0]]).future == 1
    assert history.of("ann")[-1] == later


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event("", "heat", 1.0), '"user" is empty'),
        (Event("ann", "heat", float("nan")), '"timestamp" is not a finite number'),
        (Event("ann", "heat", 1.0, float("inf")), '"rating" is not a finite number'),
        (Event("ann", 7, 1.0), '"item" is not text'),  # type: ignore[arg-type]
        (Event("ann\x00", "heat", 1.0), "NUL"),
        (Event("ann", "heat", 1.0, kind="love"), '"kind" is none of dislike, hide, like, seen, view'),  # type: ignore[arg-type]
    ],
)
def test_event_that_cannot_be_stored_is_refused(history: History, event: Event, message: str) -> None:
    with pytest.raises(StoreError, match=re.escape(message)):
        history.add([event])
    assert len(history) == 0


def test_ratings_of_a_five_point_scale_are_positive_from_four_up(history: History) -> None:
    history.add(ANN)
    assert [event.item for event in history.positive(history.of("ann"))] == ["heat", "alien"]


def test_ratings_of_other_scales_are_positive_from_the_users_mean_up(history: History) -> None:
    tens = [Event("ann", item, at, rating) for at, (item, rating) in enumerate([("a", 9.0), ("b", 6.0), ("c", 3.0)])]
    history.add(tens)
    assert [event.item for event in history.positive(tens)] == ["a", "b"]


def test_kind_decides_before_rating(history: History) -> None:
    kinds = [Event("ann", kind, 1.0, 5.0, kind) for kind in ("view", "like", "dislike", "seen", "hide")]  # type: ignore[arg-type]
    history.add([*kinds, Event("ann", "bare", 2.0)])
    assert [event.item for event in history.positive(history.of("ann"))] == ["view", "like", "bare"]


def test_interactions_are_the_positive_events_by_user_and_time(history: History) -> None:
    history.add([*BOB, *ANN])
    found = history.interactions()
    assert [found.user_ids[user] for user in found.users] == ["ann", "ann", "bob", "bob"]
    assert [found.item_ids[item] for item in found.items] == ["heat", "alien", "heat", "ronin"]
    assert found.timestamps.tolist() == [1, 3, 1, 2]
    assert len(history.interactions(["train"])) == 1
    assert len(history.interactions([])) == 0


RATED = st.builds(
    Event,
    st.sampled_from(["ann", "bob", "cat"]),
    st.just("x"),
    st.just(0.0),
    st.none() | st.sampled_from([0.0, 1.0, 3.0, 4.0, 5.0, 10.0]),
    st.none() | st.sampled_from(["view", "like", "dislike", "seen", "hide"]),
)


@given(st.lists(RATED), st.sampled_from([Scale(1, 5), Scale(0, 10), Scale(0, 1), Scale(None, None)]))
def test_positive_events_follow_the_written_rule(events: list[Event], scale: Scale) -> None:
    def expected(event: Event) -> bool:
        if event.kind is not None:
            return event.kind in ("view", "like")
        if event.rating is None:
            return True
        ratings = [other.rating for other in events if other.user == event.user and other.rating is not None]
        return event.rating >= (4 if scale == Scale(1, 5) else fmean(ratings))

    assert [*map(id, positive_events(events, scale))] == [id(event) for event in events if expected(event)]


@given(st.floats(0.1, 10), st.integers(1, 30))
def test_equal_ratings_are_all_positive(rating: float, n: int) -> None:
    events = [Event("ann", f"item{at}", float(at), rating) for at in range(n)]
    assert positive_events(events, Scale(0, 10)) == events


def test_profile_is_found_for_its_history_and_for_a_longer_one(history: History) -> None:
    history.add(ANN)
    history.save_profile("ann", ["a", "b"], "m", "f", {"summary": "é"})
    assert history.profile("ann", ["a", "b"], "m", "f") is not None
    exact, later = history.profile("ann", ["a", "b"], "m", "f"), history.profile("ann", ["a", "b", "c"], "m", "f")
    assert exact and exact.exact and exact.profile == {"summary": "é"}
    assert later and not later.exact and later.history == ["a", "b"]
    for other in (["a"], ["b", "a"], ["x", "b", "c"], []):
        assert history.profile("ann", other, "m", "f") is None
    assert history.profile("ann", ["a", "b"], "other model", "f") is None
    assert history.profile("ann", ["a", "b"], "m", "other prompts") is None
    assert history.profile("bob", ["a", "b"], "m", "f") is None


def test_new_profile_replaces_the_former(history: History) -> None:
    history.add(ANN)
    history.save_profile("ann", ["a"], "m", "f", {"n": 1})
    history.save_profile("ann", ["a", "b"], "m", "f", {"n": 2})
    found = history.profile("ann", ["a", "b"], "m", "f")
    assert found and found.profile == {"n": 2}
    assert history.forget("ann").rows == {"events": 3, "profiles": 1, "sessions": 0}


def test_each_history_without_a_user_has_its_own_profile(history: History) -> None:
    history.save_profile(None, ["a"], "m", "f", {"n": 1})
    history.save_profile(None, ["b"], "m", "f", {"n": 2})
    found = [history.profile(None, ids, "m", "f") for ids in (["a"], ["b"], ["a", "b"])]
    assert [cached and cached.profile["n"] for cached in found] == [1, 2, None]


def test_forget_leaves_nothing_in_any_row(history: History) -> None:
    history.add(ANN + BOB)
    history.save_profile("ann", ["heat"], "m", "f", {"summary": "of ann"})
    assert history.forget("ann").rows == {"events": 3, "profiles": 1, "sessions": 0}
    assert history.users() == ["bob"]
    assert history.profile("ann", ["heat"], "m", "f") is None
    assert not history.forget("ann")
    # A request that began before the deletion may end after it.
    history.save_profile("ann", ["heat"], "m", "f", {"summary": "of ann"})
    assert not history.knows("ann")


def test_forget_leaves_nothing_in_any_byte(tmp_path: Path) -> None:
    user, others = secrets.token_hex(16), [f"u{n}" for n in range(300)]
    assert len(user) == 32
    with History.open(tmp_path) as history:
        for at in range(3):
            history.add([Event(name, f"item{at}", float(at), split=f"of {name}") for name in [*others, user]])
        history.save_profile(user, ["item0"], "m", "f", {"summary": f"{user} likes {user * 500}"})
        history.save_profile(user, ["item0", "item1"], "m", "f", {"summary": user})
        assert _files_with(user, tmp_path)
        with History.open(tmp_path) as other:
            assert len(other.of(user)) == 3
            history.forget(user)
        assert _files_with(user, tmp_path) == []
        assert len(history) == 900
    assert _files_with(user, tmp_path) == []


def test_forget_reports_a_reader_that_holds_the_log_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.tables.BUSY_SECONDS", 0.2)
    with History.open(tmp_path) as history:
        history.add(ANN)
        reader = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM evoke_events").fetchone()
        with pytest.raises(StoreError, match="run forget again"):
            history.forget("ann")
        assert history.knows("ann") and not history.forget("nobody"), "an unknown user needs no scrubbing"
        reader.close()
        again = history.forget("ann")
        assert again and not any(again.rows.values()), "the interrupted work is finished, and reported"
        assert _files_with("ann", tmp_path) == []
        assert not history.knows("ann") and not history.forget("ann")


def test_forget_scrubs_the_files_after_an_interrupted_forget(
    history: History, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.add(ANN + BOB)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="interrupted"):
        broken.setattr(tables, "scrub", _interrupt)
        history.forget("ann")
    with History.open(place) as other:
        assert other.knows("ann") and other.of("ann") == []
        assert other.forget("bob").rows["events"] == 3  # this scrubs the files of both users
        assert not other.knows("ann") and not other.forget("ann")


def _interrupt(_: object) -> None:
    raise RuntimeError("interrupted")


def test_forget_of_an_unknown_user_scrubs_nothing(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.add(BOB)
    monkeypatch.setattr(tables, "scrub", _interrupt)
    assert not history.forget("ann")


def test_idempotency_keys_are_stored_as_hashes_and_outlive_forget(
    tmp_path: Path,
) -> None:
    events, digest = [Event("zoe-7f3a", "heat", 1.0)], "d1f7" * 16
    with History.open(tmp_path) as history:
        assert history.add_once("zoe-7f3a:order-17", digest, events, {"accepted": 1}) == {"accepted": 1}
        history.forget("zoe-7f3a")
        assert _files_with("zoe-7f3a", tmp_path) == _files_with(digest, tmp_path) == []
        # A client that got no answer sends it again: it is not added again.
        assert history.add_once("zoe-7f3a:order-17", digest, events, {"accepted": 7}) == {"accepted": 1}
        assert not history.knows("zoe-7f3a")


def test_post_with_an_idempotency_key_counts_once(history: History) -> None:
    assert history.add_once("key", "digest", ANN, {"accepted": 3}) == {"accepted": 3}
    assert history.add_once("key", "digest", BOB, {"accepted": 7}) == {"accepted": 3}
    assert history.users() == ["ann"]
    with pytest.raises(StoreError, match="used with other content"):
        history.add_once("key", "other", BOB, {"accepted": 3})


@pytest.mark.parametrize("then", ["add", "forget"])
def test_any_write_deletes_answers_older_than_a_day(
    history: History, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    history.add_once("key", "digest", ANN, {"accepted": 3})
    monkeypatch.setattr("store.idempotency.KEPT", -1)
    history.add(BOB) if then == "add" else history.forget("nobody")
    with history._read() as db:
        assert tables.count(db, tables.answers) == 0


def test_id_that_is_not_utf_8_is_refused_in_one_line(history: History) -> None:
    for asked in (history.knows, history.of, history.forget):
        with pytest.raises(StoreError, match="not valid UTF-8"):
            asked("\udcff")


def _files_with(user: str, folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and user.encode() in path.read_bytes()]


WRITE = """
import sys
from store import Event, History
with History.open(sys.argv[1]) as history:
    for at in range(40):
        history.add([Event(sys.argv[2], f"i{at}", float(at)), Event("all", f"i{at}", float(at))])
"""


def test_several_processes_add_events_at_the_same_time(place: str) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, place, f"u{n}"]) for n in range(4)]
    assert [writer.wait(240) for writer in writers] == [0] * 4
    with History.open(place) as history:
        assert len(history) == 5 * 40
        assert [event.item for event in history.of("all")] == [f"i{at}" for at in range(40)]


def test_database_that_does_not_answer_is_reported_in_one_line_without_its_password() -> None:
    with pytest.raises(StoreError) as refused:
        History.open("postgresql://nobody:secret-word@127.0.0.1:9/none")
    assert "\n" not in str(refused.value)
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize("url", ["mysterydb://host/x", "postgresql://host:port/x"])
def test_url_that_cannot_be_parsed_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(StoreError, match="not understood"):
        History.open(url)
