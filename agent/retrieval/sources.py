"""The data that retrieval reads, as of one moment, and the object that keeps it up to date with new events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from agent.forgetting import drop_derived
from agent.retrieval.signals import Signals
from store import Catalog, History
from store.cooccurrence import Cooccurrence
from store.lexical import Lexical
from store.snapshot import Snapshot

REFIT_PATIENCE = 0.1
"""Seconds that a request waits for matrices to be refitted to new events."""
REST = 10
"""After a refit the next one waits this many times as long as it took, so that steady events cost a tenth of the time."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that the channels and learned fusion read, as of one moment.

    `signals` are there only where learned fusion (or a comparison) needs them. `versions` are the catalog's and the history's.
    """

    catalog: Catalog
    snapshot: Snapshot
    counts: Cooccurrence
    lexical: Lexical
    signals: Signals | None = None
    versions: tuple[str, str] = ("", "")

    @classmethod
    def of(cls, catalog: Catalog, history: History, *, signals: bool = False, former: Sources | None = None) -> Sources:
        """Return the sources of this catalog and history; parts that are stale are refitted.

        Args:
            catalog: the items.
            history: everyone's events.
            signals: whether the signals of learned fusion are wanted too.
            former: earlier sources of the same catalog; what has not changed is taken from them.
        """
        versions = (catalog.version, history.version)
        snapshot = catalog.snapshot()
        same = former is not None and former.snapshot is snapshot
        counts = Cooccurrence.of(history, snapshot, catalog.cache_folder)
        lexical = former.lexical if former and same else Lexical.of(catalog, snapshot)
        fitted = None
        if signals:
            fitted = former.signals if former and same else None
            fitted = replace(fitted, counts=counts) if fitted else Signals.of(catalog, history, counts)
        return cls(catalog, snapshot, counts, lexical, fitted, versions)


class CurrentSources:
    """The sources of one recommender, refitted in the background as events arrive; or `fixed` ones."""

    def __init__(
        self, catalog: Catalog, history: History, *, signals: bool = False, fixed: Sources | None = None
    ) -> None:
        self._catalog, self._history, self._signals, self._fixed = catalog, history, signals, fixed
        self._sources: Sources | None = None
        self._refit: asyncio.Task[Sources] | None = None
        self._rests_until = 0.0

    async def now(self) -> Sources:
        """Return the sources as of now.

        After new events they are refitted once for all requests that wait. Where that takes longer than REFIT_PATIENCE, the
        former ones serve until it is done: a user's own events are read from the history at every request all the same.
        """
        if self._fixed:
            return self._fixed
        while True:
            former = self._sources
            now = await asyncio.to_thread(lambda: (self._catalog.version, self._history.version))
            if former and former.versions == now:
                return former
            usable = former is not None and former.versions[0] == now[0]
            if former and usable and self._refit is None and time.monotonic() < self._rests_until:
                return former
            if self._refit is None:
                self._refit = asyncio.create_task(asyncio.to_thread(self._fitted, former))
            refit = self._refit
            await asyncio.wait({refit}, timeout=REFIT_PATIENCE if usable else None)
            if refit.done() and self._refit is refit:
                self._refit = None  # first: a refit that failed must not block the next one
                self._sources = refit.result()
            if former and usable:
                return self._sources or former

    def _fitted(self, former: Sources | None) -> Sources:
        started = time.monotonic()
        sources = Sources.of(self._catalog, self._history, signals=self._signals, former=former)
        ended = time.monotonic()
        self._rests_until = ended + REST * (ended - started)
        return sources

    @asynccontextmanager
    async def forgetting(self) -> AsyncIterator[None]:
        """Wrap the deletion of a user's rows: drop everything derived from them before and after, then refit.

        Derived data goes first. If the process dies in between, the user is still known, and running `forget` again does the rest.
        """
        await asyncio.to_thread(drop_derived, self._catalog.folder)
        try:
            yield
        finally:
            if self._refit:
                await asyncio.wait({self._refit})
            self._refit, self._sources = None, None
            # Once more: a request may have fitted them in the meantime.
            await asyncio.to_thread(drop_derived, self._catalog.folder)
            await self.now()
