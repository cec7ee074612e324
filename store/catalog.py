"""The catalog: items, their vectors and metadata in one Chroma collection, in the store's folder or on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from store import paths
from store.cache import load_or_build
from store.chroma import Connection, connect, in_batches
from store.chroma_records import HIDDEN, to_item
from store.embedder import Embedder
from store.errors import StoreError
from store.filters import Field, fields_of, normalise_filter
from store.records import Hit, Item
from store.snapshot import Snapshot
from store.writer import Upserted, check, new_version, writing

_PAGE = 2000
_ITEMS_CACHED = 5000
# With a filter, a scan of the matching vectors is exact, and faster than the index up to this many matches.
_SCAN = 20_000
_NO_CATALOG = "there is no catalog at {0}; run `evoke index DIR --store {0}` first"


class Catalog:
    """The items of one store. Open it with `Catalog.open`."""

    def __init__(self, connection: Connection, folder: Path | None, embedder: Embedder) -> None:
        self._chroma = connection
        self.folder = folder
        self.embedder = embedder
        self._snapshot: Snapshot | None = None
        self._items: tuple[str, dict[str, Item]] = "", {}

    @classmethod
    def open(
        cls,
        place: str | Path,
        *,
        embedder: Embedder | None = None,
        create: bool = True,
        chroma: str | None = None,
    ) -> Catalog:
        """Open the catalog in a store folder, or on a Chroma server.

        Args:
            place: the store's folder, or a server's URL: `http://host:port`, optionally with `/collection`.
            embedder: the embedding model; by default the one that the catalog was made with, or that was trained for the store
                (all-MiniLM-L6-v2 for a new catalog).
            create: whether to create a catalog if there is none.
            chroma: the URL of a server that holds the vectors of a store folder; by default the one in `store.json`, if any.

        Raises StoreError if there is no catalog and `create` is false, or if another embedding model made it.
        """
        folder, where, name = paths.locate_chroma(place, chroma)
        if not create and isinstance(where, Path) and not where.is_dir():
            raise StoreError(_NO_CATALOG.format(place))
        trained = None
        if folder:
            paths.make_folder(folder)
            trained = paths.trained_encoder(folder)
            embedder = embedder or (Embedder(str(trained)) if trained else None)
        connection = connect(where, name)
        try:
            if not connection.exists():
                if not create:
                    raise StoreError(_NO_CATALOG.format(place))
                _create(connection, embedder or Embedder())
            return cls(connection, folder, _check_embedder(connection, embedder, trained is not None))
        except BaseException:
            connection.close()
            raise

    @property
    def version(self) -> str:
        """Return a text that changes with every committed change of content, by any process."""
        return str(self._chroma.facts["version"])

    @property
    def settled(self) -> bool:
        """Return whether no write is in progress, or was left unfinished by a crash."""
        return not self._chroma.facts.get("writing")

    @property
    def cache_folder(self) -> Path | None:
        """Return the folder for cached derived data; None during a write, when the version does not describe the content."""
        return self.folder if self.settled else None

    def upsert(self, items: Iterable[Item], *, progress: Callable[[int, int], None] | None = None) -> Upserted:
        """Add the items, or change those that differ. Unchanged texts are not embedded again.

        `progress(done, total)` is called after each part; the total is 0 if `items` is not a sequence.
        Raises StoreBusy while another process writes, and StoreError for an item that cannot be stored: if `items` is a
        sequence, nothing is written then, else the batches before it are.
        """
        total = 0
        if isinstance(items, Sequence):
            total = len(items)
            check(items)
        done, result = 0, Upserted()

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress and count:
                progress(done, total)

        with writing(self._chroma, self.folder, self.embedder, advance) as writer:
            source = iter(items)
            while batch := list(islice(source, writer.batch)):
                result += writer.upsert(batch)
        return result

    def delete(self, ids: Iterable[str]) -> int:
        """Remove these items; return how many of them were in the catalog."""
        with writing(self._chroma, self.folder, self.embedder) as writer:
            return writer.delete(list(dict.fromkeys(ids)))

    def get(self, ids: Sequence[str]) -> dict[str, Item]:
        """Return the items of these ids, in their order; ids that are not in the catalog are left out."""
        wanted = list(dict.fromkeys(ids))
        version = self.version
        if self._items[0] != version or len(self._items[1]) > _ITEMS_CACHED:
            self._items = version, {}
        cached = self._items[1]
        missing = [an_id for an_id in wanted if an_id not in cached]
        found = {an_id: to_item(an_id, *row) for an_id, row in self._chroma.records(missing, texts=True).items()}
        # During a write the version does not describe the content, so nothing is cached.
        if len(missing) <= _PAGE and self.settled and self.version == version:
            cached |= found
        found |= {an_id: cached[an_id] for an_id in wanted if an_id in cached}
        return {an_id: found[an_id] for an_id in wanted if an_id in found}

    def items(self) -> Iterator[Item]:
        """Yield all items, including hidden ones, read a page at a time."""
        for page in in_batches(self.ids(), _PAGE):
            yield from self.get(page).values()

    def ids(self) -> list[str]:
        """Return the ids of all items, including hidden ones, sorted."""
        return self._chroma.ids()

    def __len__(self) -> int:
        return int(self._chroma.ask(lambda collection: collection.count()))

    def __contains__(self, an_id: object) -> bool:
        return isinstance(an_id, str) and bool(self._chroma.records([an_id]))

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Return the vectors of these items, (n, dim) float32 with rows of length 1. Raises StoreError for an unknown id."""
        found = self._chroma.vectors(list(dict.fromkeys(ids)))
        missing = next((an_id for an_id in ids if an_id not in found), None)
        if missing is not None:
            raise StoreError(f'there is no item "{missing}" in the catalog; look its id up in the dataset')
        return np.stack([found[an_id] for an_id in ids]) if ids else np.zeros((0, self.embedder.dim), dtype=np.float32)

    def query(self, vectors: np.ndarray, k: int, where: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """Return, for each of the (q, dim) vectors, the `k` items with the highest cosine similarity, best first, none hidden.

        Without a filter this is one Chroma call for all vectors. If few items match the filter, these are scanned instead,
        since a selective filter costs the index most of its recall.
        """
        vectors = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        if k < 1 or not len(vectors):
            return [[] for _ in vectors]
        snapshot = self.snapshot()
        allowed = self.matching(where)
        count = int((~snapshot.hidden).sum()) if allowed is None else len(allowed)
        if allowed is not None and count <= _SCAN:
            return snapshot.nearest(vectors, k, snapshot.rows_of(allowed))
        return self._nearest(vectors, k, snapshot, allowed, count)

    def matching(self, where: Mapping[str, Any] | None) -> set[str] | None:
        """Return the ids of the items that match the filter and are not hidden; None if every item that is not hidden matches."""
        clause = normalise_filter(where, self.schema())
        if clause is None:
            return None
        both = {"$and": [clause, {HIDDEN: False}]}
        return set(self._chroma.ask(lambda collection: collection.get(where=both, include=[])["ids"]))

    def schema(self) -> dict[str, Field]:
        """Return the metadata fields that filters may use, most frequent first."""
        return self.snapshot().schema

    def snapshot(self) -> Snapshot:
        """Return the whole catalog in memory, as of its present version."""
        version = self.version
        if self._snapshot is None or self._snapshot.version != version:
            self._snapshot = load_or_build(
                self.cache_folder, "snapshot", version, Snapshot, lambda: self._read_snapshot(version)
            )
        return self._snapshot

    def close(self) -> None:
        """Close the connection to Chroma."""
        self._chroma.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_snapshot(self, version: str) -> Snapshot:
        ids, titles, facets, hidden = self.ids(), list[str](), list[str](), list[bool]()
        vectors = np.zeros((len(ids), self.embedder.dim), dtype=np.float32)

        def read() -> Iterator[Item]:
            for start in range(0, len(ids), _PAGE):
                page = ids[start : start + _PAGE]
                vectors[start : start + len(page)] = self.vectors(page)
                for item in self.get(page).values():
                    titles.append(item.title)
                    facets.append(_facet(item))
                    hidden.append(item.hidden)
                    yield item

        schema = fields_of(read())
        untrained = self.embedder.untrained(vectors)
        return Snapshot(version, ids, titles, facets, np.array(hidden, dtype=bool), vectors, untrained, schema)

    def _nearest(
        self, vectors: np.ndarray, k: int, snapshot: Snapshot, allowed: set[str] | None, count: int
    ) -> list[list[Hit]]:
        """Ask the index for more items than wanted, since some are not allowed; scan for the vectors with too few items left."""
        total = len(snapshot.ids)
        fetch = min(total, k if count == total else 2 * k * total // max(count, 1) + 10)
        found = self._chroma.ask(
            lambda collection: collection.query(
                query_embeddings=vectors, n_results=max(fetch, 1), include=["distances"]
            )
        )
        hits = []
        for ids, distances in zip(found["ids"], found["distances"], strict=True):
            left = [
                Hit(an_id, 1.0 - distance)
                for an_id, distance in zip(ids, distances, strict=True)
                if (an_id in allowed if allowed is not None else snapshot.is_visible(an_id))
            ]
            hits.append(left[:k])
        short = [row for row, found_hits in enumerate(hits) if len(found_hits) < min(k, count)]
        if short:
            rows = np.flatnonzero(~snapshot.hidden) if allowed is None else snapshot.rows_of(allowed)
            for row, exact in zip(short, snapshot.nearest(vectors[short], k, rows), strict=True):
                hits[row] = exact
        return hits


def _facet(item: Item) -> str:
    value = item.metadata.get("year") or item.metadata.get("brand") or ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _create(connection: Connection, embedder: Embedder) -> None:
    connection.create({"version": new_version()} | embedder.facts)


def _check_embedder(connection: Connection, embedder: Embedder | None, trained: bool) -> Embedder:
    """Return the embedder, or the one the catalog was made with; raise StoreError if these differ."""
    facts = connection.facts
    if "fingerprint" not in facts:
        raise StoreError(f"the collection in {connection.place} was not made by evoke; name another one")
    embedder = embedder or Embedder(facts["model"])
    if embedder.fingerprint != facts["fingerprint"]:
        # A trained model is found in the store's folder, so the setting that names another one is not needed.
        remedy = "remove the setting embedding_model" if trained else "use that model"
        raise StoreError(
            f"the store was made with the embedding model {facts['model']} (weights {facts['fingerprint'][:8]}), "
            f"not {embedder.name} ({embedder.fingerprint[:8]}); {remedy}, or index into a new store"
        )
    return embedder
