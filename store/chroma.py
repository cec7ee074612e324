"""The connection to one Chroma collection: fresh when another process has written, whole again after a crash.

Chroma keeps a log and the metadata in SQLite, which a crash cannot break, and the vector index in plain files, which a crash
in the middle of a save can. So a folder's index is saved once, at the end of a write; until then the log holds everything.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from store.errors import StoreError

T = TypeVar("T")

_NEVER = 10_000_000
_AT_ONCE = 2
_TRIES = 4


class Connection:
    """One collection of a Chroma folder or server. Safe to share between threads."""

    def __init__(self, place: str | Path, name: str) -> None:
        self.place = place
        self.local = isinstance(place, Path)
        self._name = name
        self._lock = threading.RLock()
        self._client: Any = None
        self._collection: Any = None
        self._version: str | None = None

    def exists(self) -> bool:
        """Whether there is such a collection."""
        return self._name in [found.name for found in self._connected().list_collections()]

    def create(self, facts: Mapping[str, Any]) -> None:
        """Make the collection, with these facts as its metadata."""
        settings = {"space": "cosine"} | ({"sync_threshold": _NEVER} if self.local else {})
        self._connected().create_collection(
            self._name, configuration={"hnsw": settings}, metadata=dict(facts), embedding_function=None
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The collection's own metadata, as it stands now, whoever wrote it."""
        return dict(
            self._guarded(lambda: self._connected().get_collection(self._name, embedding_function=None)).metadata or {}
        )

    def note(self, **facts: Any) -> None:
        """Change some of the collection's own metadata."""
        merged = self.facts | facts
        self.ask(lambda collection: collection.modify(metadata=merged))
        self._version = merged.get("version")

    @property
    def batch(self) -> int:
        """The largest number of records that one call may carry."""
        return int(self._connected().get_max_batch_size())

    def ask(self, call: Callable[[Any], T]) -> T:
        """`call(collection)`, on a connection that knows what other processes have written."""
        for attempt in range(_TRIES):
            collection = self._current()
            try:
                return self._guarded(lambda: call(collection))  # noqa: B023
            except _Stale as error:
                if attempt + 1 == _TRIES:
                    raise StoreError(
                        f"the index in {self.place} is damaged ({error}); run `evoke index` again"
                    ) from error
                # Another process is writing, or saving its index just now: look again.
                time.sleep(0.1 * attempt)
                self.reopen()
        raise AssertionError("unreachable")

    def save(self, an_id: str) -> None:
        """Have a folder's vector index saved now, by touching one record; the log is dropped by Chroma thereafter."""
        self._threshold(_AT_ONCE)
        for _ in range(_AT_ONCE + 1):
            self.ask(lambda collection: collection.update(ids=[an_id], metadatas=[{"evoke:saved": time.time()}]))
        self._threshold(_NEVER)

    def sound(self) -> bool:
        """Whether the vector index of a folder can be read, every vector of it."""
        try:
            for batch in in_batches(self.ask(lambda collection: collection.get(include=[])["ids"]), 1000):
                self.ask(lambda collection: collection.get(ids=batch, include=["embeddings"]))  # noqa: B023
        except StoreError:
            return False
        return True

    def drop_index(self) -> None:
        """Throw a folder's saved vector index away: Chroma rebuilds what its log still holds."""
        self.close()
        for folder in Path(self.place).glob("*-*-*-*-*"):
            shutil.rmtree(folder)

    def reopen(self) -> None:
        """Connect anew; calls that are under way in other threads fail and are tried again."""
        if self.local:
            self.close()

    def close(self) -> None:
        """Let go of the client. The next call connects again."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = self._collection = None

    def _threshold(self, records: int) -> None:
        self.ask(lambda collection: collection.modify(configuration={"hnsw": {"sync_threshold": records}}))
        # An index that is loaded keeps the threshold it was loaded with.
        self.reopen()

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _client(self.place)
            return self._client

    def _current(self) -> Any:
        with self._lock:
            if self._collection is not None and self.local and self.facts.get("version") != self._version:
                self.reopen()
            if self._collection is None:
                self._collection = self._guarded(
                    lambda: self._connected().get_collection(self._name, embedding_function=None)
                )
                self._version = (self._collection.metadata or {}).get("version")
            return self._collection

    def _guarded(self, call: Callable[[], T]) -> T:
        from chromadb.errors import ChromaError, NotFoundError
        from httpx import HTTPError

        client = self._client
        try:
            return call()
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
            return StoreError(
                f"{self.place}: the disk is full, or a file-size limit is met; make room, then index again"
            )
        if "readonly database" in text or "unable to open database" in text:
            return StoreError(f"{self.place} cannot be written; choose another --store, or correct its permissions")
        return _Stale(text[-160:]) if self.local else StoreError(f"the Chroma server {self.place} failed: {text[:160]}")


class _Stale(Exception):
    """The connection does not know what is on disk now."""


def _client(place: str | Path) -> Any:
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    try:
        if isinstance(place, Path):
            return chromadb.PersistentClient(path=str(place), settings=settings)
        url = urlsplit(place)
        return chromadb.HttpClient(
            host=url.hostname or "",
            port=url.port or (443 if url.scheme == "https" else 8000),
            ssl=url.scheme == "https",
            settings=settings,
        )
    except Exception as error:
        raise StoreError(
            f"Chroma at {place} cannot be opened ({' '.join(str(error).split())[:160]}); correct the place"
        ) from error


def in_batches(values: Sequence[T], size: int) -> list[Sequence[T]]:
    """The values in slices of at most `size`."""
    return [values[start : start + size] for start in range(0, len(values), size)]
