"""What recall reads, kept up with what people do: refitted to new events once for all who ask, and waited for only so long."""

from __future__ import annotations

import asyncio

from agent.learned import Learned
from agent.recall import Sources
from store import Catalog, History
from store.derived import drop

REFIT_PATIENCE = 0.1
"""Seconds that a request waits for matrices to be refitted to events that came in since."""


class Fresh:
    """The sources of one recommender, as of now."""

    def __init__(self, catalog: Catalog, history: History, learned: Learned | None) -> None:
        self._catalog, self._history, self._learned = catalog, history, learned
        self._sources: Sources | None = None
        self._refit: asyncio.Task[Sources] | None = None

    async def now(self) -> Sources:
        """The sources as of now. After new events they are refitted once for all who wait; where that takes longer than
        REFIT_PATIENCE, those of just before serve until it is done: what one person did is read anew all the same."""
        while True:
            former = self._sources
            now = await asyncio.to_thread(lambda: (self._catalog.version, self._history.version))
            if former and former.versions == now:
                return former
            if self._refit is None:
                self._refit = asyncio.create_task(
                    asyncio.to_thread(Sources.of, self._catalog, self._history, self._learned, former)
                )
            refit = self._refit
            usable = former is not None and former.versions[0] == now[0]
            await asyncio.wait({refit}, timeout=REFIT_PATIENCE if usable else None)
            if refit.done() and self._refit is refit:
                self._refit = None  # first: one that failed must not stand in the way of the next
                self._sources = refit.result()
            if former and usable:
                return self._sources or former

    async def anew(self) -> None:
        """Refit everything: what was derived from someone who is forgotten must not stay."""
        if self._refit:
            await asyncio.wait({self._refit})
        self._refit = self._sources = None
        if self._catalog.folder:
            drop(self._catalog.folder, "linear")
        await self.now()
