"""Fetch public datasets from their publishers and convert them to dataset folders. They are for research use: see their terms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx2

from eval.data.convert import amazon, movielens
from eval.errors import EvalError
from store.paths import write_atomically

Progress = Callable[[str, int, int | None], None]

_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
_MOVIELENS = {"movielens-latest-small": "ml-latest-small", "movielens-1m": "ml-1m", "movielens-32m": "ml-32m"}
_SECONDS = 60


class _Source(NamedTuple):
    home: str
    files: list[str]
    convert: Callable[[list[Path], Path], None]


def fetch(name: str, folder: Path, progress: Progress | None = None, base_url: str | None = None) -> Path:
    """Download a public dataset, unless it is there already; return its dataset folder (items.jsonl, events.csv) in `folder`.

    An interrupted download continues where it stopped. The checksum of each file is recorded in checksums.json at the first
    download; later a file with another checksum is refused. Raises EvalError for an unknown name, a failed download, or a file
    with a wrong checksum.

    Args:
        name: "movielens-latest-small", "movielens-1m", "movielens-32m", or "amazon-2018/CATEGORY" with the category as in
            the publisher's file names, for example "amazon-2018/Office_Products" (users and items with five reviews or more).
        folder: where the dataset folder is made.
        progress: called with (file name, bytes so far, bytes in all or None).
        base_url: the URL of a mirror, instead of the publisher's.
    """
    source = _source(name)
    dataset = Path(folder) / name.replace("/", "-")
    raw = dataset / "source"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        paths = [_file(f"{(base_url or source.home).rstrip('/')}/{file}", raw, progress) for file in source.files]
        if not (dataset / "items.jsonl").exists() or not (dataset / "events.csv").exists():
            source.convert(paths, dataset)
    except OSError as error:
        raise EvalError(f"{dataset} cannot be written ({error.strerror or error}); choose another folder") from error
    return dataset


def _source(name: str) -> _Source:
    if name in _MOVIELENS:
        return _Source(_GROUPLENS, [f"{_MOVIELENS[name]}.zip"], movielens)
    family, _, category = name.partition("/")
    if family == "amazon-2018" and category.replace("_", "").isalpha():
        files = [f"categoryFilesSmall/{category}_5.json.gz", f"metaFiles2/meta_{category}.json.gz"]
        return _Source(_MCAULEY, files, amazon)
    raise EvalError(f'"{name}" is not a known dataset; give {", ".join(_MOVIELENS)} or amazon-2018/CATEGORY')


def _file(url: str, raw: Path, progress: Progress | None) -> Path:
    """Return the local file of this URL: download it if it is missing, and check it against the checksum of the first download."""
    path = raw / url.rpartition("/")[2]
    record = raw / "checksums.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    fresh = not path.exists()
    if fresh:
        _download(url, path, progress)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    first = known.get(path.name)
    if first is None:
        known[path.name] = {"sha256": sha256, "bytes": path.stat().st_size, "url": url}
        write_atomically(record, (json.dumps(known, indent=1) + "\n").encode())
    elif first["sha256"] != sha256:
        remedy = f"remove its entry in {record} to accept it" if fresh else "delete it to fetch it again"
        if fresh:
            path.unlink()
        raise EvalError(
            f"{url if fresh else path} is not the file of the first download (sha256 {sha256[:12]}…); {remedy}"
        )
    return path


def _download(url: str, path: Path, progress: Progress | None) -> None:
    """Download into NAME.part and rename it at the end. Continue an earlier NAME.part if the server still has the same file."""
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.tag")
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        # The server sends only the rest if its file still has this tag (or date), else the whole file.
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="utf-8")}
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=_SECONDS, follow_redirects=True) as answer:
            if answer.status_code == 416 and have:
                part.unlink()
                return _download(url, path, progress)
            if not answer.is_success:
                problem = f"{answer.status_code} {answer.reason_phrase}"
                raise EvalError(f"{url} answers {problem}; check the name, or try again later")
            if answer.status_code != 206:
                have = 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if validator and not validator.startswith("W/"):
                write_atomically(tag, validator.encode())
            else:
                tag.unlink(missing_ok=True)
            with part.open("ab" if have else "wb") as file:
                for block in answer.iter_raw():
                    have += file.write(block)
                    if progress:
                        progress(path.name, have, total)
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise EvalError(f"{url} is not a web address; give a base_url that begins with https:// or http://") from error
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EvalError(
            f"the download of {url} failed ({reason}); run it again to continue where it stopped"
        ) from error
    part.replace(path)
    return tag.unlink(missing_ok=True)
