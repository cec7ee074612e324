"""What a model call gives back: a value, a text being written, and what either cost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from agent.errors import BadAnswer, ModelError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counts them; `cached_tokens` of `tokens_in` came from its prefix cache (0 where it is silent)."""

    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    calls: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.cached_tokens + other.cached_tokens,
            self.calls + other.calls,
        )


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """One answer: its value, what it cost, whether it had to be salvaged, and what broke it off if anything did."""

    value: T
    usage: Usage
    ms: float
    partial: bool = False
    broken: ModelError | None = None


class TextStream:
    """An answer being written: iterate over it for pieces of text. `usage` and `ms` are known when it has ended."""

    def __init__(self, chunks: Callable[[TextStream], AsyncGenerator[str, None]]) -> None:
        self.usage = Usage()
        self.ms = 0.0
        self._chunks = chunks(self)

    def __aiter__(self) -> AsyncGenerator[str, None]:
        return self._chunks

    async def aclose(self) -> None:
        """Ends the answer: the connection is closed, at which the server stops writing."""
        await self._chunks.aclose()


def choice(completion: Any) -> Any:
    """The first choice of what should be a completion but may be anything a server sends with status 200."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices or choices[0].message is None:
        raise BadAnswer("the server's answer holds no choice")
    return choices[0]


def usage(completion: Any) -> Usage:
    """What a completion, or the last piece of one, says it cost."""
    said = getattr(completion, "usage", None)
    if said is None:
        return Usage(calls=1)
    cached = said.prompt_tokens_details.cached_tokens if said.prompt_tokens_details else 0
    return Usage(said.prompt_tokens or 0, said.completion_tokens or 0, cached or 0, calls=1)
