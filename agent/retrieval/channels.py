"""Recall: channels side by side, each a ranked list of catalog items.

    queries        the request's text and the model's descriptions, by vector
    named          titles the model names, grounded to catalog ids, plus what goes with them
    dense          the recent history's own vectors, each an interest of its own
    collaborative  co-occurrence and transitions
    lexical        BM25
    popular        counts, recent ones first

All text is encoded at once, and one vector query serves every channel that needs vectors. No channel scores an item by its
similarity to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add
from typing import Any

import numpy as np

from agent.ranking.learned_fusion import Learned
from agent.ranking.stacking import Joined
from agent.results import Named, Stage
from agent.retrieval.grounding import ground, said_in
from agent.retrieval.signals import LONG, Signals, weighted
from store import Catalog, History, Hit
from store.cooccurrence import Cooccurrence
from store.lexical import Lexical
from store.snapshot import Snapshot
from store.sparse import highest

CHANNELS = ("queries", "named", "dense", "collaborative", "lexical", "popular")

BUDGET = 200
"""Items that each channel retrieves."""
RECENT = 10
"""History items that recall starts from."""
DECAY = 0.8
"""What each of them weighs beside the one after it."""
TRANSITIONS = 1.0
"""Weight of what came next beside what goes together, each scaled to its own best."""
OTHERS = 12
"""Items that a trained model is shown of what others chose after such a history."""
PEOPLE = 2.0
"""What people with alike histories weigh there beside what goes together, each scaled to its own best."""
WIDENED = 20
"""Items added to the grounded names because they go with them."""
ALIKE = 0.35
"""Cosine from which two items' texts count as alike for evidence."""
GUESS, WIDER = 0.7, 0.85
"""Weights of what may come next beside a history's latest things, which are known, and of all queries beside a request in words."""
SAID = 0.8
"""Least similarity of a generated query to an item whose title it says: encoders may put others before it."""
NONE: Mapping[str, list[Hit]] = {}


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything recall reads, as of one moment."""

    catalog: Catalog
    snapshot: Snapshot
    cooccurrence: Cooccurrence
    lexical: Lexical
    signals: Signals | None = None
    learned: Learned | None = None
    versions: tuple[str, str] = ("", "")

    @classmethod
    def of(
        cls, catalog: Catalog, history: History, learned: Learned | None = None, former: Sources | None = None
    ) -> Sources:
        """The sources for this catalog and history, refitted where they are stale; signals only for learned fusion.

        What `former` holds of the same catalog is used again. `versions` are the catalog's and the history's.
        """
        versions = (catalog.version, history.version)
        snapshot = Snapshot.of(catalog)
        same = former is not None and former.snapshot is snapshot
        counts = Cooccurrence.of(history, snapshot, catalog.derived_in)
        lexical = former.lexical if former and same else Lexical.of(catalog, snapshot)
        if learned is None:
            return cls(catalog, snapshot, counts, lexical, versions=versions)
        signals = former.signals if former and same else None
        signals = replace(signals, counts=counts) if signals else Signals.of(catalog, history, counts)
        return cls(catalog, snapshot, counts, lexical, signals, learned, versions)

    def others(self, history: Sequence[str], out: Collection[str] = ()) -> list[str]:
        """The ids of what others chose after such a history (oldest first), see `chosen_by_others`; none that are `out`."""
        rows = self.snapshot.rows
        may = ~self.snapshot.hidden
        may[[rows[id] for id in out if id in rows]] = False
        read = np.array([rows[id] for id in history if id in rows], dtype=np.int64)
        return [self.snapshot.ids[row] for row in chosen_by_others(self.cooccurrence, read, may)]

    def base(self, request: Request, joined: Joined | None = None, lists: Mapping[str, list[Hit]] = NONE) -> list[Hit]:
        """The list of learned fusion for the request's history: everything fused, no model call. Empty without either.

        With `joined`, the channels' `lists` of this request are joined to it.
        """
        rows = np.array([self.snapshot.rows[id] for id in request.history if id in self.snapshot.rows], dtype=np.int64)
        if self.learned is None or self.signals is None or not len(rows):
            return []
        allowed = allowed_rows(self, request)
        if joined:
            brought = {c: [[self.snapshot.rows[hit.id] for hit in lists[c]]] for c in joined.channels}
            (best,) = joined.rank(self.learned, self.signals, [rows], brought, request.k, allowed=allowed)
        else:
            (best,) = self.learned.rank(self.signals, [rows], request.k, allowed=allowed)
        return [Hit(self.snapshot.ids[row], score) for row, score in best]


@dataclass(frozen=True, slots=True)
class Request:
    """What recall is asked: a history (liked ids, oldest first), text, queries, guesses of what comes next, names, and what may not
    come back.

    A history item weighs `decay` times the one after it. Each channel brings at most `k` items.
    """

    history: Sequence[str] = ()
    text: str | None = None
    queries: Sequence[str] = ()
    guesses: Sequence[str] = ()
    named: Sequence[Named] = ()
    exclude: Collection[str] = field(default_factory=frozenset)
    where: Mapping[str, Any] | None = None
    k: int = BUDGET
    decay: float = DECAY


async def recall(
    sources: Sources, request: Request, channels: Collection[str], stage: Stage
) -> tuple[dict[str, list[Hit]], list[Named]]:
    """Each asked-for channel's ranked list (at most `request.k`, allowed items of the snapshot), and the names with their ids."""
    return await asyncio.to_thread(_recall, sources, request, channels, stage)


def _recall(
    sources: Sources, request: Request, channels: Collection[str], stage: Stage
) -> tuple[dict[str, list[Hit]], list[Named]]:
    snapshot = sources.snapshot
    known = [id for id in request.history if id in snapshot.rows]
    rows = np.array([snapshot.rows[id] for id in known[-RECENT:]], dtype=np.int64)
    decay = request.decay ** np.arange(len(rows) - 1, -1, -1, dtype=np.float32)
    allowed = allowed_rows(sources, request)
    named = [ground(n, snapshot) for n in request.named] if "named" in channels else list(request.named)

    texts = _texts(request, named) if "queries" in channels else []
    if unfound := sum(n.id is None for n in named):
        stage.notes.append(f"{unfound} of {len(named)} named titles are not in the catalog and serve as queries")
    by_text, by_item = _vector_hits(sources, [t for t, _ in texts], rows if "dense" in channels else rows[:0], request)

    found: dict[str, list[Hit]] = {}
    for channel in CHANNELS:
        if channel not in channels:
            continue
        if channel == "queries":
            # The request's own words may name one thing and ask for another.
            said = [[] if text == request.text else said_in(text, snapshot) for text, _ in texts]
            by_title = [[Hit(snapshot.ids[row], SAID) for row in rows] for rows in said]
            hits = _best([*map(add, by_text, by_title)], [weight for _, weight in texts])
        elif channel == "named":
            hits = _named(named, known, sources)
        elif channel == "dense":
            hits = _best(by_item, decay, own=[snapshot.ids[row] for row in rows])
        elif channel == "collaborative":
            hits = _top(_collaborative(sources.cooccurrence, rows, decay), snapshot, allowed, request.k)
        elif channel == "lexical":
            hits = _lexical(sources, request, rows, decay)
        else:
            scores = sources.cooccurrence.recent + 0.1 * sources.cooccurrence.popularity
            hits = _top(scores, snapshot, allowed, request.k)
        found[channel] = [h for h in hits if h.id in snapshot.rows and allowed[snapshot.rows[h.id]]][: request.k]
    return found, named


def chosen_by_others(counts: Cooccurrence, history: np.ndarray, may: np.ndarray, k: int = OTHERS) -> list[int]:
    """The `k` rows that people with alike histories chose, and that others chose with and after what a history holds (rows, oldest
    first): none of its own, nor one that `may` (n,) not be shown. Best first."""
    if not len(history):
        return []
    rows = history[-RECENT:]
    scores = _collaborative(counts, rows, DECAY ** np.arange(len(rows) - 1, -1, -1, dtype=np.float32))
    alike = counts.alike(weighted([history], len(may), *LONG))
    scores = np.where(may, scores + PEOPLE * _scaled(alike.toarray().ravel()), 0)
    scores[history] = 0
    return [int(row) for row in highest(scores[None].astype(np.float32), k)[0]]


def _collaborative(counts: Cooccurrence, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _scaled(counts.together(rows, weights)) + TRANSITIONS * _scaled(counts.next(rows, weights))


def allowed_rows(sources: Sources, request: Request) -> np.ndarray:
    """Which snapshot rows may come back: not hidden, not excluded, and fulfilling `where`. Rules, not scores."""
    snapshot = sources.snapshot
    allowed = ~snapshot.hidden
    if request.where and (matching := sources.catalog.matching(request.where)) is not None:
        fits = np.zeros_like(allowed)
        fits[[snapshot.rows[id] for id in matching if id in snapshot.rows]] = True
        allowed &= fits
    allowed[[snapshot.rows[id] for id in request.exclude if id in snapshot.rows]] = False
    return allowed


def _texts(request: Request, named: Sequence[Named]) -> list[tuple[str, float]]:
    """All query texts with their weights: the request's own words first; they are never dropped beside generated ones."""
    texts = [(request.text, 1.0)] if request.text else []
    guesses = [*request.guesses, *(n.title for n in named if n.id is None)]
    known, guessed = (WIDER, WIDER) if request.text else (1.0, GUESS)
    return texts + [(query, known) for query in request.queries] + [(guess, guessed) for guess in guesses]


def _vector_hits(
    sources: Sources, texts: Sequence[str], rows: np.ndarray, request: Request
) -> tuple[list[list[Hit]], list[list[Hit]]]:
    """The nearest items to each text and to each history row: one encode, one vector query for them all."""
    parts = [sources.catalog.embedder.encode_queries(texts)] if texts else []
    if len(rows):
        parts.append(np.asarray(sources.snapshot.vectors[rows]))
    if not parts:
        return [], []
    # What is excluded would otherwise take the places of what may be shown.
    k = min(request.k + min(len(request.exclude), request.k), len(sources.snapshot.ids))
    hits = sources.catalog.query(np.concatenate(parts), k, request.where or None)
    return hits[: len(texts)], hits[len(texts) :]


def _best(lists: Sequence[list[Hit]], weights: Sequence[float] | np.ndarray, own: Sequence[str] = ()) -> list[Hit]:
    """Max over the weighted lists; `own[i]` is the item list i started from, which it cannot vouch for."""
    best: dict[str, float] = {}
    for i, (hits, weight) in enumerate(zip(lists, weights, strict=True)):
        for id, score in hits:
            if not (own and own[i] == id):
                best[id] = max(best.get(id, -1.0), float(weight) * score)
    return sorted((Hit(id, score) for id, score in best.items()), key=lambda hit: -hit.score)


def _named(named: Sequence[Named], history: Sequence[str], sources: Sources) -> list[Hit]:
    """The grounded names in the model's order, then what goes together with them."""
    snapshot = sources.snapshot
    ids = [id for id in dict.fromkeys(n.id for n in named if n.id) if id not in set(history)]
    hits = [Hit(id, 2.0 - i / len(ids)) for i, id in enumerate(ids)]
    if ids:
        rows = np.array([snapshot.rows[id] for id in ids], dtype=np.int64)
        with_them = _scaled(sources.cooccurrence.together(rows, np.ones(len(rows), dtype=np.float32)))
        with_them[rows] = 0
        hits += _top(with_them, snapshot, ~snapshot.hidden, WIDENED)
    return hits


def _lexical(sources: Sources, request: Request, rows: np.ndarray, decay: np.ndarray) -> list[Hit]:
    """BM25 for the request's text, or for each recent history item's title; each list scaled to its best."""
    snapshot = sources.snapshot
    texts = [request.text] if request.text else [snapshot.titles[row] for row in rows]
    if not texts:
        return []
    weights = [1.0] if request.text else list(decay)
    own = [] if request.text else [snapshot.ids[row] for row in rows]
    lists = []
    for hits, source in zip(sources.lexical.search(texts, request.k), own or [""], strict=True):
        others = [(row, score) for row, score in hits if snapshot.ids[row] != source and score > 0]
        top = others[0][1] if others else 1.0
        lists.append([Hit(snapshot.ids[row], score / top) for row, score in others])
    return _best(lists, weights)


def _top(scores: np.ndarray, snapshot: Snapshot, allowed: np.ndarray, k: int) -> list[Hit]:
    """The k allowed rows with the highest scores above 0."""
    scores = np.where(allowed, scores, 0)
    k = min(k, int((scores > 0).sum()))
    best = np.argpartition(-scores, k - 1)[:k] if k else np.array([], dtype=np.int64)
    best = best[np.lexsort((best, -scores[best]))]
    return [Hit(snapshot.ids[row], float(scores[row])) for row in best]


def _scaled(scores: np.ndarray) -> np.ndarray:
    top = float(scores.max(initial=0.0))
    return scores / top if top > 0 else scores.copy()


def evidence(sources: Sources, ids: Sequence[str], history: Sequence[str], most: int = 2) -> dict[str, list[str]]:
    """For each id the history items that speak for it (at most `most`, strongest first): alike in content or chosen together."""
    snapshot = sources.snapshot
    known = [id for id in dict.fromkeys(reversed(history)) if id in snapshot.rows][:50]
    if not known or not ids:
        return {id: [] for id in ids}
    rows = np.array([snapshot.rows[id] for id in known], dtype=np.int64)
    alike = snapshot.alike[[snapshot.rows[id] for id in ids]] @ snapshot.alike[rows].T
    one = np.ones(1, dtype=np.float32)
    together = np.stack([sources.cooccurrence.together(rows[i : i + 1], one) for i in range(len(rows))])
    found = {}
    for i, id in enumerate(ids):
        chosen_with = together[:, snapshot.rows[id]]
        strength = np.where(alike[i] >= ALIKE, alike[i], 0) + chosen_with
        order = np.argsort(-strength, kind="stable")[:most]
        found[id] = [known[j] for j in order if strength[j] > 0 and known[j] != id]
    return found
