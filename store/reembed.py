"""Changing a store's embedding model for one that was trained for it: new vectors beside the old ones, then one step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store import paths
from store.catalog import Catalog
from store.embedder import Embedder
from store.errors import StoreError


class _AtHand(Embedder):
    """An embedder some of whose documents need not be encoded."""

    def __init__(self, name: str, vectors: Mapping[str, np.ndarray]) -> None:
        super().__init__(name)
        self._at_hand = vectors

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        missing = [text for text in texts if text not in self._at_hand]
        encoded = dict(zip(missing, super().encode_documents(missing), strict=True)) if missing else {}
        return np.stack([self._at_hand[text] if text in self._at_hand else encoded[text] for text in texts])


def embed_anew(
    store: Path,
    model: Path,
    progress: Callable[[int, int], None] | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    present: Embedder | None = None,
) -> dict[str, Any]:
    """Index the store's items with the sentence-transformers model in the folder `model`, into that folder; the store stays as is.

    Returns what `put_in_force` wants to know. What is there already costs nothing, and ended early the next call goes on.
    `progress(done, total)` counts items. `vectors` are unit vectors of documents, where they are known, by text. `present` is the
    store's model so far, where it is not found by its name.
    """
    embedder = _AtHand(str(model), vectors or {})
    with (
        paths.writing(store),
        Catalog.open(store, create=False, embedder=present) as old,
        Catalog.open(model, embedder=embedder) as new,
    ):
        total = len(old)
        new.upsert(old.items(), progress=(lambda done, _: progress(done, total)) if progress else None)
        new.delete(set(new.ids()) - set(old.ids()))
        version = old.version
    return {"model": embedder.name, "fingerprint": embedder.fingerprint, "dim": embedder.dim, "of": version}


def put_in_force(
    store: Path,
    model: Path,
    facts: dict[str, Any],
    judged: Path | None = None,
    present: Embedder | None = None,
    first: Callable[[], None] = lambda: None,
) -> None:
    """Take the model, with what `embed_anew` wrote and returned, into the store, and use it from now on; beside it the one that
    was `judged`, where that is another. The one file that says so is written at once: a crash leaves all as before, or all done.
    `present` as there; `first` is called before, once nothing is refused any more. Raises StoreError where the catalog has
    changed since."""
    with paths.writing(store):
        with Catalog.open(store, create=False, embedder=present) as old:
            if old.version != facts["of"]:
                raise StoreError("items were changed while the model was judged; run the same command again")
        first()
        sweep(store)
        (store / paths.RETRIEVERS).mkdir(parents=True, exist_ok=True)
        for each in filter(None, (judged, model)):
            each.rename(store / paths.RETRIEVERS / each.name)
        in_force = {"retriever": model.name, "judged": judged.name if judged else None}
        paths.describe(store, {k: v for k, v in facts.items() if k != "of"} | in_force)
        sweep(store)


def sweep(store: Path) -> None:
    """Remove the models and vectors that are neither in force any more nor measured with. For whoever writes the store."""
    trained, about = paths.retriever(store), paths.about(store)
    for model in (store / paths.RETRIEVERS).glob("*"):
        if model.name not in (about.get("retriever"), about.get("judged")):
            shutil.rmtree(model)
    if trained:
        for old in ("chroma", "chroma.before"):
            shutil.rmtree(store / old, ignore_errors=True)
        (store / "chroma.lock").unlink(missing_ok=True)
