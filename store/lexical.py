"""BM25 over the words of titles, texts and metadata, for exact names, models and numbers, which dense vectors miss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from store.cache import load_or_build
from store.records import Item
from store.sparse import best_first, from_entries

if TYPE_CHECKING:
    from store.catalog import Catalog
    from store.snapshot import Snapshot

_WORD = r"(?u)\b\w+\b"
_STOP_WORDS = "en"


@dataclass(frozen=True, eq=False)
class Lexical:
    """A BM25 index over a snapshot's rows: `scores` (n, words) CSC, and `columns`, the column of each word."""

    scores: Any
    columns: dict[str, int]

    @classmethod
    def of(cls, catalog: Catalog, snapshot: Snapshot) -> Lexical:
        """Return the index of this version of the catalog, from the cache if it is there."""
        return load_or_build(
            catalog.cache_folder, "lexical", snapshot.version, cls, lambda: cls(*_build(catalog, snapshot))
        )

    def search(self, texts: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """Return, for each text, the (row, score) of at most `k` items that share a word with it, best first."""
        import bm25s

        found = []
        for words in bm25s.tokenize(
            list(texts), token_pattern=_WORD, stopwords=_STOP_WORDS, return_ids=False, show_progress=False
        ):
            columns = [self.columns[word] for word in dict.fromkeys(words) if word in self.columns]
            scores = np.asarray(self.scores[:, columns].sum(axis=1)).ravel()
            found.append([(int(row), float(scores[row])) for row in best_first(scores, k) if scores[row] > 0])
        return found


def bm25(texts: Sequence[str], k1: float = 1.5, stopwords: str | None = None) -> tuple[Any, dict[str, int]]:
    """Return BM25 (Lucene's variant, b .75) of each word in each text, (n, words) CSC, and the column of each word."""
    import bm25s

    corpus = bm25s.tokenize(list(texts), token_pattern=_WORD, stopwords=stopwords, show_progress=False)
    if not any(corpus.ids):  # an index without any word cannot be built
        return from_entries(0, [], [], (len(texts), 0)).tocsc(), {}
    index = bm25s.BM25(k1=k1)
    index.index(corpus, show_progress=False)
    scores = index.scores
    columns = np.repeat(np.arange(len(scores["indptr"]) - 1), np.diff(scores["indptr"]))
    matrix = from_entries(scores["data"], scores["indices"], columns, (len(texts), len(scores["indptr"]) - 1))
    return matrix.tocsc(), index.vocab_dict


def _document(item: Item) -> str:
    fields = [str(part) for value in item.metadata.values() for part in (value if isinstance(value, list) else [value])]
    return " ".join([item.title, item.text, *fields])


def _build(catalog: Catalog, snapshot: Snapshot) -> tuple[Any, dict[str, int]]:
    return bm25(snapshot.by_row(catalog.items(), _document, ""), stopwords=_STOP_WORDS)
