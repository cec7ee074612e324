"""Replace a store's embedding model by one trained for it: write the new vectors next to the old ones, then switch in one step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store import locks, paths
from store.catalog import Catalog
from store.embedder import Embedder
from store.errors import StoreError


class _PartlyEncoded(Embedder):
    """An embedder for which the vectors of some documents are known."""

    def __init__(self, name: str, vectors: Mapping[str, np.ndarray]) -> None:
        super().__init__(name)
        self._known = vectors

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        missing = [text for text in texts if text not in self._known]
        encoded = dict(zip(missing, super().encode_documents(missing), strict=True)) if missing else {}
        return np.stack([self._known[text] if text in self._known else encoded[text] for text in texts])


def index_with_encoder(
    store: Path,
    model: Path,
    progress: Callable[[int, int], None] | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    present: Embedder | None = None,
) -> dict[str, Any]:
    """Index the store's items with another encoder, into that encoder's folder. The store itself is not changed.

    Items that are indexed there already cost nothing, so a call after an interruption continues. Returns the facts that
    `switch_encoder` needs.

    Args:
        store: the store's folder.
        model: the folder of the sentence-transformers model.
        progress: `progress(done, total)` is called with numbers of items.
        vectors: unit vectors of documents that are known already, by text.
        present: the store's present encoder, if it cannot be found by its name.
    """
    embedder = _PartlyEncoded(str(model), vectors or {})
    with (
        locks.write_lock(store),
        Catalog.open(store, create=False, embedder=present) as old,
        Catalog.open(model, embedder=embedder) as new,
    ):
        total = len(old)
        new.upsert(old.items(), progress=(lambda done, _: progress(done, total)) if progress else None)
        new.delete(set(new.ids()) - set(old.ids()))
        return embedder.facts | {"of": old.version}


def switch_encoder(
    store: Path,
    model: Path,
    facts: dict[str, Any],
    judged: Path | None = None,
    present: Embedder | None = None,
    first: Callable[[], None] = lambda: None,
) -> None:
    """Move the encoder into the store and use it from now on.

    One file, written atomically, names the encoder in use: a crash leaves the store as before, or completely changed.

    Args:
        store: the store's folder.
        model: the folder that `index_with_encoder` wrote into.
        facts: what `index_with_encoder` returned.
        judged: the folder of the encoder to use on validation cases, if that is another one.
        present: the store's present encoder, if it cannot be found by its name.
        first: called before the change, after all checks.

    Raises StoreError if the catalog has changed since `index_with_encoder`.
    """
    with locks.write_lock(store):
        with Catalog.open(store, create=False, embedder=present) as old:
            if old.version != facts["of"]:
                raise StoreError("items were changed while the model was evaluated; run the same command again")
        first()
        remove_unused_encoders(store)
        (store / paths.RETRIEVERS).mkdir(parents=True, exist_ok=True)
        for each in filter(None, (judged, model)):
            each.rename(store / paths.RETRIEVERS / each.name)
        chosen = {"retriever": model.name, "judged": judged.name if judged else None}
        paths.update_store_json(store, {k: v for k, v in facts.items() if k != "of"} | chosen)
        remove_unused_encoders(store)


def remove_unused_encoders(store: Path) -> None:
    """Remove the encoders, with their vectors, that are no longer used. The caller must hold the store's write lock."""
    trained, about = paths.trained_encoder(store), paths.read_store_json(store)
    for model in (store / paths.RETRIEVERS).glob("*"):
        if model.name not in (about.get("retriever"), about.get("judged")):
            shutil.rmtree(model)
    if trained:
        for old in ("chroma", "chroma.before"):
            shutil.rmtree(store / old, ignore_errors=True)
        (store / "chroma.lock").unlink(missing_ok=True)
