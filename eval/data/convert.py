"""Convert files of public datasets into a dataset folder: items.jsonl and events.csv."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eval.errors import EvalError

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_ARTICLE = re.compile(r"^(.*), (The|A|An|Les|Le|La|L'|Die|Der|Das|Il|El)$")
_TAG = re.compile(r"<[^>]*>")
_TEXT = 2000  # the most characters of a product's description

Row = tuple[str, str, float, int]


def movielens(paths: list[Path], dataset: Path) -> None:
    """Convert the zip file of a MovieLens dataset, in the older format (.dat, ::) or the newer one (.csv)."""
    (path,) = paths
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            films = _member(archive, names, "movies")
            _write_items(dataset, (_film(row) for row in films))
            ratings = _member(archive, names, "ratings")
            _write_events(dataset, ((user, item, float(rating), int(when)) for user, item, rating, when, *_ in ratings))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError) as error:
        raise EvalError(f"{path} is not a MovieLens archive ({error}); delete it to fetch it again") from error


def amazon(paths: list[Path], dataset: Path) -> None:
    """Convert the reviews and products of one category of the Amazon reviews of 2018. A product without a usable title gets its
    number as title."""
    reviews, products = paths
    try:
        reviewed: set[str] = set()
        _write_events(dataset, _reviews(reviews, reviewed))
        _write_items(dataset, _products(products, reviewed))
    except (gzip.BadGzipFile, EOFError, zlib.error, KeyError, TypeError, ValueError) as error:
        raise EvalError(
            f"{reviews} or {products} has an unexpected format ({error}); delete it to fetch it again"
        ) from error


def _member(archive: zipfile.ZipFile, names: dict[str, str], stem: str) -> Iterator[list[str]]:
    if f"{stem}.dat" in names:
        with archive.open(names[f"{stem}.dat"]) as file:
            for line in io.TextIOWrapper(file, "latin-1"):
                yield line.rstrip("\r\n").split("::")
        return
    with archive.open(names[f"{stem}.csv"]) as file:
        lines = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""))
        next(lines)
        yield from lines


def _film(row: list[str]) -> dict[str, Any]:
    id, title, kinds, *_ = row
    year = _YEAR.search(title)
    title = _YEAR.sub("", title).strip()
    if moved := _ARTICLE.match(title):
        title = f"{moved[2]}{'' if moved[2].endswith(chr(39)) else ' '}{moved[1]}"
    genres = [] if kinds.startswith("(") else kinds.split("|")
    metadata: dict[str, Any] = {"genres": genres}
    if year:
        metadata["year"] = int(year[1])
    text = f"{', '.join(genres)} film" if genres else "Film"
    return {"id": id, "title": title, "text": f"{text} of {year[1]}." if year else f"{text}.", "metadata": metadata}


def _reviews(path: Path, reviewed: set[str]) -> Iterator[Row]:
    for review in _lines(path):
        reviewed.add(review["asin"])
        yield review["reviewerID"], review["asin"], float(review["overall"]), int(review["unixReviewTime"])


def _products(path: Path, reviewed: set[str]) -> Iterator[dict[str, Any]]:
    left = set(reviewed)
    for product in _lines(path):
        if product["asin"] in left:
            left.discard(product["asin"])
            yield _product(product)
    for asin in sorted(left):
        yield {"id": asin, "title": asin, "text": "", "metadata": {}}


def _product(product: dict[str, Any]) -> dict[str, Any]:
    title = _clean(product.get("title"))
    # Some titles are pieces of the page's JavaScript.
    if not title or "getTime" in title:
        title = product["asin"]
    parts = [*_strings(product.get("description")), *_strings(product.get("feature"))]
    metadata: dict[str, Any] = {}
    if brand := _clean(product.get("brand")):
        metadata["brand"] = brand
    if categories := [name for each in _strings(product.get("category")) if (name := _clean(each)) and len(name) < 60]:
        metadata["categories"] = categories
    price = re.fullmatch(r"\$([\d,]+\.\d\d)", _clean(product.get("price")))
    if price:
        metadata["price"] = float(price[1].replace(",", ""))
    text = " ".join(filter(None, map(_clean, parts)))[:_TEXT]
    return {"id": product["asin"], "title": title[:300], "text": text, "metadata": metadata}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _clean(value: Any) -> str:
    """Return the text without markup and repeated spaces; "" for a value that is not a string."""
    return " ".join(_TAG.sub(" ", html.unescape(value)).split()) if isinstance(value, str) else ""


def _write_items(dataset: Path, items: Iterable[dict[str, Any]]) -> None:
    partial = dataset / "items.jsonl.new"
    with partial.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    partial.replace(dataset / "items.jsonl")


def _write_events(dataset: Path, events: Iterable[Row]) -> None:
    partial = dataset / "events.csv.new"
    with partial.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("user", "item", "rating", "timestamp"))
        rows.writerows(events)
    partial.replace(dataset / "events.csv")
