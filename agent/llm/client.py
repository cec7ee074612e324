"""The one client of every model: any server that speaks the OpenAI protocol, under a deadline.

Whatever goes wrong comes out as a ModelError with a short reason: the caller falls back and says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from agent.errors import BadAnswer, EvokeError, ModelDown, ModelError
from agent.llm import parsing
from agent.llm.reply import Reply, TextStream, Usage, choice, usage
from agent.llm.retries import Deadline, OnlyModelErrors, attempt, http_client, within, without_credentials

if TYPE_CHECKING:
    from agent.llm.adapters import Adapter
    from agent.llm.embedded import Embedded

__all__ = ["LLM", "Connect", "Deadline", "Reply", "TextStream", "Usage"]

M = TypeVar("M", bound=BaseModel)
Messages = Sequence[dict[str, str]]
Constraint = Callable[[str, dict[str, Any]], dict[str, Any]]

TOP_LOGPROBS = 20  # the most that servers return
OPTIONAL = ("temperature", "seed")


class LLM:
    """A model behind a base URL. Use it from one event loop, and close it when done."""

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        place: str | None = None,
        constraint: Constraint | None = None,
        extra: Mapping[str, Any] | None = None,
        start: Callable[[Adapter], Embedded] | None = None,
        http_client: Any = None,
    ) -> None:
        """`place` stands for the base URL in cache keys where that changes from run to run; `constraint` says in the server's
        own terms what `response_format` says to all: hold the answer to this JSON schema. `extra` are further fields of every
        request, left out once the server has refused them. `start` runs an adapter where servers list it as a model."""
        from openai import AsyncOpenAI

        # An explicit key always: the client would else send whatever key the environment holds to any server.
        self._client = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "EMPTY",
            max_retries=0,
            http_client=http_client or _http_client(base_url),
        )
        self._model = model
        self._place = place or without_credentials(base_url)
        self._constraint = constraint or _response_format
        self._extra = dict(extra or {})
        self._refused: set[str] = set()
        self._start = start
        self._adapted: dict[str, tuple[Any, str]] = {}
        self._free = asyncio.Semaphore(concurrency)

    @classmethod
    def embedded(cls, model: str | None = None, *, shares: bool = True) -> LLM:
        """The model that runs in this process, started if need be (it blocks for a second or two).

        Without `shares`, no prompt is read from, or kept in, the cache that all of this process's clients have in common.
        Raises EvokeError where the engine or the weights are missing.
        """
        from agent.llm import embedded

        engine = embedded.start(model)
        return cls(
            engine.base_url,
            engine.model_name,
            concurrency=embedded.SLOTS,
            place=f"embedded {engine.weights_hash}",  # the hash: weights changed in place must miss every cache
            constraint=embedded.grammar,
            extra=None if shares else {"cache_prompt": False},
            start=partial(embedded.start, model),
        )

    @property
    def key(self) -> str:
        """Where the model runs and which it is, for cache keys; whole once `model_name` has been awaited."""
        return f"{self._place} {self._model or '(first)'}"

    def key_of(self, adapter: Adapter | None) -> str:
        """The same for what it says with an adapter, or without."""
        return f"{self.key} {adapter.hash}" if adapter else self.key

    async def model_name(self, deadline: Deadline | None = None) -> str:
        """The model asked for, or else the first that the server lists."""
        if self._model is None:
            with OnlyModelErrors():
                models = await attempt(deadline or Deadline(10), self._models)
                if not models.data:
                    raise BadAnswer("the server lists no model: set EVOKE_MODEL")
                self._model = str(models.data[0].id)
        return self._model

    async def structured(
        self,
        messages: Messages,
        schema: type[M],
        *,
        max_tokens: int,
        deadline: Deadline,
        temperature: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        adapter: Adapter | None = None,
    ) -> Reply[M]:
        """An answer of the form `schema`, asked for by JSON schema and validated whatever the server made of that.

        Of an answer that breaks off, what was complete is returned, with the reason in `broken`. Raises a ModelError where
        nothing can be used, also where `adapter` cannot be had; defaults in `schema` stand for what an answer lacks.
        """
        options = {"max_completion_tokens": max_tokens, "temperature": temperature, "seed": seed}
        options |= {"frequency_penalty": frequency_penalty} if frequency_penalty else {}
        options |= self._constraint(schema.__name__, parsing.form(schema))
        # Streamed, so that what was written before a deadline or a dropped connection is not lost.
        stream = TextStream(lambda stream: self._chunks(stream, messages, deadline, adapter, **options))
        text, broken = "", None
        try:
            async with aclosing(stream):
                async for piece in stream:
                    text += piece
        except ModelError as error:
            broken = error
        try:
            value, partial = parsing.parse(text, schema)
        except BadAnswer as error:
            raise broken or error from None
        return Reply(value, stream.usage, stream.ms, partial, broken)

    async def labels(
        self, messages: Messages, labels: Sequence[str], *, deadline: Deadline, adapter: Adapter | None = None
    ) -> Reply[dict[str, float]]:
        """The log-probability of each one-token label as the answer's first word; labels not returned are absent.

        One decoded token judges all labels, as in FIRST (arXiv 2406.15657).
        """
        started = time.monotonic()
        completion = await self._complete(
            messages,
            deadline,
            adapter,
            max_completion_tokens=1,
            temperature=0.0,
            logprobs=True,
            top_logprobs=TOP_LOGPROBS,
        )
        logprobs = choice(completion).logprobs
        if not logprobs or not logprobs.content:
            raise BadAnswer("the server returned no log-probabilities")
        tokens = [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs]
        return Reply(parsing.label_scores(tokens, labels), usage(completion), _ms(started))

    def stream(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        deadline: Deadline,
        temperature: float = 0.0,
        adapter: Adapter | None = None,
    ) -> TextStream:
        """The answer's text piece by piece. Closing the stream, or cancelling who reads it, makes the server stop."""
        return TextStream(
            lambda stream: self._chunks(
                stream, messages, deadline, adapter, max_completion_tokens=max_tokens, temperature=temperature
            )
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _models(self) -> Any:
        return await self._client.models.list()

    async def _reached(self, adapter: Adapter | None, deadline: Deadline) -> tuple[Any, str]:
        """The client that reaches the model, with the adapter or plain, and what it is called there."""
        if adapter is None:
            return self._client, await self.model_name(deadline)
        if adapter.name not in self._adapted:
            self._adapted[adapter.name] = await self._adapt(adapter, deadline)
        return self._adapted[adapter.name]

    async def _adapt(self, adapter: Adapter, deadline: Deadline) -> tuple[Any, str]:
        with OnlyModelErrors():
            await asyncio.to_thread(adapter.check_files)
            if self._start is None:
                models = await attempt(deadline, self._models)
                adapter.check_served([str(model.id) for model in models.data or ()])
                return self._client, adapter.name
            try:
                engine = await within(deadline, asyncio.to_thread(self._start, adapter))
            except ModelError:
                raise
            except EvokeError as error:
                raise ModelDown(str(error)) from None
            return self._client.with_options(base_url=engine.base_url), engine.model_name

    async def _complete(self, messages: Messages, deadline: Deadline, adapter: Adapter | None, **options: Any) -> Any:
        client, model = await self._reached(adapter, deadline)
        with OnlyModelErrors():
            await within(deadline, self._free.acquire())
            try:
                return await attempt(deadline, lambda: self._create(client, model, messages, deadline, **options))
            finally:
                self._free.release()

    async def _chunks(
        self,
        stream: TextStream,
        messages: Messages,
        deadline: Deadline,
        adapter: Adapter | None,
        **options: Any,
    ) -> AsyncGenerator[str, None]:
        from openai.types.chat import ChatCompletionChunk

        client, model = await self._reached(adapter, deadline)
        started = time.monotonic()
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        with OnlyModelErrors():
            await within(deadline, self._free.acquire())
            answer, pieces = None, 0
            try:
                answer = await attempt(deadline, lambda: self._create(client, model, messages, deadline, **options))
                events = answer.aiter_lines()
                # Each event is awaited under a timeout of its own: none may stay open across a yield.
                while (event := await within(deadline, anext(events, None))) is not None:
                    chunk = parsing.chunk(event)
                    if chunk.get("usage"):
                        stream.usage = usage(ChatCompletionChunk.construct(**chunk))
                    if chunk.get("choices") and (text := chunk["choices"][0]["delta"].get("content")):
                        pieces += 1
                        yield text
            finally:
                self._free.release()
                stream.ms = _ms(started)
                # A stream closed early hears no count: servers send one token a piece.
                stream.usage = stream.usage if stream.usage.calls else Usage(tokens_out=pieces, calls=1)
                if answer is not None:
                    await answer.aclose()

    async def _create(self, client: Any, model: str, messages: Messages, deadline: Deadline, **options: Any) -> Any:
        import openai

        options |= {"model": model, "messages": list(messages)}
        options["timeout"] = deadline.remaining() + 1  # ours strikes first; this one frees the connection should it not
        of_the_call = options.pop("extra_body", {})
        of = client.chat.completions
        # The client's own objects, one a token, would cost more than all the rest of a request.
        create: Any = of.with_raw_response.create if "stream" in options else of.create
        while True:
            wanted = {name: value for name, value in options.items() if name not in self._refused}
            extra = {name: value for name, value in self._extra.items() if name not in self._refused}
            try:
                answer = await create(**wanted, extra_body=of_the_call | extra)
                return answer.http_response if "stream" in wanted else answer
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                # Some hosted models take no temperature or seed, some servers no field they do not know: from then on they
                # get none. Which field it is that they do not know, some say in the message only.
                refused = {name for name in OPTIONAL if name == error.param and name in wanted}
                refused |= {name for name in extra if name == error.param or name in str(error)}
                if not refused:
                    raise
                self._refused |= refused


Connect = Callable[[], Awaitable[LLM]]


def _response_format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}}


_http_client = http_client  # LLM's parameter of that name hides it


def _ms(started: float) -> float:
    return (time.monotonic() - started) * 1000
