"""Indexing a dataset into a store: completely, or not at all if the data is bad, also after a crash or on a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store import BadData, Catalog, Cooccurrence, Embedder, Event, History, StoreBusy, StoreError
from store.index import index, reserve
from store.locks import write_lock
from store.paths import default_store, last_store, read_store_json
from tests.helpers.services import missing

ITEMS = [
    {"id": "heat", "title": "Heat", "text": "A crew robs banks.", "metadata": {"year": 1995}},
    {"id": "ronin", "title": "Ronin", "text": "Spies chase a case.", "metadata": {"year": 1998}},
    {"id": "alien", "title": "Alien", "text": "A monster aboard.", "metadata": {"year": 1979}},
    {"id": "brazil", "title": "Brazil", "text": ""},
]
EVENTS = "user,item,rating,timestamp\nann,heat,5,1\nann,ronin,4,2\nbob,heat,,1\nbob,ronin,,2\nbob,alien,1,3\n"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "dataset")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def write(folder: Path, items: list[dict[str, Any]] = ITEMS, events: str = EVENTS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "events.csv").write_text(events)
    return folder


def state(store: Path) -> tuple[Any, ...]:
    """Return everything that a refused dataset must not change."""
    with Catalog.open(store, create=False) as catalog, History.open(store) as history:
        return (
            catalog.version,
            list(catalog.items()),
            history.version,
            len(history),
            (store / "store.json").read_bytes(),
        )


def test_indexing_a_dataset_again_changes_nothing(dataset: Path, store: Path, embedder: Embedder) -> None:
    progress: list[tuple[int, int]] = []
    done = index(dataset, store, embedder=embedder, progress=lambda *now: progress.append(now))
    assert (done.items.added, done.events.added, done.gone, progress[-1]) == (4, 5, 0, (4, 4))
    before = state(store)
    again = index(dataset, store, embedder=embedder)
    assert (again.items.unchanged, again.items.added, again.events.duplicates) == (4, 0, 5)
    assert state(store) == before
    facts = {"items": 4, "events": 5, "dataset": "dataset", "model": "all-MiniLM-L6-v2"}
    assert read_store_json(store).items() >= facts.items()
    assert last_store() == store
    assert sorted(path.name.partition("-")[0] for path in (store / "derived").iterdir()) == [
        "cooccurrence",
        "lexical",
        "snapshot",
    ]


def test_items_missing_from_the_file_are_counted_or_pruned(dataset: Path, store: Path, embedder: Embedder) -> None:
    index(dataset, store, embedder=embedder)
    write(dataset, ITEMS[:2], "user,item,rating,timestamp\n")
    assert index(dataset, store, embedder=embedder).gone == 2
    done = index(dataset, store, embedder=embedder, prune=True)
    assert (done.gone, done.pruned) == (0, 2)
    with Catalog.open(store) as catalog:
        assert catalog.ids() == ["heat", "ronin"]


def test_items_and_events_can_be_indexed_separately(dataset: Path, store: Path, embedder: Embedder) -> None:
    with pytest.raises(StoreError, match="no catalog"):
        index(dataset / "events.csv", store, embedder=embedder)
    assert not store.exists()
    assert index(dataset / "items.jsonl", store, embedder=embedder).events.added == 0
    assert index(dataset / "events.csv", store, embedder=embedder).events.added == 5


def test_events_alone_are_added_to_a_store_whose_model_is_a_folder(
    dataset: Path, store: Path, embedder: Embedder, tmp_path: Path
) -> None:
    model = Embedder(str(shutil.copytree(embedder.folder, tmp_path / "tuned")))
    with (model.folder / "model.safetensors").open("r+b") as weights:
        weights.seek(-4, os.SEEK_END)
        weights.write(b"\x01\x02\x03\x04")
    index(dataset / "items.jsonl", store, embedder=model)
    assert index(dataset / "events.csv", store, embedder=model).events.added == 5


def test_nothing_is_pruned_if_rows_of_items_were_skipped(
    dataset: Path, store: Path, embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    index(dataset, store, embedder=embedder)
    write(dataset, [ITEMS[0], ITEMS[1] | {"metadata": {"year": {}}}], "user,item,rating,timestamp\nann,unheard,,1\n")
    done = index(dataset, store, embedder=embedder, on_error="skip", prune=True)
    assert (done.gone, done.pruned) == (3, 0)
    assert [record.getMessage() for record in caplog.records if record.name == "evoke"] == [
        f"nothing was pruned: 1 rows of {dataset / 'items.jsonl'} were skipped, and their items may be among those gone; "
        "correct the rows"
    ]
    with Catalog.open(store) as catalog:
        assert "ronin" in catalog
    write(dataset, ITEMS[:2], "user,item,rating,timestamp\nann,unheard,,1\n")
    assert index(dataset, store, embedder=embedder, on_error="skip", prune=True).pruned == 2


def test_new_events_change_the_co_occurrence(dataset: Path, store: Path, embedder: Embedder) -> None:
    index(dataset, store, embedder=embedder)
    with Catalog.open(store) as catalog, History.open(store) as history:
        snapshot = catalog.snapshot()
        alien, brazil = snapshot.rows["alien"], snapshot.rows["brazil"]
        before = Cooccurrence.of(history, snapshot, store)
        history.add([Event("ann", "alien", 8.0, 5.0), Event("ann", "brazil", 9.0, 5.0)])
        after = Cooccurrence.of(history, snapshot, store)
        assert before.together([alien], [1.0])[brazil] == 0 < after.together([alien], [1.0])[brazil]


def test_vectors_and_events_can_be_on_servers(
    dataset: Path, store: Path, embedder: Embedder, chroma_url: str, postgres_url: str
) -> None:
    index(dataset, store, embedder=embedder, chroma=chroma_url, database=postgres_url)
    assert not (store / "chroma").exists()
    assert not (store / "history.db").exists()
    assert (store / "store.json").stat().st_mode & 0o077 == 0
    again = index(dataset, store, embedder=embedder)
    assert (again.items.unchanged, again.events.duplicates) == (4, 5)
    with Catalog.open(store) as catalog, Catalog.open(chroma_url) as server, History.open(store) as history:
        assert catalog.ids() == server.ids()
        assert history.users() == ["ann", "bob"]
        assert not history.local


def test_server_that_does_not_answer_leaves_the_store_unchanged(dataset: Path, store: Path, embedder: Embedder) -> None:
    for url in ({"chroma": "http://127.0.0.1:9"}, {"database": "postgresql://127.0.0.1:9/none"}):
        with pytest.raises(StoreError):
            index(dataset, store, embedder=embedder, **url)  # type: ignore[arg-type]
        assert not store.exists()
    index(dataset, store, embedder=embedder)
    before = state(store)
    with pytest.raises(StoreError):
        index(dataset, store, embedder=embedder, chroma="http://127.0.0.1:9")
    assert state(store) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.jsonl", '{"id": "new", "title": "New"}\n{"id": "x"\n', "items.jsonl:2: broken JSON"),
        (
            "items.jsonl",
            '{"id": "new", "title": "New"}\n{"id": "new", "title": "Other"}\n',
            "same id with different content",
        ),
        ("items.jsonl", "", "an empty catalog cannot be indexed"),
        ("events.csv", EVENTS + "cat,heat,nan,1\n", "events.csv:7: .rating. is not a finite number"),
        (
            "events.csv",
            EVENTS + "cat,unheard,,1\n",
            "events.csv:7: an event of an unknown item .unheard.; add the item",
        ),
        ("events.csv", "user,item\n", "missing column rating, timestamp"),
    ],
)
def test_bad_data_leaves_the_store_unchanged(
    dataset: Path, store: Path, embedder: Embedder, name: str, content: str, message: str
) -> None:
    good = (dataset / name).read_text()
    (dataset / name).write_text(content)
    with pytest.raises(BadData, match=message):
        index(dataset, store, embedder=embedder)
    assert not store.exists()
    (dataset / name).write_text(good)
    index(dataset, store, embedder=embedder)
    before = state(store)
    (dataset / name).write_text(content)
    with pytest.raises(BadData, match=message):
        index(dataset, store, embedder=embedder)
    assert state(store) == before


def test_skipped_rows_are_reported(dataset: Path, store: Path, embedder: Embedder) -> None:
    with (dataset / "items.jsonl").open("a") as file:
        file.write('{"id": 1, "title": "One"}\n{"id": "heat", "title": "Another"}\n')
    with (dataset / "events.csv").open("a") as file:
        file.write("cat,unheard,,1\n" * 5)
    done = index(dataset, store, embedder=embedder, on_error="skip")
    assert (done.items.added, done.events.added) == (4, 5)
    assert done.problems.counts == {
        '"id" is not text': 1,
        "the same id with different content": 1,
        "an event of an unknown item": 5,
    }
    assert done.problems.cases["an event of an unknown item"] == [
        f"{dataset / 'events.csv'}:{line}: an event of an unknown item (unheard)" for line in (7, 8, 9)
    ]


def test_other_embedding_model_leaves_the_store_unchanged(
    dataset: Path, store: Path, embedder: Embedder, tmp_path: Path
) -> None:
    index(dataset, store, embedder=embedder)
    before = state(store)
    copy = shutil.copytree(embedder.folder, tmp_path / "tuned")
    with (copy / "model.safetensors").open("r+b") as weights:
        weights.seek(-8, os.SEEK_END)
        weights.write(b"\x01" * 8)
    with pytest.raises(StoreError, match="use that model, or index into a new store"):
        index(dataset, store, embedder=Embedder(str(copy)))
    assert state(store) == before


def test_second_writer_is_refused_until_the_first_process_ends(dataset: Path, store: Path, embedder: Embedder) -> None:
    index(dataset, store, embedder=embedder)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdout.readline()
    before = state(store)
    with pytest.raises(StoreBusy, match=rf"another process \(pid {other.pid}\) is writing"):
        index(dataset, store, embedder=embedder)
    assert state(store) == before
    other.kill()
    other.communicate()
    assert index(dataset, store, embedder=embedder).items.unchanged == 4


HOLD = """
import sys
from pathlib import Path
from store.locks import write_lock
with write_lock(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_refused_run_does_not_remove_a_store_that_another_run_builds(
    dataset: Path, store: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run creates the folder just before this one does."""
    others: list[subprocess.Popen[str]] = []
    mkdir = Path.mkdir

    def late(path: Path, *args: Any, **options: Any) -> None:
        if path == store and not others:
            mkdir(store)
            others.append(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            assert others[0].stdout and others[0].stdout.readline()
            (store / "built").touch()
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(StoreBusy, match="another process"):
        index(dataset, store, embedder=embedder)
    assert (store / "built").exists()
    others[0].communicate("\n")


def test_write_lock_also_excludes_other_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def write() -> None:
        with write_lock(tmp_path):
            pass

    with ThreadPoolExecutor(1) as pool:
        with write_lock(tmp_path), write_lock(tmp_path), pytest.raises(StoreBusy, match=f"pid {os.getpid()}"):
            pool.submit(write).result()
        pool.submit(write).result()


RUN = """
import os, sys
from pathlib import Path
from store.index import index
{before}
try:
    index(Path(sys.argv[1]), Path(sys.argv[2]), progress=lambda done, total: print(done, flush=True))
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(1)
"""


def child(dataset: Path, store: Path, before: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Index in another process, which runs the code `before` first."""
    command = [sys.executable, "-c", RUN.format(before=before), str(dataset), str(store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that another user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="evoke-common-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_read_only_folder_is_refused_in_one_line(common: Path, embedder: Embedder) -> None:
    dataset, store = write(common / "dataset"), common / "store"
    index(dataset, store, embedder=embedder)
    before = state(store)
    if os.geteuid() == 0:
        # The interpreter may be in a folder that the other user cannot enter, so the user is changed after its start.
        become = "import encodings.utf_8_sig, pwd; who = pwd.getpwnam('nobody'); os.setgid(who.pw_gid); os.setuid(who.pw_uid)"
    else:
        store.chmod(0o555)
        become = ""
    for place in (store, common / "new"):
        done = child(dataset, place, become)
        assert done.returncode == 1
        assert done.stdout.startswith("StoreError")
        assert "choose another --store" in done.stdout
        assert done.stdout.count("\n") == 1
    store.chmod(0o755)
    assert state(store) == before
    assert not (common / "new").exists()


def test_file_size_limit_is_found_before_anything_is_written(dataset: Path, store: Path, embedder: Embedder) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    write(dataset, [*ITEMS, *({"id": f"n{n}", "title": f"Film {n}", "text": "word " * 200} for n in range(900))])
    done = child(dataset, store, limit)
    assert done.stdout == (
        f"StoreError {store}: about {done.stdout.split('about ')[-1].split()[0]} MB cannot be written "
        "(File too large); make room or choose another --store\n"
    )
    assert not store.exists()


def test_full_disk_is_found_before_anything_is_written(dataset: Path, common: Path) -> None:
    disk = common / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here; the test of the file-size limit covers the same code")
    try:
        done = child(dataset, disk / "store")
        assert done.returncode == 1
        assert "No space left on device); make room" in done.stdout
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_disk_that_fills_during_the_write_is_reported_in_one_line(
    dataset: Path, store: Path, embedder: Embedder
) -> None:
    """Another process may fill the disk after `reserve` has found enough room."""
    index(dataset, store, embedder=embedder)
    before = state(store)
    sizes = {path: path.stat().st_size for path in store.rglob("*") if path.is_file()}
    largest = max(sizes.values())
    limit = (
        "import resource, store.index; store.index.reserve = lambda *_: None\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))"
    )
    write(dataset, [*ITEMS, *({"id": f"n{n}", "title": f"Film {n}", "text": "word " * 60} for n in range(60))])
    done = child(dataset, store, limit)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("StoreError")
    assert "file-size limit is met; make room" in done.stdout
    assert state(store)[1] == before[1]
    assert index(dataset, store, embedder=embedder).items.added == 60


def test_reserve_leaves_no_file(tmp_path: Path) -> None:
    reserve(tmp_path, 1000, 2000)
    with pytest.raises(StoreError, match="make room or choose another --store"):
        reserve(tmp_path, 1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_killed_run_is_completed_by_the_next_run(dataset: Path, store: Path, embedder: Embedder) -> None:
    titles = [{"id": f"n{n}", "title": f"Film {n}"} for n in range(600)]
    write(dataset, titles, "user,item,rating,timestamp\n" + "".join(f"u{n % 9},n{n},,{n}\n" for n in range(600)))
    held = RUN.replace("print(done, flush=True)", "print(done, flush=True) or done > 256 and sys.stdin.read()")
    running = subprocess.Popen(
        [sys.executable, "-c", held.format(before=""), str(dataset), str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    while (line := running.stdout.readline()) and int(line) <= 256:
        pass
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert line, "the run ended before it could be killed"
    done = index(dataset, store, embedder=embedder)
    assert 256 <= done.items.unchanged < 600
    assert done.items.added == 600 - done.items.unchanged
    assert done.events.added == 600
    with Catalog.open(store) as catalog:
        assert sorted(catalog.ids()) == sorted(item["id"] for item in titles)
        assert catalog.settled
        found = catalog.query(catalog.vectors(["n3", "n550"]), 1)
        assert [hits[0].id for hits in found] == ["n3", "n550"]
        assert not (store / "chroma.before").exists()
    assert index(dataset, store, embedder=embedder).items.unchanged == 600


def test_each_dataset_has_its_own_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "films").mkdir(parents=True)
    (tmp_path / "b" / "films").mkdir(parents=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    one, two = (default_store(tmp_path / name / "films") for name in "ab")
    assert one.parent == two.parent == tmp_path / "home" / "evoke"
    assert one != two
    assert one.name.startswith("films-")
    monkeypatch.chdir(tmp_path / "a")
    assert default_store(Path("films")) == default_store(Path("../a/films/")) == one
    assert last_store() is None


def test_missing_part_fails_in_ci_and_is_skipped_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception):
        missing("a part")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="a part is not installed"):
        missing("a part")
