"""What recall reads, kept up with what people do: refitted to new events once for all who ask, and waited for only so long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.forgetting import drop_derived
from agent.ranking.learned_fusion import Learned
from agent.retrieval.channels import Sources
from store import Catalog, History

REFIT_PATIENCE = 0.1
"""Seconds that a request waits for matrices to be refitted to events that came in since."""
REST = 10
"""After a refit the next waits this many times as long as it took: where events never stop, refitting takes a tenth of the time."""


class Fresh:
    """The sources of one recommender, as of now."""

    def __init__(self, catalog: Catalog, history: History, learned: Learned | None) -> None:
        self._catalog, self._history, self._learned = catalog, history, learned
        self._sources: Sources | None = None
        self._refit: asyncio.Task[Sources] | None = None
        self._rests_until = 0.0

    async def now(self) -> Sources:
        """The sources as of now. After new events they are refitted once for all who wait; where that takes longer than
        REFIT_PATIENCE, those of just before serve until it is done: what one person did is read anew all the same."""
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
                self._refit = None  # first: one that failed must not stand in the way of the next
                self._sources = refit.result()
            if former and usable:
                return self._sources or former

    def _fitted(self, former: Sources | None) -> Sources:
        started = time.monotonic()
        sources = Sources.of(self._catalog, self._history, self._learned, former)
        ended = time.monotonic()
        self._rests_until = ended + REST * (ended - started)
        return sources

    @asynccontextmanager
    async def forgetting(self) -> AsyncIterator[None]:
        """Around the deletion of someone's rows: what is derived from them goes first, so that where this is cut off the user is
        still known and running it again does the rest; then everything is refitted, whatever became of the deletion."""
        await asyncio.to_thread(drop_derived, self._catalog.folder)
        try:
            yield
        finally:
            if self._refit:
                await asyncio.wait({self._refit})
            self._refit, self._sources = None, None
            # Again: a request may have fitted them meanwhile.
            await asyncio.to_thread(drop_derived, self._catalog.folder)
            await self.now()
