"""An answer while it is being written, apart from whoever reads it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from agent.dialogue.events import Event
from agent.dialogue.session import AsyncSession


class Stop:
    """Put into a queue of events, it ends the answer here, for this reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Writing:
    """An answer being written, in a task of its own: whoever reads it can go, and the turn is still saved as far as it went."""

    def __init__(self, session: AsyncSession, text: str) -> None:
        self._queue: asyncio.Queue[Event | Exception | Stop] = asyncio.Queue()
        self._task = asyncio.create_task(self._write(session, text))

    async def _write(self, session: AsyncSession, text: str) -> None:
        try:
            async with aclosing(session.stream(text)) as events:
                async for event in events:
                    self._queue.put_nowait(event)
        except Exception as error:
            self._queue.put_nowait(error)

    async def next(self) -> Event | Stop:
        """The next event. Raises what went wrong in writing."""
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return event

    def stop(self, reason: str) -> None:
        """Let the reader end the answer here."""
        self._queue.put_nowait(Stop(reason))

    async def end(self) -> None:
        """Stop the model's work, and wait until what was said is saved."""
        self._task.cancel()
        await asyncio.wait({self._task})
