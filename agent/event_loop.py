"""The one way from plain calls into the async core: a single background event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. It runs on the background loop; an interrupt here cancels it there."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate(events: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """What the generator yields, one at a time from the background loop; closing this closes it."""
    step: asyncio.Task[Any] | None = None

    async def following() -> T:
        nonlocal step
        step = asyncio.current_task()
        return await anext(events)

    async def close() -> None:
        # A step that was interrupted here may still be on its way out there, and a running generator cannot be closed.
        if step and not step.done():
            await asyncio.wait({step})
        await events.aclose()

    try:
        while True:
            try:
                event = run(following())
            except StopAsyncIteration:
                return
            yield event
    finally:
        run(close())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="evoke", daemon=True).start()
    return loop
