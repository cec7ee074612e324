"""Where stores and their parts lie, and `store.json`, the file that describes a store."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from store.compatibility import known_entries
from store.errors import StoreError

FORMAT = 1
"""The format of stores. Every later version opens the stores of 0.1.0, so it changes only where that cannot be."""
KEYS = (
    "format",
    "dataset",
    "chroma",
    "database",
    "model",
    "fingerprint",
    "dim",
    "items",
    "events",
    "retriever",
    "judged",
)
"""The keys of `store.json`."""
COLLECTION = "evoke"
RETRIEVERS = Path("trained", "retriever")
"""Folder in a store of the encoders that were trained for it; `store.json` names the one in use."""


def default_store(dataset: Path) -> Path:
    """Return the store of a dataset when none is named: in the user's data folder, by the dataset's name and path."""
    whole = Path(dataset).expanduser().resolve()
    mark = hashlib.blake2b(os.fsencode(whole), digest_size=5).hexdigest()
    return data_home() / f"{whole.name}-{mark}"


def last_store() -> Path | None:
    """Return the store that was indexed last, or None if there is none any more."""
    try:
        store = Path((data_home() / "last").read_text(encoding="utf-8"))
    except OSError:
        return None
    return store if (store / "store.json").is_file() else None


def remember_last_store(store: Path) -> None:
    """Make `last_store` return this store."""
    # Without a writable home only this convenience is lost, not the index that was just built.
    with suppress(OSError):
        data_home().mkdir(parents=True, exist_ok=True)
        write_atomically(data_home() / "last", str(Path(store).absolute()).encode())


def read_store_json(store: Path) -> dict[str, Any]:
    """Read `store.json`; return its known entries, none if the folder is not a store yet.

    Raises StoreError if the file cannot be read, or a later version with another format wrote it.
    """
    return known_entries(_entries(store), KEYS, store / "store.json")


def update_store_json(store: Path, facts: Mapping[str, Any]) -> None:
    """Merge `facts` into `store.json`. Only its owner may read the file, since it may hold a database URL."""
    # Entries of another version stay in the file: that version may open the store again.
    merged = {"format": FORMAT} | _entries(store) | dict(facts)
    write_atomically(store / "store.json", json.dumps(merged, indent=1, sort_keys=True).encode(), mode=0o600)


def _entries(store: Path) -> dict[str, Any]:
    file = store / "store.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: {error}; restore the file, or index into a new folder") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(
            f"{file} is not of format {FORMAT}; if a later version of evoke wrote it, update evoke, else index into a new folder"
        )
    return found


def trained_encoder(store: Path) -> Path | None:
    """Return the folder of the encoder that was trained for this store, with its vectors; None if none is in use.

    Raises StoreError if that folder is gone.
    """
    return _encoder(store, "retriever", "with the store's vectors")


def validation_encoder(store: Path) -> Path | None:
    """Return the folder of the trained encoder to use on validation cases, with its vectors.

    It was trained on events before the cut only; the one in use has learned from the validation period too. None if both are
    the same, or if no trained encoder is in use. Raises StoreError if the folder is gone.
    """
    return _encoder(store, "judged", "and without it nothing is measured on validation cases")


def _encoder(store: Path, key: str, loss: str) -> Path | None:
    name = read_store_json(store).get(key)
    if name and not (store / RETRIEVERS / name).is_dir():
        raise StoreError(f"{store / RETRIEVERS / name} is gone, {loss}; restore it, or index into a new store")
    return store / RETRIEVERS / name if name else None


def locate_chroma(place: str | Path, chroma: str | None) -> tuple[Path | None, str | Path, str]:
    """Return the store's folder (None for a server's URL), its Chroma folder or server URL, and the collection's name.

    `place` is a store folder or a Chroma server's URL; `chroma` is the URL of a server that holds a folder's vectors.
    """
    folder = None if str(place).startswith(("http://", "https://")) else Path(place).expanduser()
    url = (chroma or read_store_json(folder).get("chroma")) if folder else str(place)
    if folder and not url:
        return folder, (trained_encoder(folder) or folder) / "chroma", COLLECTION
    parts = urlsplit(str(url))
    return folder, f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or COLLECTION


def make_folder(folder: Path) -> None:
    """Create a store's folder, unless it is there. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made ({error.strerror}); choose another --store") from error


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new, never a part of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def data_home() -> Path:
    """Return the user's data folder of Evoke: default stores, and the name of the one indexed last."""
    base = os.environ.get("XDG_DATA_HOME")
    return Path(base if base and Path(base).is_absolute() else Path.home() / ".local" / "share") / "evoke"


def chat_history_file() -> Path:
    """Return the file that keeps the lines typed into `evoke chat`."""
    return data_home() / "chat-history"
