"""Connection to one Chroma collection, in a folder or on a server, that sees what other processes have written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from store.errors import StoreError
from store.locks import index_lock

T = TypeVar("T")
Record = tuple[str | None, dict[str, Any]]

NEVER = 10_000_000
"""More records than Chroma's log ever holds: as a `sync_threshold`, it turns Chroma's own saving off (see `store.checkpoint`)."""
_PAGE = 2000
_TRIES = 5
# Messages of Chroma and SQLite about a query that fails on any connection.
_UNANSWERABLE = ("Invalid where clause", "too many SQL variables", "Expression tree is too large")


class Connection:
    """One collection of a Chroma folder or server. Threads may share it. Open it with `connect`."""

    def __init__(self, place: str | Path, name: str) -> None:
        self.place = place
        self.folder = place if isinstance(place, Path) else None
        self._name = name
        self._lock = threading.RLock()
        self._client: Any = None
        self._collection: Any = None
        self._version: str | None = None
        self._facts: tuple[bytes | None, dict[str, Any]] = None, {}
        self._holders = 1

    def exists(self) -> bool:
        """Return whether the collection exists."""
        from chromadb.errors import NotFoundError

        def found() -> bool:
            try:
                return bool(self._get())
            except NotFoundError:
                return False

        return self._guarded(found)

    def create(self, facts: Mapping[str, Any]) -> None:
        """Create the collection, with these facts as its own metadata."""
        settings = {"space": "cosine"} | ({"sync_threshold": NEVER} if self.folder else {})
        options = {"configuration": {"hnsw": settings}, "metadata": dict(facts), "embedding_function": None}
        self._guarded(lambda: self._connected().create_collection(self._name, **options))

    @property
    def facts(self) -> dict[str, Any]:
        """Return the collection's own metadata, read again when any process has changed it.

        If the folder was replaced by that of another encoder, the last known metadata is returned.
        """
        if self._facts[1] and self.folder and not self.folder.is_dir():
            return self._facts[1]  # the open connection still reads the deleted files; they cannot be opened again
        changes = _changes(self.folder) if self.folder else None
        if changes is None or changes != self._facts[0]:
            found = self._guarded(self._get)
            self._facts = changes, dict(found.metadata or {})
        return self._facts[1]

    def update_facts(self, **facts: Any) -> None:
        """Change some entries of the collection's own metadata."""
        merged = self.facts | facts
        self.ask(lambda collection: collection.modify(metadata=merged))
        self._version = merged["version"]

    @property
    def largest_batch(self) -> int:
        """Return how many records one call may carry."""
        return int(self._guarded(lambda: self._connected().get_max_batch_size()))

    def ids(self) -> list[str]:
        """Return the ids of all records, sorted."""
        return sorted(self.ask(lambda collection: collection.get(include=[])["ids"]))

    def records(self, ids: Sequence[str], *, texts: bool = False) -> dict[str, Record]:
        """Return the document (None unless `texts`) and the metadata of each of these ids that exists."""
        include = ["metadatas", "documents"] if texts else ["metadatas"]
        found: dict[str, Record] = {}
        for batch in in_batches(ids, _PAGE):
            rows = self.ask(lambda collection: collection.get(ids=list(batch), include=include))  # noqa: B023
            documents = rows["documents"] or [None] * len(rows["ids"])
            found |= zip(rows["ids"], zip(documents, map(dict, rows["metadatas"]), strict=True), strict=True)
        return found

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the (dim,) float32 vector of each of these ids that exists."""
        found: dict[str, np.ndarray] = {}
        for batch in in_batches(ids, _PAGE):
            rows = self.ask(lambda collection: collection.get(ids=list(batch), include=["embeddings"]))  # noqa: B023
            found |= zip(rows["ids"], np.asarray(rows["embeddings"], dtype=np.float32), strict=True)
        return found

    def ask(self, call: Callable[[Any], T]) -> T:
        """Return `call(collection)`, made on a connection that sees what other processes have written.

        Raises StoreError, in one line, for what Chroma refuses.
        """
        for attempt in range(_TRIES):
            collection = self._current()
            try:
                return self._guarded(lambda: call(collection))  # noqa: B023
            except _Stale as error:
                if attempt + 1 == _TRIES:
                    raise StoreError(f"the index in {self.place} fails ({error}); run `evoke index` again") from error
                # Another process is writing, and its records are not in the index that is loaded here.
                time.sleep(0.1 * attempt)
                self.reopen()
        raise AssertionError("unreachable")

    def reopen(self) -> None:
        """Close the connection; the next call opens it again. Calls in progress in other threads fail and are repeated."""
        with self._lock:
            if self._client is not None and self.folder:
                self._client.close()
                self._client = self._collection = None

    def close(self) -> None:
        """Close the connection, unless another holder in this process uses it."""
        with _guard, self._lock:
            self._holders -= 1
            if self._holders == 0:
                _connections.pop((str(self.place), self._name), None)
                if self._client is not None:
                    self._client.close()
                self._client = self._collection = None

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _client(self.place)
            return self._client

    def _get(self) -> Any:
        return self._connected().get_collection(self._name, embedding_function=None)

    def _current(self) -> Any:
        with self._lock:
            if self._collection is not None and self.folder and self.facts.get("version") != self._version:
                self.reopen()
            if self._collection is None:
                # The first call reads the index files: wait while another process saves them.
                with index_lock(self.folder, save=False) if self.folder else nullcontext():
                    collection = self._guarded(self._get)
                    self._version = (collection.metadata or {}).get("version")
                    self._guarded(collection.count)
                self._collection = collection
            return self._collection

    def _guarded(self, call: Callable[[], T]) -> T:
        from chromadb.errors import ChromaError, NotFoundError
        from httpx import HTTPError

        client = self._client
        try:
            return call()
        except StoreError:
            raise
        except NotFoundError as error:
            raise StoreError(f"{self.place} holds no catalog; run `evoke index DIR` first") from error
        except HTTPError as error:
            raise StoreError(f"the Chroma server {self.place} does not answer; start it, or correct its URL") from error
        except ChromaError as error:
            raise self._explain(error) from error
        except Exception as error:
            if client is not self._client:
                raise _Stale("reconnected") from error
            raise

    def _explain(self, error: Exception) -> Exception:
        text = " ".join(str(error).split())
        if "disk is full" in text or "disk I/O" in text:
            return StoreError(f"{self.place}: the disk is full, or a file-size limit is met; make room and index again")
        if "readonly database" in text or "unable to open database" in text:
            return StoreError(f"{self.place} cannot be written; choose another --store, or correct its permissions")
        if any(message in text for message in _UNANSWERABLE):
            return StoreError(f"{self.place} cannot answer this query ({text[-160:]}); ask for less at once")
        return (
            _Stale(text[-160:]) if self.folder else StoreError(f"the Chroma server {self.place} failed: {text[:160]}")
        )


class _Stale(Exception):
    """The connection does not see what is on disk now."""


_connections: dict[tuple[str, str], Connection] = {}
_guard = threading.Lock()


def connect(place: str | Path, name: str) -> Connection:
    """Return the connection to this collection: the same one for all its holders in this process, as Chroma requires."""
    place = place.resolve() if isinstance(place, Path) else place
    with _guard:
        found = _connections.get((str(place), name))
        if found is None:
            found = _connections[str(place), name] = Connection(place, name)
        else:
            found._holders += 1
        return found


def _client(place: str | Path) -> Any:
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    try:
        if isinstance(place, Path):
            return chromadb.PersistentClient(path=str(place), settings=settings)
        url = urlsplit(place)
        secure = url.scheme == "https"
        port = url.port or (443 if secure else 8000)
        return chromadb.HttpClient(host=url.hostname or "", port=port, ssl=secure, settings=settings)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise StoreError(f"Chroma at {place} cannot be opened ({reason}); correct the place, or start it") from error


def _changes(folder: Path) -> bytes | None:
    """Return SQLite's count of the transactions on Chroma's database, read in microseconds; None if it keeps none."""
    try:
        with (folder / "chroma.sqlite3").open("rb", buffering=0) as database:
            header = database.read(28)
    except OSError:
        return None
    # With a write-ahead log, which Chroma does not use, SQLite does not update the count.
    return header[24:] if header[18:20] == b"\x01\x01" else None


def in_batches(values: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split the values into slices of at most `size`."""
    return [values[start : start + size] for start in range(0, len(values), size)]
