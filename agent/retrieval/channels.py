"""Channels: each way to retrieve candidates, as one function from a batch of requests to item scores.

    queries        the request's own text and the model's queries, by vector
    named          titles that the model names, grounded to catalog ids, and what goes with them
    dense          the vectors of the recent history items
    collaborative  co-occurrence, transitions, and people with similar histories
    lexical        BM25 of the request's text, or of the recent history items' titles
    popular        counts of events, recent ones first

A recommendation is a batch of one; `evoke compare` and `evoke tune` pass many requests to the same functions. All texts of
a batch are encoded at once, and one vector query serves every channel that needs vectors. No channel scores an item by its
similarity to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from agent.results import Named
from agent.retrieval.grounding import ground, rows_of_title
from agent.retrieval.signals import LONG, SHORT, weighted
from agent.retrieval.sources import Sources
from store import Hit
from store.cooccurrence import Cooccurrence
from store.sparse import highest

CANDIDATES = 200
"""Items that each channel retrieves at most."""
RECENT = 10
"""Latest history items that `dense` and `lexical` read."""
DECAY = 0.9
"""Weight of a history item relative to the next newer one, in `dense` and `lexical`."""
TOGETHER, FOLLOWED, PEOPLE = 0.5, 1.0, 2.0
"""Weights of the parts of `collaborative`, each scaled to its best: co-occurrence, what came next, and the choices of people with
similar histories."""
ALL_TIME = 0.1
"""Weight in `popular` of an event of any time relative to a recent one."""
WIDENED = 20
"""Items that `named` adds because they go with the named titles."""
GUESSED, WIDER = 0.7, 0.85
"""Weight of generated queries relative to queries for recent history items, and of all queries relative to the user's own text."""
TITLE_MATCH = 0.8
"""Least score of an item whose title a generated query says: an encoder may rank others first."""
OTHERS = 12
"""Items chosen by other people that a trained model is shown."""

Near = list[tuple[np.ndarray, np.ndarray]]
"""For each query vector the snapshot rows of the nearest items, best first, and their cosines."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is known for one request.

    Args:
        history: ids of liked items, oldest first.
        text: the user's own words.
        queries: queries for the latest history items.
        guesses: generated queries, which guess what comes next.
        named: titles that the model names.
        exclude: ids that must not come back.
    """

    history: Sequence[str] = ()
    text: str | None = None
    queries: Sequence[str] = ()
    guesses: Sequence[str] = ()
    named: Sequence[Named] = ()
    exclude: Collection[str] = field(default_factory=frozenset)


class Batch:
    """Requests that are answered together, and what several channels read from them, each computed once."""

    def __init__(
        self,
        sources: Sources,
        requests: Sequence[Request],
        channels: Collection[str],
        where: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a batch.

        Args:
            sources: what the channels read.
            requests: the requests, b of them.
            channels: names of the channels to retrieve from.
            where: a filter on metadata that all requests share. Raises StoreError where it does not fit the catalog's schema.
        """
        self.sources, self.requests, self.channels, self.where = sources, list(requests), channels, where
        rows = sources.snapshot.rows
        self.histories = [np.array([rows[i] for i in r.history if i in rows], dtype=np.int64) for r in self.requests]
        self.recent = [history[-RECENT:] for history in self.histories]
        ground_titles = "named" in channels
        self.named = [[ground(n, sources.snapshot) if ground_titles else n for n in r.named] for r in self.requests]

    @cached_property
    def allowed(self) -> np.ndarray:
        """(b, n) bool: the items that may come back, by rules: not hidden, not excluded, and matching the filter."""
        snapshot = self.sources.snapshot
        passing = ~snapshot.hidden
        if self.where and (matching := self.sources.catalog.matching(self.where)) is not None:
            fits = np.zeros_like(passing)
            fits[snapshot.rows_of(matching)] = True
            passing &= fits
        allowed = np.tile(passing, (len(self.requests), 1))
        for row, request in enumerate(self.requests):
            allowed[row, snapshot.rows_of(request.exclude)] = False
        return allowed

    @cached_property
    def texts(self) -> list[list[tuple[str, float]]]:
        """Each request's query texts with their weights; the user's own words are never dropped for generated ones."""
        return [
            _texts(r, named) if "queries" in self.channels else []
            for r, named in zip(self.requests, self.named, strict=True)
        ]

    @property
    def near_texts(self) -> list[Near]:
        """For each request the nearest items of each of its texts."""
        return self._near[0]

    @property
    def near_items(self) -> list[Near]:
        """For each request the nearest items of each of its recent history items."""
        return self._near[1]

    @cached_property
    def _near(self) -> tuple[list[Near], list[Near]]:
        """One encode of all texts, and one vector query for texts and history items."""
        snapshot, catalog = self.sources.snapshot, self.sources.catalog
        texts = [text for own in self.texts for text, _ in own]
        items = self.recent if "dense" in self.channels else [own[:0] for own in self.recent]
        rows = np.concatenate(items)
        vectors = [catalog.embedder.encode_queries(texts)] if texts else []
        vectors += [np.asarray(snapshot.vectors[rows])] if len(rows) else []
        # Items that are excluded would otherwise take the places of items that may be shown.
        sizes = [CANDIDATES + min(len(r.exclude), CANDIDATES) for r in self.requests]
        most = min(max(sizes), len(snapshot))
        hits = iter(catalog.query(np.concatenate(vectors), most, self.where or None) if vectors else ())
        near_texts = [
            [_in_rows(next(hits), snapshot.rows, k) for _ in own] for own, k in zip(self.texts, sizes, strict=True)
        ]
        near_items = [
            [_in_rows(next(hits), snapshot.rows, k) for _ in own] for own, k in zip(items, sizes, strict=True)
        ]
        return near_texts, near_items

    def zeros(self) -> np.ndarray:
        """(b, n) float32 zeros: a score for every item of the catalog."""
        return np.zeros((len(self.requests), len(self.sources.snapshot)), dtype=np.float32)


def queries(batch: Batch) -> np.ndarray:
    """(b, n): the best weighted cosine to any of the request's texts; an item whose title a generated query says comes first."""
    scores, snapshot = batch.zeros(), batch.sources.snapshot
    for row, request in enumerate(batch.requests):
        for (text, weight), (rows, cosines) in zip(batch.texts[row], batch.near_texts[row], strict=True):
            np.maximum.at(scores[row], rows, weight * cosines)
            if text != request.text:  # the user's own words may name one thing and ask for another
                said = rows_of_title(text, snapshot)
                scores[row, said] = np.maximum(scores[row, said], weight * TITLE_MATCH)
    return scores


def named(batch: Batch) -> np.ndarray:
    """(b, n): the grounded titles in the model's order (above 1), then what goes with them (at most 1)."""
    scores, snapshot, counts = batch.zeros(), batch.sources.snapshot, batch.sources.counts
    for row, (titles, history) in enumerate(zip(batch.named, batch.histories, strict=True)):
        ids = dict.fromkeys(title.id for title in titles if title.id)
        rows = np.array([at for i in ids if (at := snapshot.rows[i]) not in set(history)], dtype=np.int64)
        if not len(rows):
            continue
        together = counts.together(rows, np.ones(len(rows), dtype=np.float32))
        together[rows] = together[snapshot.hidden] = 0
        (best,) = highest(together[None], WIDENED)
        scores[row, best] = together[best] / max(float(together.max()), 1e-9)
        scores[row, rows] = 2 - np.arange(len(rows)) / len(rows)
    return scores


def dense(batch: Batch) -> np.ndarray:
    """(b, n): the best decayed cosine to any recent history item, each an interest of its own."""
    scores = batch.zeros()
    for row, items in enumerate(batch.recent):
        for item, weight, (rows, cosines) in zip(items, _decayed(items), batch.near_items[row], strict=True):
            others = rows != item
            np.maximum.at(scores[row], rows[others], weight * cosines[others])
    return scores


def collaborative(batch: Batch) -> np.ndarray:
    """(b, n): see `chosen_with`."""
    return chosen_with(batch.sources.counts, batch.histories)


def lexical(batch: Batch) -> np.ndarray:
    """(b, n): BM25 of the request's text, or the best decayed BM25 of any recent history item's title; each scaled to its best."""
    scores, snapshot, index = batch.zeros(), batch.sources.snapshot, batch.sources.lexical
    for row, (request, items) in enumerate(zip(batch.requests, batch.recent, strict=True)):
        titles = [] if request.text else [snapshot.titles[item] for item in items]
        own = [-1] if request.text else list(items)
        weights = [1.0] if request.text else _decayed(items)
        found = index.search([request.text] if request.text else titles, CANDIDATES)
        for hits, item, weight in zip(found, own, weights, strict=True):
            others = [(at, score) for at, score in hits if at != item and score > 0]
            for at, score in others:
                scores[row, at] = max(scores[row, at], weight * score / others[0][1])
    return scores


def popular(batch: Batch) -> np.ndarray:
    """(b, n): recent events and, weighing less, all events; the same for every request."""
    counts = batch.sources.counts
    return np.tile((counts.recent + ALL_TIME * counts.popularity).astype(np.float32), (len(batch.requests), 1))


CHANNELS: Mapping[str, Callable[[Batch], np.ndarray]] = {
    "queries": queries,
    "named": named,
    "dense": dense,
    "collaborative": collaborative,
    "lexical": lexical,
    "popular": popular,
}
MODEL_CHANNELS = ("queries", "named")
"""The channels that read what a language model writes."""


def retrieve(batch: Batch) -> dict[str, list[list[Hit]]]:
    """Return each wanted channel's list for each request: at most CANDIDATES allowed items with a score above 0, best first."""
    ids = batch.sources.snapshot.ids
    found = {}
    for channel, score in CHANNELS.items():
        if channel in batch.channels:
            scores = np.where(batch.allowed, score(batch), 0)
            best = highest(scores, CANDIDATES)
            found[channel] = [
                [Hit(ids[at], float(own[at])) for at in rows] for own, rows in zip(scores, best, strict=True)
            ]
    return found


def chosen_with(counts: Cooccurrence, histories: Sequence[np.ndarray]) -> np.ndarray:
    """(b, n) float32: what people chose together with and after these histories (snapshot rows, oldest first), and what people with
    similar histories chose."""
    n = len(counts.popularity)
    short, long = weighted(histories, n, *SHORT), weighted(histories, n, *LONG)
    scores = np.zeros((len(histories), n), dtype=np.float32)
    for weight, part in (
        (TOGETHER, short @ counts.goes_with),
        (FOLLOWED, short @ counts.followed_by),
        (PEOPLE, counts.alike(long)),
    ):
        scores += weight * _scaled(part.toarray().astype(np.float32, copy=False))
    return scores


def chosen_by_others(counts: Cooccurrence, history: np.ndarray, may: np.ndarray, k: int = OTHERS) -> list[int]:
    """Return the rows with the highest `chosen_with` for a history, best first, none of the history among them.

    Args:
        counts: what people chose.
        history: snapshot rows, oldest first.
        may: (n,) bool, the rows that may be shown.
        k: how many.
    """
    if not len(history):
        return []
    scores = np.where(may, chosen_with(counts, [history]), 0)
    scores[0, history] = 0
    return [int(row) for row in highest(scores, k)[0]]


def _texts(request: Request, titles: Sequence[Named]) -> list[tuple[str, float]]:
    own = [(request.text, 1.0)] if request.text else []
    guesses = [*request.guesses, *(title.title for title in titles if title.id is None)]
    known, guessed = (WIDER, WIDER) if request.text else (1.0, GUESSED)
    return own + [(query, known) for query in request.queries] + [(guess, guessed) for guess in guesses]


def _in_rows(hits: Sequence[Hit], rows: Mapping[str, int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `most` hits as snapshot rows and cosines; an item that was added after the snapshot is left out."""
    known = [(rows[hit.id], hit.score) for hit in hits[:most] if hit.id in rows]
    found = np.array(known, dtype=np.float64).reshape(-1, 2)
    return found[:, 0].astype(np.int64), found[:, 1].astype(np.float32)


def _decayed(items: np.ndarray) -> np.ndarray:
    """(len(items),) float32: weights of items, the latest 1."""
    return (DECAY ** np.arange(len(items) - 1, -1, -1)).astype(np.float32)


def _scaled(scores: np.ndarray) -> np.ndarray:
    return scores / np.maximum(scores.max(axis=1, keepdims=True), 1e-9)
