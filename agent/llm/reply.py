"""Results of model calls: a value or a stream of text, with the tokens and time it took."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import astuple, dataclass
from operator import add
from typing import Any, Generic, TypeVar

from agent.errors import BadAnswer, ModelError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server reports them. `cached_tokens` of `tokens_in` came from its prefix cache (0 if not reported)."""

    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    calls: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """One answer: its value, token counts and milliseconds.

    `partial` says whether parts of the answer were repaired or dropped; `broken` is the error that ended it early, if any.
    """

    value: T
    usage: Usage
    ms: float
    partial: bool = False
    broken: ModelError | None = None


class TextStream:
    """An answer that is being written. Iterate over it for pieces of text; `usage` and `ms` are set when it has ended."""

    def __init__(self, chunks: Callable[[TextStream], AsyncGenerator[str, None]]) -> None:
        self.usage = Usage()
        self.ms = 0.0
        self._chunks = chunks(self)

    def __aiter__(self) -> AsyncGenerator[str, None]:
        return self._chunks

    async def aclose(self) -> None:
        """End the answer: close the connection, so that the server stops writing."""
        await self._chunks.aclose()


def first_choice(completion: Any) -> Any:
    """Return the first choice of a completion. Raises BadAnswer: a server may send anything with status 200."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices or choices[0].message is None:
        raise BadAnswer("the server's answer holds no choice")
    return choices[0]


def read_usage(completion: Any) -> Usage:
    """Return the token counts of a completion or of the last chunk of a stream."""
    usage = getattr(completion, "usage", None)
    if usage is None:
        return Usage(calls=1)
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached or 0, calls=1)
