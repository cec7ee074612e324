"""One model call on the wire: its deadline, its few retries, and the mapping of every error to a ModelError."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from agent.errors import BadAnswer, ModelDown, ModelError, ModelSlow, RequestRefused

T = TypeVar("T")

RETRIES = 2
PAUSE = 0.3  # seconds before the first retry, doubled for the next
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Deadline:
    """A moment after which no answer is worth waiting for, shared by all calls of a request."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())


async def within(deadline: Deadline, awaited: Awaitable[T]) -> T:
    """What is awaited, or TimeoutError when the deadline comes first."""
    async with asyncio.timeout(deadline.remaining()):
        return await awaited


async def attempt(deadline: Deadline, request: Callable[[], Awaitable[T]]) -> T:
    """The answer to `request`, made again only where the server cannot have worked on it: no connection, 429, 503."""
    for retry in range(RETRIES):
        try:
            return await within(deadline, request())
        except Exception as error:
            pause = PAUSE * 2**retry
            if not _worth_retrying(error) or pause >= deadline.remaining():
                raise
            await asyncio.sleep(pause)
    return await within(deadline, request())


class OnlyModelErrors:
    """A `with` block that ordinary errors leave as ModelError only; cancellation passes untouched."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, ModelError):
            raise _as_model_error(error) from None


def _worth_retrying(error: Exception) -> bool:
    # By name: whichever HTTP library the client was given, its error for a refused connection is called so.
    refused = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
    return refused or getattr(error, "status_code", None) in (429, 503)


def _as_model_error(error: Exception) -> ModelError:
    """The error in a few words of ours: a server's own message could repeat the prompt or a key."""
    import openai

    status = getattr(error, "status_code", None)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return ModelSlow("no answer before the deadline")
    if status in (401, 403):
        return ModelDown(f"the server refused the API key ({status})")
    if status == 404:
        return ModelDown("the server knows no such model or address (404)")
    if status == 429:
        return ModelDown("the server is overloaded (429)")
    if status is not None and status >= 500:
        return ModelDown(f"the server failed ({status})")
    if status is not None and status >= 400:
        return RequestRefused(f"the server refused the request ({status}); a prompt may be too long for the model")
    if isinstance(error, openai.APIConnectionError) and _worth_retrying(error):
        return ModelDown("no connection to the model server")
    if isinstance(error, openai.APIConnectionError | OSError) or type(error).__module__.startswith("http"):
        return ModelDown("the connection was lost before the answer was complete")
    return BadAnswer(f"the answer cannot be read ({type(error).__name__})")


def http_client(base_url: str) -> Any:
    """A client for `base_url`; one that a proxy from the environment cannot stand in for when the server is this machine."""
    import openai

    local = urlsplit(base_url).hostname in LOOPBACK
    return openai.DefaultAsyncHttpxClient(trust_env=not local)


def without_credentials(url: str) -> str:
    """The URL as it may be shown and stored: no user, password, query or trailing slash."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))
