"""BM25 over the words of titles, texts and metadata, for exact names, models and numbers, which dense vectors miss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.cache import load_or_build
from store.records import Item

if TYPE_CHECKING:
    from store.catalog import Catalog
    from store.snapshot import Snapshot

_WORD = r"(?u)\b\w+\b"


@dataclass(frozen=True, eq=False)
class Lexical:
    """A BM25 index (Lucene's variant) over a snapshot's rows."""

    _index: Any

    @classmethod
    def of(cls, catalog: Catalog, snapshot: Snapshot) -> Lexical:
        """Return the index of this version of the catalog, from the cache if it is there."""
        return load_or_build(
            catalog.cache_folder, "lexical", snapshot.version, lambda: cls(_build(catalog, snapshot)), _save, _load
        )

    def search(self, texts: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """Return, for each text, the (row, score) of at most `k` items that share a word with it, best first."""
        size = self._index.scores["num_docs"] if self._index is not None else 0
        k = min(k, size)
        if k < 1 or not texts:
            return [[] for _ in texts]
        return [self._best(words, k) for words in _tokenise(texts)]

    def _best(self, words: list[str], k: int) -> list[tuple[int, float]]:
        known = [word for word in dict.fromkeys(words) if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        best = np.argpartition(-scores, k - 1)[:k]
        best = best[np.argsort(-scores[best], kind="stable")]
        return [(int(row), float(scores[row])) for row in best if scores[row] > 0]


def _tokenise(texts: Iterable[str]) -> list[list[str]]:
    import bm25s

    return bm25s.tokenize(list(texts), token_pattern=_WORD, stopwords="en", return_ids=False, show_progress=False)


def _document(item: Item) -> str:
    fields = [str(part) for value in item.metadata.values() for part in (value if isinstance(value, list) else [value])]
    return " ".join([item.title, item.text, *fields])


def _build(catalog: Catalog, snapshot: Snapshot) -> Any:
    import bm25s

    texts = [""] * len(snapshot)
    for item in catalog.items():
        if item.id in snapshot.rows:
            texts[snapshot.rows[item.id]] = _document(item)
    index = bm25s.BM25()
    corpus = bm25s.tokenize(texts, token_pattern=_WORD, stopwords="en", show_progress=False)
    # An index without any word cannot be built.
    if not corpus.vocab or not any(corpus.ids):
        return None
    index.index(corpus, show_progress=False)
    return index


def _save(lexical: Lexical, folder: Path) -> None:
    if lexical._index is not None:
        lexical._index.save(folder)


def _load(folder: Path) -> Lexical:
    import bm25s

    if not any(folder.iterdir()):
        return Lexical(None)
    return Lexical(bm25s.BM25.load(folder, mmap=True))
