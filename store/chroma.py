"""The connection to one Chroma collection, in a folder or on a server, that knows what other processes have written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from store.checkpoint import NEVER, opening
from store.errors import StoreError

T = TypeVar("T")
Record = tuple[str | None, dict[str, Any]]

_PAGE = 2000
_TRIES = 5
# What Chroma and SQLite say of a query that no other connection would answer either.
_UNANSWERABLE = ("Invalid where clause", "too many SQL variables", "Expression tree is too large")


class Connection:
    """One collection of a Chroma folder or server. Safe to share between threads; open it with `connect`."""

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
        """Whether there is such a collection."""
        from chromadb.errors import NotFoundError

        def found() -> bool:
            try:
                return bool(self._connected().get_collection(self._name, embedding_function=None))
            except NotFoundError:
                return False

        return self._guarded(found)

    def create(self, facts: Mapping[str, Any]) -> None:
        """Make the collection, with these facts as its own metadata."""
        settings = {"space": "cosine"} | ({"sync_threshold": NEVER} if self.folder else {})
        made = {"configuration": {"hnsw": settings}, "metadata": dict(facts), "embedding_function": None}
        self._guarded(lambda: self._connected().create_collection(self._name, **made))

    @property
    def facts(self) -> dict[str, Any]:
        """The collection's own metadata as it stands, whoever wrote it; as it last stood where other vectors took its place."""
        if self._facts[1] and self.folder and not self.folder.is_dir():
            return self._facts[1]  # what is open is read on; a database that is gone cannot be opened once more
        changes = _changes(self.folder) if self.folder else None
        if changes is None or changes != self._facts[0]:
            found = self._guarded(lambda: self._connected().get_collection(self._name, embedding_function=None))
            self._facts = changes, dict(found.metadata or {})
        return self._facts[1]

    def note(self, **facts: Any) -> None:
        """Change some of the collection's own metadata."""
        merged = self.facts | facts
        self.ask(lambda collection: collection.modify(metadata=merged))
        self._version = merged["version"]

    @property
    def largest_batch(self) -> int:
        """How many records one call may carry."""
        return int(self._guarded(lambda: self._connected().get_max_batch_size()))

    def ids(self) -> list[str]:
        """The ids of all records, sorted."""
        return sorted(self.ask(lambda collection: collection.get(include=[])["ids"]))

    def records(self, ids: Sequence[str], *, texts: bool = False) -> dict[str, Record]:
        """Document (None unless `texts`) and metadata of those ids that there are."""
        include = ["metadatas", "documents"] if texts else ["metadatas"]
        found: dict[str, Record] = {}
        for batch in in_batches(ids, _PAGE):
            rows = self.ask(lambda collection: collection.get(ids=list(batch), include=include))  # noqa: B023
            documents = rows["documents"] or [None] * len(rows["ids"])
            found |= zip(rows["ids"], zip(documents, map(dict, rows["metadatas"]), strict=True), strict=True)
        return found

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The (dim,) float32 vectors of those ids that there are."""
        found: dict[str, np.ndarray] = {}
        for batch in in_batches(ids, _PAGE):
            rows = self.ask(lambda collection: collection.get(ids=list(batch), include=["embeddings"]))  # noqa: B023
            found |= zip(rows["ids"], np.asarray(rows["embeddings"], dtype=np.float32), strict=True)
        return found

    def ask(self, call: Callable[[Any], T]) -> T:
        """`call(collection)`, on a connection that knows what other processes have written."""
        for attempt in range(_TRIES):
            collection = self._current()
            try:
                return self._guarded(lambda: call(collection))  # noqa: B023
            except _Stale as error:
                if attempt + 1 == _TRIES:
                    raise StoreError(f"the index in {self.place} fails ({error}); run `evoke index` again") from error
                # Another process is writing just now, and its records are not in the index loaded here.
                time.sleep(0.1 * attempt)
                self.reopen()
        raise AssertionError("unreachable")

    def reopen(self) -> None:
        """Connect anew at the next call; calls under way in other threads fail, and are made again."""
        with self._lock:
            if self._client is not None and self.folder:
                self._client.close()
                self._client = self._collection = None

    def close(self) -> None:
        """Let go of the client, if nobody else in this process holds it."""
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

    def _current(self) -> Any:
        with self._lock:
            if self._collection is not None and self.folder and self.facts.get("version") != self._version:
                self.reopen()
            if self._collection is None:
                # The index is read from its files at the first call: not while another process saves it.
                with opening(self.folder) if self.folder else nullcontext():
                    collection = self._guarded(
                        lambda: self._connected().get_collection(self._name, embedding_function=None)
                    )
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
            raise self._explained(error) from error
        except Exception as error:
            if client is not self._client:
                raise _Stale("reconnected") from error
            raise

    def _explained(self, error: Exception) -> Exception:
        text = " ".join(str(error).split())
        if "disk is full" in text or "disk I/O" in text:
            return StoreError(f"{self.place}: the disk is full, or a file-size limit is met; make room and index again")
        if "readonly database" in text or "unable to open database" in text:
            return StoreError(f"{self.place} cannot be written; choose another --store, or correct its permissions")
        if any(said in text for said in _UNANSWERABLE):
            return StoreError(f"{self.place} cannot answer this query ({text[-160:]}); ask for less at once")
        return (
            _Stale(text[-160:]) if self.folder else StoreError(f"the Chroma server {self.place} failed: {text[:160]}")
        )


class _Stale(Exception):
    """The connection does not know what is on disk now."""


_connections: dict[tuple[str, str], Connection] = {}
_guard = threading.Lock()


def connect(place: str | Path, name: str) -> Connection:
    """The connection to this collection: one for each place in a process, since Chroma itself keeps but one."""
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
    """SQLite's own count of the transactions on Chroma's database, read in microseconds; None where it keeps none."""
    try:
        with (folder / "chroma.sqlite3").open("rb", buffering=0) as database:
            header = database.read(28)
    except OSError:
        return None
    # With a write-ahead log, which Chroma does not use today, the count stands still.
    return header[24:] if header[18:20] == b"\x01\x01" else None


def in_batches(values: Sequence[T], size: int) -> list[Sequence[T]]:
    """The values in slices of at most `size`."""
    return [values[start : start + size] for start in range(0, len(values), size)]
