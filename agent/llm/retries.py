"""Deadlines and retries of model calls, and the translation of every error into a ModelError."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from agent.errors import BadAnswer, ModelDown, ModelError, ModelSlow, RequestRefused

T = TypeVar("T")

PAUSES = (0.3, 0.6)
"""Seconds to wait before each retry."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Deadline:
    """The time after which no answer is awaited any more, shared by all model calls of a request."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def timeout(self) -> asyncio.Timeout:
        """Return an `async with` block that raises TimeoutError at the deadline."""
        return asyncio.timeout(self.remaining())


async def retry(deadline: Deadline, request: Callable[[], Awaitable[T]]) -> T:
    """Return the answer to `request`.

    The request is repeated only if the server cannot have processed it: no connection, or status 429 or 503.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            async with deadline.timeout():
                return await request()
        except Exception as error:
            await wait_to_retry(error, pauses, deadline)


async def wait_to_retry(error: Exception, pauses: Iterator[float], deadline: Deadline) -> None:
    """Wait for the next of the pauses. Raise the error if it is not worth another try, or if no pause or no time is left."""
    pause = next(pauses, None)
    if pause is None or not _is_retryable(error) or pause >= deadline.remaining():
        raise error
    await asyncio.sleep(pause)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise every error of the `with` block as a ModelError. Cancellation passes unchanged."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise _as_model_error(error) from None


def _is_retryable(error: Exception) -> bool:
    # By name: every HTTP library that the client may use has these names for a refused connection.
    refused = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
    return refused or getattr(error, "status_code", None) in (429, 503)


def _as_model_error(error: Exception) -> ModelError:
    """Return a ModelError with a short reason in our words: the server's message could contain the prompt or a key."""
    import openai

    status = getattr(error, "status_code", None)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return ModelSlow("no answer before the deadline")
    if status in (401, 403):
        return ModelDown(f"the server refused the API key ({status})")
    if status == 404:
        return ModelDown("the server has no such model or address (404)")
    if status == 429:
        return ModelDown("the server is overloaded (429)")
    if status is not None and status >= 500:
        return ModelDown(f"the server failed ({status})")
    if status is not None and status >= 400:
        return RequestRefused(f"the server refused the request ({status}); a prompt may be too long for the model")
    if isinstance(error, openai.APIConnectionError) and _is_retryable(error):
        return ModelDown("no connection to the model server")
    if isinstance(error, openai.APIConnectionError | OSError) or type(error).__module__.startswith("http"):
        return ModelDown("the connection was lost before the answer was complete")
    return BadAnswer(f"the answer cannot be read ({type(error).__name__})")


def create_http_client(base_url: str) -> Any:
    """Return an HTTP client for `base_url`. It ignores proxies in the environment if the server is this machine."""
    import openai

    local = urlsplit(base_url).hostname in LOOPBACK
    return openai.DefaultAsyncHttpxClient(trust_env=not local)


def without_credentials(url: str) -> str:
    """Return the URL without user, password, query and trailing slash, so that it may be shown and stored."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
