"""Datasets fetched from a server on this machine: whole, in pieces, changed underneath, or not at all."""

from __future__ import annotations

import gzip
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eval.errors import EvalError
from eval.fetch import fetch
from store.load import read_events, read_items
from store.readers import Problems
from store.records import Event, Item


class Home:
    """A server of files. `cut` bytes are sent of the next answer, then the line goes dead; `asked` holds path and range."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        home = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                home.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data"

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        asked = to.headers.get("Range")
        self.asked.append((to.path, asked))
        content = self.files.get(to.path.removeprefix("/data/"))
        if content is None:
            to.send_error(404)
            return
        tag = f'"{hash(content)}"'
        start = 0
        if asked and self.ranges and to.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        to.send_response(206 if start else 200)
        to.send_header("Content-Length", str(len(content) - start))
        to.send_header("ETag", tag)
        to.end_headers()
        end = len(content) if self.cut is None else start + self.cut
        self.cut = None
        to.wfile.write(content[start:end])


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    thread = threading.Thread(target=home.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    home.files["ml-latest-small.zip"] = _zip(
        {
            "ml-latest-small/movies.csv": "movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n"
            '2,"Matrix, The (1999)",Action\n3,Babel,(no genres listed)\n',
            "ml-latest-small/ratings.csv": "userId,movieId,rating,timestamp\n7,1,4.5,964982703\n7,2,3.0,964982704\n",
        }
    )
    yield home
    home.server.shutdown()
    home.server.server_close()
    thread.join()


def _zip(files: dict[str, str], encoding: str = "utf-8") -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text.encode(encoding))
    return whole.getvalue()


def _dataset(folder: Path) -> tuple[dict[str, Item], list[Event]]:
    items = {item.id: item for item in read_items(folder / "items.jsonl", Problems())}
    return items, list(read_events(folder / "events.csv", items, Problems()))


def test_movielens_becomes_a_dataset(home: Home, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    folder = fetch("movielens-latest-small", tmp_path, lambda *step: steps.append(step), home.url)
    items, events = _dataset(folder)
    assert items["2"] == Item("2", "The Matrix", "Action film of 1999.", {"genres": ["Action"], "year": 1999})
    assert items["3"] == Item("3", "Babel", "Film.", {"genres": []})
    assert events == [Event("7", "1", 964982703, 4.5), Event("7", "2", 964982704, 3.0)]
    size = len(home.files["ml-latest-small.zip"])
    assert steps[-1] == ("ml-latest-small.zip", size, size)


def test_the_older_movielens_form_is_read(home: Home, tmp_path: Path) -> None:
    films, ratings = (
        "1::Léon (1994)::Crime|Drama\r\n2::Vie est belle, La (1997)::Comedy\r\n",
        "5::1::4::978300760\n5::2::3::1\n",
    )
    home.files["ml-1m.zip"] = _zip({"ml-1m/movies.dat": films, "ml-1m/ratings.dat": ratings}, "latin-1")
    items, events = _dataset(fetch("movielens-1m", tmp_path, base_url=home.url))
    assert [item.title for item in items.values()] == ["Léon", "La Vie est belle"] and len(events) == 2


def test_amazon_reviews_become_a_dataset(home: Home, tmp_path: Path) -> None:
    reviews = [
        {"reviewerID": f"A{n}", "asin": f"B{n % 3}", "overall": 5.0, "unixReviewTime": 1_500_000_000} for n in range(6)
    ]
    products = [
        {
            "asin": "B0",
            "title": "Pens &amp; <b>Ink</b>",
            "description": ["Blue.", "Fine  tip."],
            "brand": "Acme",
            "category": ["Office", "Pens"],
            "price": "$1,204.50",
        },
        {"asin": "B1", "title": "var x = getTime()", "price": "", "description": "not a list"},
        {"asin": "B9", "title": "Nobody reviewed this"},
    ]
    for name, rows in (("categoryFilesSmall/Pens_5.json.gz", reviews), ("metaFiles2/meta_Pens.json.gz", products)):
        home.files[name] = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    folder = fetch("amazon-2018/Pens", tmp_path, base_url=home.url)
    items, events = _dataset(folder)
    assert folder.name == "amazon-2018-Pens" and len(events) == 6 and set(items) == {"B0", "B1", "B2"}
    metadata = {"brand": "Acme", "categories": ["Office", "Pens"], "price": 1204.5}
    assert items["B0"] == Item("B0", "Pens & Ink", "Blue. Fine tip.", metadata)
    assert items["B1"].title == "B1" and items["B2"].title == "B2"


def test_what_is_there_is_checked_and_not_fetched_again(home: Home, tmp_path: Path) -> None:
    folder = fetch("movielens-latest-small", tmp_path, base_url=home.url)
    asked = len(home.asked)
    assert fetch("movielens-latest-small", tmp_path, base_url=home.url) == folder
    assert len(home.asked) == asked
    record = json.loads((folder / "source" / "checksums.json").read_text())["ml-latest-small.zip"]
    assert record["bytes"] == len(home.files["ml-latest-small.zip"]) and len(record["sha256"]) == 64
    (folder / "source" / "ml-latest-small.zip").write_bytes(b"something else")
    with pytest.raises(EvalError, match="delete it to fetch it again"):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)


def test_a_file_that_changed_at_its_home_is_refused(home: Home, tmp_path: Path) -> None:
    archive = fetch("movielens-latest-small", tmp_path, base_url=home.url) / "source" / "ml-latest-small.zip"
    archive.unlink()
    good = home.files["ml-latest-small.zip"]
    home.files["ml-latest-small.zip"] = _zip({"movies.csv": "x"})
    with pytest.raises(EvalError, match=r"is not the file that was fetched first .* remove its entry"):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)
    assert not archive.exists()
    home.files["ml-latest-small.zip"] = good
    assert fetch("movielens-latest-small", tmp_path, base_url=home.url)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on_where_it_stopped(home: Home, tmp_path: Path, ranges: bool) -> None:
    home.cut, home.ranges = 100, ranges
    with pytest.raises(EvalError, match="run it again to go on"):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)
    steps: list[int] = []
    folder = fetch("movielens-latest-small", tmp_path, lambda _, done, __: steps.append(done), home.url)
    assert home.asked[-1] == ("/data/ml-latest-small.zip", "bytes=100-")
    assert (folder / "source" / "ml-latest-small.zip").read_bytes() == home.files["ml-latest-small.zip"]
    assert len(_dataset(folder)[0]) == 3
    assert sorted(file.name for file in (folder / "source").iterdir()) == ["checksums.json", "ml-latest-small.zip"]


def test_a_cut_download_of_a_file_that_changed_begins_anew(home: Home, tmp_path: Path) -> None:
    home.cut = 100
    with pytest.raises(EvalError):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)
    text = "movieId,title,genres\n9,Other (2001),Drama\n"
    home.files["ml-latest-small.zip"] = _zip(
        {"movies.csv": text, "ratings.csv": "userId,movieId,rating,timestamp\n1,9,4,5\n"}
    )
    assert set(_dataset(fetch("movielens-latest-small", tmp_path, base_url=home.url))[0]) == {"9"}


def test_what_cannot_be_fetched_is_said_in_one_line(home: Home, tmp_path: Path) -> None:
    home.files["ml-32m.zip"] = b"no zip"
    reasons = {
        ("movielens-2b", home.url): "no dataset to fetch",
        ("amazon-2018/../secret", home.url): "no dataset to fetch",
        ("movielens-1m", home.url): "answers 404",
        ("movielens-1m", "http://127.0.0.1:9/data"): "was not fetched to its end",
        ("movielens-1m", "file:///etc"): "no web address",
        ("movielens-32m", home.url): "not the archive expected",
    }
    for (name, url), reason in reasons.items():
        with pytest.raises(EvalError, match=reason) as error:
            fetch(name, tmp_path, base_url=url)
        assert "\n" not in str(error.value) and "; " in str(error.value)
    assert not list(tmp_path.rglob("items.jsonl"))


def test_a_folder_that_cannot_be_written_is_said(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="cannot be written"):
        fetch("movielens-latest-small", tmp_path / "file", base_url=home.url)
