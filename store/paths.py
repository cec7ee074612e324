"""Where stores live, who may write one, and room on the disk before anything is written."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from store.errors import StoreBusy, StoreError

FORMAT = 1
COLLECTION = "evoke"
RETRIEVERS = Path("trained", "retriever")
"""Where in a store the embedding models lie that were trained for it; `store.json` names the one in force."""


def default_store(dataset: Path) -> Path:
    """The store of a dataset for which none is named: under the user's data folder, by name and absolute path."""
    whole = Path(dataset).expanduser().resolve()
    mark = hashlib.blake2b(os.fsencode(whole), digest_size=5).hexdigest()
    return home() / f"{whole.name}-{mark}"


def last_store() -> Path | None:
    """The store that was indexed last, or None where there is none any more."""
    try:
        store = Path((home() / "last").read_text(encoding="utf-8"))
    except OSError:
        return None
    return store if (store / "store.json").is_file() else None


def remember(store: Path) -> None:
    """Make `store` the one that `last_store` names."""
    # A home that cannot be written costs a convenience, not the index that was just built.
    with suppress(OSError):
        home().mkdir(parents=True, exist_ok=True)
        write_atomically(home() / "last", str(Path(store).absolute()).encode())


def about(store: Path) -> dict[str, Any]:
    """What `store.json` says; empty where the folder is no store yet. Raises StoreError where it cannot be read."""
    try:
        found = json.loads((store / "store.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{store / 'store.json'}: {error}; restore the file, or index into a new folder") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(f"{store} was written by another version of evoke; index the dataset into a new folder")
    return found


def describe(store: Path, facts: Mapping[str, Any]) -> None:
    """Merge `facts` into `store.json`. Readable by its owner alone, since it may hold a database URL."""
    merged = {"format": FORMAT} | about(store) | dict(facts)
    write_atomically(store / "store.json", json.dumps(merged, indent=1, sort_keys=True).encode(), mode=0o600)


def retriever(store: Path) -> Path | None:
    """The folder of the embedding model that was trained for this store, its vectors beside it; None where none is in force.

    Raises StoreError where that folder is gone.
    """
    name = about(store).get("retriever")
    if name and not (store / RETRIEVERS / name).is_dir():
        raise StoreError(
            f"{store / RETRIEVERS / name} is gone, with the store's vectors; restore it, or index into a new store"
        )
    return store / RETRIEVERS / name if name else None


def judged(store: Path) -> Path | None:
    """The folder of the embedding model that was judged before the one in force learned from later events too, its vectors
    beside it; None where the one in force is the one that was judged, or none is. Raises StoreError where it is gone."""
    name = about(store).get("judged")
    if name and not (store / RETRIEVERS / name).is_dir():
        raise StoreError(
            f"{store / RETRIEVERS / name} is gone, and without it nothing is measured on validation cases; restore it, or "
            "index into a new store"
        )
    return store / RETRIEVERS / name if name else None


def located(place: str | Path, chroma: str | None) -> tuple[Path | None, str | Path, str]:
    """The store's folder, if any, the place of its Chroma database, and the collection's name."""
    folder = None if str(place).startswith(("http://", "https://")) else Path(place).expanduser()
    url = str(place) if folder is None else chroma or about(folder).get("chroma")
    if url is None:
        home = Path(place).expanduser()
        return folder, (retriever(home) or home) / "chroma", COLLECTION
    parts = urlsplit(url)
    return folder, f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or COLLECTION


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_held: dict[Path, tuple[int, int]] = {}
_held_guard = threading.Lock()


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Be the one writer of the catalog in `store`; nests within a thread. Raises StoreBusy naming the writer's pid."""
    key, me = store.resolve(), threading.get_ident()
    with _held_guard:
        owner, depth = _held.get(key, (me, 0))
        if owner != me:
            raise StoreBusy(f"another thread of this process (pid {os.getpid()}) is writing {store}; try again later")
        lock = _lock(store) if depth == 0 else None
        _held[key] = (me, depth + 1)
    try:
        yield
    finally:
        with _held_guard:
            if depth:
                _held[key] = (me, depth)
            else:
                del _held[key]
            if lock is not None:
                os.close(lock)


@contextmanager
def alone(store: Path, what: str, doing: str) -> Iterator[None]:
    """Be the one process that changes `what` for the store, which is said to be `doing` it. Raises StoreBusy that says what the
    other one does, with its pid."""
    lock = _lock(store, f"{what}.lock", doing)
    try:
        yield
    finally:
        os.close(lock)


def _lock(store: Path, name: str = "lock", doing: str = "writing") -> int:
    try:
        handle = os.open(store / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{store} cannot be written: {error.strerror}; choose another --store") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, _, other = os.read(handle, 128).decode(errors="replace").partition(" ")
        os.close(handle)
        raise StoreBusy(
            f"another process (pid {pid or 'unknown'}) is {other or doing} {store}; wait until it is done"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()} {doing}".encode(), 0)
    return handle


def reserve(store: Path, *sizes: int) -> None:
    """Meet a full disk or a file-size limit before anything is written: take files of these bytes, give them back.

    Raises StoreError where they do not fit.
    """
    taken: list[Path] = []
    try:
        for size in sizes:
            handle, name = tempfile.mkstemp(dir=store, prefix=".reserve.")
            taken.append(Path(name))
            try:
                os.posix_fallocate(handle, 0, max(size, 1))
            finally:
                os.close(handle)
    except OSError as error:
        need = sum(sizes) / 1e6
        raise StoreError(
            f"{store}: about {need:.0f} MB cannot be written ({error.strerror}); make room or choose another --store"
        ) from error
    finally:
        for path in taken:
            path.unlink(missing_ok=True)


def home() -> Path:
    """The folder of what Evoke keeps for a person: stores, and which was indexed last."""
    base = os.environ.get("XDG_DATA_HOME")
    return Path(base if base and Path(base).is_absolute() else Path.home() / ".local" / "share") / "evoke"


def typed_lines() -> Path:
    """The file of the lines that were typed into `evoke chat`."""
    return home() / "chat-history"
