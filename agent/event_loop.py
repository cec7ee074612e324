"""Runs async code from sync code, on a single background event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and return its result. Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate(events: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """Yield the values of an async generator that runs on the background loop. Closing this one closes that one."""
    step: asyncio.Task[Any] | None = None

    async def advance() -> T:
        nonlocal step
        step = asyncio.current_task()
        return await anext(events)

    async def close() -> None:
        # A step that was interrupted may still be running on the loop, and a running generator cannot be closed.
        if step and not step.done():
            await asyncio.wait({step})
        await events.aclose()

    try:
        while True:
            try:
                event = run(advance())
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
