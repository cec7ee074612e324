"""The catalog: items, their vectors and their metadata in one Chroma collection, in the store's folder or on a server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from store import place as places
from store.chroma import Connection, in_batches
from store.derived import kept
from store.embedder import Embedder
from store.errors import StoreError
from store.records import Hit, Item, fault
from store.snapshot import Snapshot
from store.stored import EMBEDDED, HASH, HIDDEN, embedded_hash, item_of, record_metadata
from store.where import Field, fields_of, normalised

COLLECTION = "evoke"
_BATCH = 256
_PAGE = 2000
# With a filter, a scan over the matching vectors is exact, and quicker than the index until so many match.
_SCAN = 20_000


@dataclass(frozen=True, slots=True)
class Upserted:
    """What `Catalog.upsert` did. `truncated` of the texts that were embedded are longer than the model reads."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    truncated: int = 0

    def __add__(self, other: Upserted) -> Upserted:
        return Upserted(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class Catalog:
    """The items of one store. Open it with `Catalog.open`."""

    def __init__(self, connection: Connection, folder: Path | None, embedder: Embedder) -> None:
        self._chroma = connection
        self.folder = folder
        self.embedder = embedder
        self._schema: tuple[str, dict[str, Field]] | None = None
        self._snapshot: Snapshot | None = None

    @classmethod
    def open(cls, place: str | Path, *, embedder: Embedder | None = None, create: bool = True) -> Catalog:
        """The catalog in a store folder, or on a Chroma server (`http://host:port`, optionally `/collection`).

        Without an `embedder`, the model that the catalog was made with is used (all-MiniLM-L6-v2 for a new one).
        Raises StoreError where there is none and `create` is false, and where another embedding model made it.
        """
        url = str(place) if str(place).startswith(("http://", "https://")) else None
        folder = None if url else Path(place).expanduser()
        if folder is not None:
            if not create and not folder.is_dir():
                raise StoreError(f"there is no store at {folder}; run `evoke index DIR --store {folder}` first")
            _made(folder)
            url = places.about(folder).get("chroma")
        path = urlsplit(url).path.strip("/") if url else ""
        connection = Connection(url.removesuffix(f"/{path}") if url else folder / "chroma", path or COLLECTION)  # type: ignore[operator]
        if connection.exists():
            return cls(connection, folder, _same_model(connection, embedder))
        if not create:
            raise StoreError(f"{place} holds no catalog; run `evoke index DIR --store {place}` first")
        embedder = embedder or Embedder()
        connection.create(
            {
                "version": _new_version(),
                "model": embedder.name,
                "fingerprint": embedder.fingerprint,
                "dim": embedder.dim,
            }
        )
        return cls(connection, folder, embedder)

    @property
    def version(self) -> str:
        """Changes with every committed change of content, whichever process made it."""
        return str(self._chroma.facts["version"])

    @property
    def settled(self) -> bool:
        """Whether no write is under way, nor one left unfinished by a crash."""
        return not self._chroma.facts.get("writing")

    def upsert(self, items: Iterable[Item], *, progress: Callable[[int, int], None] | None = None) -> Upserted:
        """Add the items, or change those that differ; what has not changed costs no embedding.

        `progress(done, total)` is called after each batch; the total is 0 where `items` does not tell its length.
        Raises StoreBusy while another process writes, and StoreError for an item that cannot be kept.
        """
        total = len(items) if isinstance(items, Sequence) else 0
        done, result = 0, Upserted()
        with self._writing() as begin:
            source = iter(items)
            while batch := list(islice(source, _BATCH)):
                result += self._upsert_batch({item.id: item for item in batch}, begin)
                done += len(batch)
                if progress:
                    progress(done, total)
        return result

    def delete(self, ids: Iterable[str]) -> int:
        """Remove items; returns how many there were."""
        removed = 0
        with self._writing() as begin:
            for batch in in_batches(list(dict.fromkeys(ids)), _PAGE):
                present = list(self._records(batch, ["metadatas"]))
                if present:
                    begin()
                    self._chroma.ask(lambda collection: collection.delete(ids=present))  # noqa: B023
                    removed += len(present)
        return removed

    def get(self, ids: Sequence[str]) -> dict[str, Item]:
        """The items of these ids, in their order; ids that are not in the catalog are left out."""
        found: dict[str, Item] = {}
        for batch in in_batches(list(dict.fromkeys(ids)), _PAGE):
            records = self._records(batch, ["documents", "metadatas"])
            found |= {an_id: item_of(an_id, *records[an_id]) for an_id in batch if an_id in records}
        return found

    def items(self) -> Iterator[Item]:
        """All items, hidden ones too, a page at a time."""
        for batch in in_batches(self.ids(), _PAGE):
            yield from self.get(batch).values()

    def ids(self) -> list[str]:
        """The ids of all items, hidden ones too, in a fixed order."""
        return sorted(self._chroma.ask(lambda collection: collection.get(include=[])["ids"]))

    def __len__(self) -> int:
        return int(self._chroma.ask(lambda collection: collection.count()))

    def __contains__(self, an_id: object) -> bool:
        return isinstance(an_id, str) and bool(self._records([an_id], []))

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """The vectors of these items: (n, dim) float32, rows of length 1. Raises StoreError for an unknown id."""
        found: dict[str, np.ndarray] = {}
        for batch in in_batches(list(dict.fromkeys(ids)), _PAGE):
            rows = self._chroma.ask(lambda collection: collection.get(ids=list(batch), include=["embeddings"]))  # noqa: B023
            found |= zip(rows["ids"], np.asarray(rows["embeddings"], dtype=np.float32), strict=True)
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
            folder = self.folder if self.settled else None
            self._schema = version, kept(folder, "schema", version, lambda: fields_of(self.items()), _save, _load)
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

    @contextmanager
    def _writing(self) -> Iterator[Callable[[], None]]:
        """One writer at a time. Yields what to call before the first change; commits at the end, and after a crash."""
        with places.writing(self.folder) if self.folder else nullcontext():
            unfinished = not self.settled
            if unfinished:
                self._heal()
            changed = unfinished

            def begin() -> None:
                nonlocal changed
                if not changed:
                    self._chroma.note(writing=True, version=_new_version())
                    changed = True

            yield begin
            if changed:
                self._commit()

    def _commit(self) -> None:
        some = self._chroma.ask(lambda collection: collection.get(limit=1, include=[])["ids"])
        if some and self._chroma.local:
            self._chroma.save(some[0])
        self._chroma.note(writing=False, version=_new_version())

    def _heal(self) -> None:
        """After a crash: where the saved index is broken, drop it, and give back the vectors that the log no longer holds."""
        if not self._chroma.local or self._chroma.sound():
            return
        self._chroma.drop_index()
        for batch in in_batches(self.ids(), _BATCH):
            try:
                self.vectors(batch)
            except StoreError:
                items = list(self.get(batch).values())
                vectors = self.embedder.encode_documents([item.document for item in items])
                self._chroma.ask(
                    lambda collection: collection.update(ids=[item.id for item in items], embeddings=vectors)  # noqa: B023
                )

    def _upsert_batch(self, items: dict[str, Item], begin: Callable[[], None]) -> Upserted:
        wrong = next(((item.id, problem) for item in items.values() if (problem := fault(item))), None)
        if wrong:
            raise StoreError(f'item "{wrong[0]}": {wrong[1]}; correct it and index again')
        before = {an_id: metadata for an_id, (_, metadata) in self._records(list(items), ["metadatas"]).items()}
        changed = [item for item in items.values() if before.get(item.id, {}).get(HASH) != item.content_hash]
        if not changed:
            return Upserted(unchanged=len(items))
        begin()
        moved = [item for item in changed if before.get(item.id, {}).get(EMBEDDED) != embedded_hash(item)]
        self._put(moved, before)
        self._retouch([item for item in changed if item not in moved], before)
        added = sum(item.id not in before for item in changed)
        truncated = self.embedder.truncated([item.document for item in moved])
        return Upserted(added, len(changed) - added, len(items) - len(changed), truncated)

    def _put(self, items: list[Item], before: Mapping[str, Any]) -> None:
        if not items:
            return
        vectors = self.embedder.encode_documents([item.document for item in items])
        self._chroma.ask(
            lambda collection: collection.upsert(
                ids=[item.id for item in items],
                embeddings=vectors,
                documents=[item.text for item in items],
                metadatas=[record_metadata(item, before.get(item.id)) for item in items],
            )
        )

    def _retouch(self, items: list[Item], before: Mapping[str, Any]) -> None:
        if items:
            rows = [record_metadata(item, before[item.id]) for item in items]
            self._chroma.ask(lambda collection: collection.update(ids=[item.id for item in items], metadatas=rows))

    def _records(self, ids: Sequence[str], include: list[str]) -> dict[str, tuple[str | None, dict[str, Any]]]:
        if not ids:
            return {}
        found = self._chroma.ask(lambda collection: collection.get(ids=list(ids), include=include))
        texts = found["documents"] or [None] * len(found["ids"])
        rows = found["metadatas"] or [{}] * len(found["ids"])
        return {an_id: (text, dict(row)) for an_id, text, row in zip(found["ids"], texts, rows, strict=True)}


def _same_model(connection: Connection, embedder: Embedder | None) -> Embedder:
    facts = connection.facts
    if "fingerprint" not in facts:
        raise StoreError(f"the collection in {connection.place} was not made by evoke; name another one")
    embedder = embedder or Embedder(facts["model"])
    if embedder.fingerprint != facts["fingerprint"]:
        raise StoreError(
            f"the store was made with the embedding model {facts['model']} (weights {facts['fingerprint'][:8]}), "
            f"not {embedder.name} ({embedder.fingerprint[:8]}); use that model, or index into a new store"
        )
    return embedder


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made ({error.strerror}); choose another --store") from error


def _new_version() -> str:
    return uuid.uuid4().hex[:16]


def _save(schema: dict[str, Field], folder: Path) -> None:
    (folder / "schema.json").write_text(json.dumps({name: asdict(field) for name, field in schema.items()}))


def _load(folder: Path) -> dict[str, Field]:
    rows = json.loads((folder / "schema.json").read_text())
    return {name: Field(**row) for name, row in rows.items()}
