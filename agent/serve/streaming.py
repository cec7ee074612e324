"""An answer that is written in a task of its own, independent of the client that reads it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from agent.dialogue.events import Event
from agent.dialogue.session import AsyncSession


class Stop:
    """An event that ends the answer early, with the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class AnswerTask:
    """The task that writes an answer. If the client disconnects, the turn is still saved as far as it was written."""

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
        """Return the next event. Raises the error with which writing failed."""
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return event

    def stop(self, reason: str) -> None:
        """Make the reader end the answer after the events so far."""
        self._queue.put_nowait(Stop(reason))

    async def end(self) -> None:
        """Cancel the task, and wait until the conversation is saved."""
        self._task.cancel()
        await asyncio.wait({self._task})
