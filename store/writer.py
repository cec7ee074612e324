"""One write to a catalog: marked before its first change, committed at its end, and completed by the next write after a crash."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import astuple, dataclass
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from store import checkpoint, locks
from store.chroma import Connection, in_batches
from store.chroma_records import EMBEDDED, HASH, embedded_hash, record_metadata
from store.embedder import Embedder
from store.errors import StoreError
from store.records import Item, item_fault

# Chroma writes few large batches much faster than many small ones; a crash loses the batch in progress.
_BATCH = 256
_ENCODED_AT_ONCE = 128
# The log is replayed whenever the catalog is opened, so a long write saves the index when the log is this long.
_LONG_LOG = 8192


@dataclass(frozen=True, slots=True)
class Upserted:
    """The result of `Catalog.upsert`: numbers of items. `truncated` of the embedded texts are longer than the model reads."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    truncated: int = 0

    def __add__(self, other: Upserted) -> Upserted:
        return Upserted(*map(add, astuple(self), astuple(other)))


@contextmanager
def writing(
    chroma: Connection, folder: Path | None, embedder: Embedder, advance: Callable[[int], None] = lambda _: None
) -> Iterator[Writer]:
    """Begin the one write of a catalog; yield its writer, and commit its changes as a new version when the block ends.

    What was changed before an error, or left by a crash, is committed too.

    Args:
        chroma: the collection.
        folder: the store's folder, which is locked; None for a server.
        embedder: embeds the texts.
        advance: called with the number of items that were processed since the last call.

    Raises StoreBusy while another process writes.
    """
    with locks.write_lock(folder) if folder else nullcontext():
        writer = Writer(chroma, embedder, advance)
        try:
            yield writer
        except Exception:
            # The batches before the error are complete. A change that failed may be half done: the next write commits it.
            if writer.complete:
                with suppress(StoreError):
                    writer.commit()
            raise
        writer.commit()


class Writer:
    """Changes to one collection. Make it with `writing`."""

    def __init__(self, chroma: Connection, embedder: Embedder, advance: Callable[[int], None]) -> None:
        self._chroma = chroma
        self._embedder = embedder
        self._advance = advance
        self.batch = min(_BATCH, chroma.largest_batch)
        self.complete = True
        # A write that a crash interrupted has changed the catalog without a new version: this write gives it one.
        self._begun = bool(chroma.facts.get("writing"))
        if self._begun and chroma.folder:
            checkpoint.recover(chroma, chroma.folder)

    def upsert(self, batch: Sequence[Item]) -> Upserted:
        """Add or change the items that differ from the stored ones; of several items with one id the last is used."""
        items = list({item.id: item for item in batch}.values())
        check(items)
        before = {an_id: metadata for an_id, (_, metadata) in self._chroma.records([item.id for item in items]).items()}
        changed = [item for item in items if before.get(item.id, {}).get(HASH) != item.content_hash]
        self._advance(len(batch) - len(changed))
        if not changed:
            return Upserted(unchanged=len(items))
        to_embed = [item for item in changed if before.get(item.id, {}).get(EMBEDDED) != embedded_hash(item)]
        ids_to_embed = {item.id for item in to_embed}
        self._embed(to_embed, before)
        self._update_metadata([item for item in changed if item.id not in ids_to_embed], before)
        added = sum(item.id not in before for item in changed)
        truncated = self._embedder.truncated([item.document for item in to_embed])
        return Upserted(added, len(changed) - added, len(items) - len(changed), truncated)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the records of these ids; return how many existed."""
        present = list(self._chroma.records(ids))
        for batch in in_batches(present, self.batch):
            with self._changing():
                self._chroma.ask(lambda collection: collection.delete(ids=list(batch)))  # noqa: B023
        return len(present)

    def commit(self) -> None:
        """Save the index and give the catalog a new version, if anything was changed."""
        if self._begun:
            if self._chroma.folder:
                checkpoint.save(self._chroma, self._chroma.folder, checkpoint.WORTH_SAVING)
            self._chroma.update_facts(writing=False, version=new_version())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        if not self._begun:
            self._chroma.update_facts(writing=True, version=new_version())
            self._begun = True
        self.complete = False
        yield
        self.complete = True

    def _embed(self, items: Sequence[Item], before: Mapping[str, Mapping[str, Any]]) -> None:
        if not items:
            return
        vectors = []
        for part in in_batches(items, _ENCODED_AT_ONCE):
            vectors.append(self._embedder.encode_documents([item.document for item in part]))
            self._advance(len(part))
        with self._changing():
            self._chroma.ask(
                lambda collection: collection.upsert(
                    ids=[item.id for item in items],
                    embeddings=np.concatenate(vectors),
                    documents=[item.text for item in items],
                    metadatas=[record_metadata(item, before.get(item.id)) for item in items],
                )
            )
            if self._chroma.folder:
                checkpoint.save(self._chroma, self._chroma.folder, _LONG_LOG)

    def _update_metadata(self, items: Sequence[Item], before: Mapping[str, Mapping[str, Any]]) -> None:
        if items:
            rows = [record_metadata(item, before[item.id]) for item in items]
            with self._changing():
                self._chroma.ask(lambda collection: collection.update(ids=[item.id for item in items], metadatas=rows))
            self._advance(len(items))


def check(items: Iterable[Item]) -> None:
    """Raise StoreError for the first item that cannot be stored."""
    for item in items:
        if problem := item_fault(item):
            raise StoreError(f'item "{item.id}": {problem}; correct it and index again')


def new_version() -> str:
    """Return a version that no catalog has had."""
    return uuid.uuid4().hex[:16]
