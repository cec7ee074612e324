"""The catalog: items, their vectors and their metadata in one Chroma collection, in the store's folder or on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from store import paths
from store.cache import kept
from store.chroma import Connection, connect, in_batches
from store.chroma_records import HIDDEN, item_of
from store.embedder import Embedder
from store.errors import StoreError
from store.filters import Field, fields_of, load_fields, normalised, save_fields
from store.records import Hit, Item
from store.snapshot import Snapshot
from store.writer import Upserted, check, new_version, writing

_PAGE = 2000
_AT_HAND = 5000
# With a filter, a scan over the matching vectors is exact, and quicker than the index until so many match.
_SCAN = 20_000
_NO_CATALOG = "there is no catalog at {0}; run `evoke index DIR --store {0}` first"


class Catalog:
    """The items of one store. Open it with `Catalog.open`."""

    def __init__(self, connection: Connection, folder: Path | None, embedder: Embedder) -> None:
        self._chroma = connection
        self.folder = folder
        self.embedder = embedder
        self._schema: tuple[str, dict[str, Field]] | None = None
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
        """The catalog in a store folder, or on a Chroma server (`http://host:port`, optionally `/collection`).

        Without an `embedder`, the model that the catalog was made with is used (all-MiniLM-L6-v2 for a new one), or that
        trained for the store. A store folder may have its vectors on a server: on that of the URL `chroma`, else on that which
        it remembers.
        Raises StoreError where there is none and `create` is false, and where another embedding model made it.
        """
        folder, where, name = paths.located(place, chroma)
        if not create and isinstance(where, Path) and not where.is_dir():
            raise StoreError(_NO_CATALOG.format(place))
        trained = None
        if folder:
            _make(folder)
            trained = _trained_for(folder)
            embedder = embedder or trained
        connection = connect(where, name)
        try:
            if not connection.exists():
                if not create:
                    raise StoreError(_NO_CATALOG.format(place))
                _create(connection, embedder or Embedder())
            return cls(connection, folder, _same_model(connection, embedder, trained is not None))
        except BaseException:
            connection.close()
            raise

    @property
    def version(self) -> str:
        """Changes with every committed change of content, whichever process made it."""
        return str(self._chroma.facts["version"])

    @property
    def settled(self) -> bool:
        """Whether no write is under way, nor one left unfinished by a crash."""
        return not self._chroma.facts.get("writing")

    @property
    def derived_in(self) -> Path | None:
        """The folder where what is derived from the catalog is kept: none while its content is not that of its version."""
        return self.folder if self.settled else None

    def upsert(self, items: Iterable[Item], *, progress: Callable[[int, int], None] | None = None) -> Upserted:
        """Add the items, or change those that differ; what has not changed costs no embedding.

        `progress(done, total)` is called as it goes; the total is 0 where `items` does not tell its length.
        Raises StoreBusy while another process writes, and StoreError for an item that cannot be kept: nothing is written then
        where `items` is a sequence, else the batches before it are.
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
        """Remove items; returns how many there were."""
        with writing(self._chroma, self.folder, self.embedder) as writer:
            return writer.delete(list(dict.fromkeys(ids)))

    def get(self, ids: Sequence[str]) -> dict[str, Item]:
        """The items of these ids, in their order; ids that are not in the catalog are left out."""
        wanted = list(dict.fromkeys(ids))
        version = self.version
        if self._items[0] != version or len(self._items[1]) > _AT_HAND:
            self._items = version, {}
        at_hand = self._items[1]
        missing = [an_id for an_id in wanted if an_id not in at_hand]
        found = {an_id: item_of(an_id, *row) for an_id, row in self._chroma.records(missing, texts=True).items()}
        # In the middle of a write the version says nothing about the content: keep nothing then.
        if len(missing) <= _PAGE and self.settled and self.version == version:
            at_hand |= found
        found |= {an_id: at_hand[an_id] for an_id in wanted if an_id in at_hand}
        return {an_id: found[an_id] for an_id in wanted if an_id in found}

    def items(self) -> Iterator[Item]:
        """All items, hidden ones too, a page at a time."""
        for page in in_batches(self.ids(), _PAGE):
            yield from self.get(page).values()

    def ids(self) -> list[str]:
        """The ids of all items, hidden ones too, in a fixed order."""
        return self._chroma.ids()

    def __len__(self) -> int:
        return int(self._chroma.ask(lambda collection: collection.count()))

    def __contains__(self, an_id: object) -> bool:
        return isinstance(an_id, str) and bool(self._chroma.records([an_id]))

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """The vectors of these items: (n, dim) float32, rows of length 1. Raises StoreError for an unknown id."""
        found = self._chroma.vectors(list(dict.fromkeys(ids)))
        missing = next((an_id for an_id in ids if an_id not in found), None)
        if missing is not None:
            raise StoreError(f'there is no item "{missing}" in the catalog; look its id up in the dataset')
        return np.stack([found[an_id] for an_id in ids]) if ids else np.zeros((0, self.embedder.dim), dtype=np.float32)

    def query(self, vectors: np.ndarray, k: int, where: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """The `k` nearest items of each of the (q, dim) vectors, by cosine similarity, best first; never a hidden one.

        Without a filter that is one Chroma call for all of them. Where few items pass, all that pass are scanned instead:
        the index loses most of its recall under a selective filter.
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
        """The ids that pass the filter and are not hidden, or None where every item that is not hidden passes."""
        clause = normalised(where, self.schema())
        if clause is None:
            return None
        both = {"$and": [clause, {HIDDEN: False}]}
        return set(self._chroma.ask(lambda collection: collection.get(where=both, include=[])["ids"]))

    def schema(self) -> dict[str, Field]:
        """The metadata fields that filters may use, the most frequent first."""
        version = self.version
        if self._schema is None or self._schema[0] != version:
            fields = kept(self.derived_in, "schema", version, lambda: fields_of(self.items()), save_fields, load_fields)
            self._schema = version, fields
        return self._schema[1]

    def snapshot(self) -> Snapshot:
        """The whole catalog at hand, as of its present version."""
        version = self.version
        if self._snapshot is None or self._snapshot.version != version:
            self._snapshot = Snapshot.built(self, version)
        return self._snapshot

    def close(self) -> None:
        """Let go of the database."""
        self._chroma.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _nearest(
        self, vectors: np.ndarray, k: int, snapshot: Snapshot, allowed: set[str] | None, count: int
    ) -> list[list[Hit]]:
        """By the index: ask for as many more as are not allowed to stay, and scan where that was not enough."""
        total = len(snapshot.ids)
        fetch = min(total, k if count == total else 2 * k * total // max(count, 1) + 10)
        found = self._chroma.ask(
            lambda collection: collection.query(
                query_embeddings=vectors, n_results=max(fetch, 1), include=["distances"]
            )
        )
        hits = []
        for ids, distances in zip(found["ids"], found["distances"], strict=True):
            kept_hits = [
                Hit(an_id, 1.0 - distance)
                for an_id, distance in zip(ids, distances, strict=True)
                if (an_id in allowed if allowed is not None else snapshot.shows(an_id))
            ]
            hits.append(kept_hits[:k])
        short = [row for row, found_hits in enumerate(hits) if len(found_hits) < min(k, count)]
        if short:
            rows = np.flatnonzero(~snapshot.hidden) if allowed is None else snapshot.rows_of(allowed)
            for row, exact in zip(short, snapshot.nearest(vectors[short], k, rows), strict=True):
                hits[row] = exact
        return hits


def _trained_for(folder: Path) -> Embedder | None:
    trained = paths.retriever(folder)
    return Embedder(str(trained)) if trained else None


def _create(connection: Connection, embedder: Embedder) -> None:
    model = {"model": embedder.name, "fingerprint": embedder.fingerprint, "dim": embedder.dim}
    connection.create({"version": new_version()} | model)


def _same_model(connection: Connection, embedder: Embedder | None, trained: bool) -> Embedder:
    facts = connection.facts
    if "fingerprint" not in facts:
        raise StoreError(f"the collection in {connection.place} was not made by evoke; name another one")
    embedder = embedder or Embedder(facts["model"])
    if embedder.fingerprint != facts["fingerprint"]:
        # What was trained for the store is found there: a setting that names another model only stands in its way.
        remedy = "take the setting embedding_model away" if trained else "use that model"
        raise StoreError(
            f"the store was made with the embedding model {facts['model']} (weights {facts['fingerprint'][:8]}), "
            f"not {embedder.name} ({embedder.fingerprint[:8]}); {remedy}, or index into a new store"
        )
    return embedder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made ({error.strerror}); choose another --store") from error
