"""Fetching datasets from a local server: in one go, after an interruption, from changed files, and with errors."""

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
    """A file server. It sends only `cut` bytes of the next response if set; `requests` holds the path and range of each request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        home = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                home.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data"

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        range_asked = to.headers.get("Range")
        self.requests.append((to.path, range_asked))
        content = self.files.get(to.path.removeprefix("/data/"))
        if content is None:
            to.send_error(404)
            return
        tag = f'"{hash(content)}"'
        start = 0
        if range_asked and self.ranges and to.headers.get("If-Range") == tag:
            start = int(range_asked.removeprefix("bytes=").removesuffix("-"))
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


def test_movielens_is_converted_to_a_dataset(home: Home, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    folder = fetch("movielens-latest-small", tmp_path, lambda *step: steps.append(step), home.url)
    items, events = _dataset(folder)
    assert items["2"] == Item("2", "The Matrix", "Action film of 1999.", {"genres": ["Action"], "year": 1999})
    assert items["3"] == Item("3", "Babel", "Film.", {"genres": []})
    assert events == [Event("7", "1", 964982703, 4.5), Event("7", "2", 964982704, 3.0)]
    size = len(home.files["ml-latest-small.zip"])
    assert steps[-1] == ("ml-latest-small.zip", size, size)


def test_older_movielens_format_is_read(home: Home, tmp_path: Path) -> None:
    films, ratings = (
        "1::Léon (1994)::Crime|Drama\r\n2::Vie est belle, La (1997)::Comedy\r\n",
        "5::1::4::978300760\n5::2::3::1\n",
    )
    home.files["ml-1m.zip"] = _zip({"ml-1m/movies.dat": films, "ml-1m/ratings.dat": ratings}, "latin-1")
    items, events = _dataset(fetch("movielens-1m", tmp_path, base_url=home.url))
    assert [item.title for item in items.values()] == ["Léon", "La Vie est belle"] and len(events) == 2


def test_amazon_reviews_are_converted_to_a_dataset(home: Home, tmp_path: Path) -> None:
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


def test_existing_download_is_checked_and_not_repeated(home: Home, tmp_path: Path) -> None:
    folder = fetch("movielens-latest-small", tmp_path, base_url=home.url)
    count = len(home.requests)
    assert fetch("movielens-latest-small", tmp_path, base_url=home.url) == folder
    assert len(home.requests) == count
    record = json.loads((folder / "source" / "checksums.json").read_text())["ml-latest-small.zip"]
    assert record["bytes"] == len(home.files["ml-latest-small.zip"]) and len(record["sha256"]) == 64
    (folder / "source" / "ml-latest-small.zip").write_bytes(b"something else")
    with pytest.raises(EvalError, match="delete it to fetch it again"):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)


def test_file_that_changed_at_the_publisher_is_refused(home: Home, tmp_path: Path) -> None:
    archive = fetch("movielens-latest-small", tmp_path, base_url=home.url) / "source" / "ml-latest-small.zip"
    archive.unlink()
    good = home.files["ml-latest-small.zip"]
    home.files["ml-latest-small.zip"] = _zip({"movies.csv": "x"})
    with pytest.raises(EvalError, match=r"is not the file of the first download .* remove its entry"):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)
    assert not archive.exists()
    home.files["ml-latest-small.zip"] = good
    assert fetch("movielens-latest-small", tmp_path, base_url=home.url)


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_download_continues_where_it_stopped(home: Home, tmp_path: Path, ranges: bool) -> None:
    home.cut, home.ranges = 100, ranges
    with pytest.raises(EvalError, match="run it again to continue"):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)
    steps: list[int] = []
    folder = fetch("movielens-latest-small", tmp_path, lambda _, done, __: steps.append(done), home.url)
    assert home.requests[-1] == ("/data/ml-latest-small.zip", "bytes=100-")
    assert (folder / "source" / "ml-latest-small.zip").read_bytes() == home.files["ml-latest-small.zip"]
    assert len(_dataset(folder)[0]) == 3
    assert sorted(file.name for file in (folder / "source").iterdir()) == ["checksums.json", "ml-latest-small.zip"]


def test_interrupted_download_of_a_changed_file_starts_again(home: Home, tmp_path: Path) -> None:
    home.cut = 100
    with pytest.raises(EvalError):
        fetch("movielens-latest-small", tmp_path, base_url=home.url)
    text = "movieId,title,genres\n9,Other (2001),Drama\n"
    home.files["ml-latest-small.zip"] = _zip(
        {"movies.csv": text, "ratings.csv": "userId,movieId,rating,timestamp\n1,9,4,5\n"}
    )
    assert set(_dataset(fetch("movielens-latest-small", tmp_path, base_url=home.url))[0]) == {"9"}


def test_each_failed_fetch_gives_one_line_with_a_remedy(home: Home, tmp_path: Path) -> None:
    home.files["ml-32m.zip"] = b"no zip"
    reasons = {
        ("movielens-2b", home.url): "not a known dataset",
        ("amazon-2018/../secret", home.url): "not a known dataset",
        ("movielens-1m", home.url): "answers 404",
        ("movielens-1m", "http://127.0.0.1:9/data"): "failed .*; run it again",
        ("movielens-1m", "file:///etc"): "not a web address",
        ("movielens-32m", home.url): "not a MovieLens archive",
    }
    for (name, url), reason in reasons.items():
        with pytest.raises(EvalError, match=reason) as error:
            fetch(name, tmp_path, base_url=url)
        assert "\n" not in str(error.value) and "; " in str(error.value)
    assert not list(tmp_path.rglob("items.jsonl"))


def test_unwritable_folder_is_reported(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="cannot be written"):
        fetch("movielens-latest-small", tmp_path / "file", base_url=home.url)
