"""The client for every language model: any server that speaks the OpenAI protocol, with a deadline for each call.

Every failure is raised as a ModelError with a short reason. The caller then falls back and records the reason in the trace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel

from agent.errors import BadAnswer, EvokeError, ModelDown, ModelError
from agent.llm import embedded, parsing
from agent.llm.adapters import Adapter
from agent.llm.reply import Reply, TextStream, Usage, first_choice, read_usage
from agent.llm.retries import (
    PAUSES,
    Deadline,
    create_http_client,
    retry,
    translate_errors,
    wait_to_retry,
    without_credentials,
)

__all__ = ["LLM", "Connect", "Deadline", "Reply", "TextStream", "Usage"]

M = TypeVar("M", bound=BaseModel)
Messages = Sequence[dict[str, str]]
SchemaFields = Callable[[str, dict[str, Any]], dict[str, Any]]

TOP_LOGPROBS = 20  # servers return at most this many
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
        location: str | None = None,
        schema_fields: SchemaFields | None = None,
        extra: Mapping[str, Any] | None = None,
        start: Callable[[Adapter], embedded.Embedded] | None = None,
        http_client: Any = None,
    ) -> None:
        """Create a client. Nothing is sent before the first call.

        Args:
            base_url: Address of the server, including `/v1`.
            model: Name of the model on the server. Default: the first one that the server lists.
            api_key: API key of the server.
            concurrency: Number of calls at once. Further calls wait.
            location: Replaces the base URL in cache keys. For a base URL that changes from run to run.
            schema_fields: Returns, for the name and the JSON schema of an answer, the request fields that make the server
                enforce the schema. Default: `response_format`.
            extra: Further fields of every request.
            start: Starts an engine for an adapter. Default: the server lists adapters as models.
            http_client: The HTTP client to use, for tests.
        """
        from openai import AsyncOpenAI

        # The key is always explicit. Otherwise openai would send the key in the environment to any server.
        self._client = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "EMPTY",
            max_retries=0,
            http_client=http_client or create_http_client(base_url),
        )
        self._model = model
        self._location = location or without_credentials(base_url)
        self._schema_fields = schema_fields or _response_format
        self._extra = dict(extra or {})
        # Names of optional request fields that this server has refused. A field refused once is never sent to it again.
        self._refused: set[str] = set()
        self._start = start
        self._adapters: dict[str, tuple[Any, str]] = {}
        self._slots = asyncio.Semaphore(concurrency)

    @classmethod
    def embedded(cls, model: str | None = None, *, share_cache: bool = True) -> LLM:
        """Return a client for the embedded model, and start that model if necessary (which blocks for a second or two).

        Without `share_cache`, the requests of this client neither read nor fill the prompt cache that all clients of this
        process share. Raises EvokeError if the engine or the weights are missing.
        """
        engine = embedded.start(model)
        return cls(
            engine.base_url,
            engine.model_name,
            concurrency=embedded.SLOTS,
            location=f"embedded {engine.weights_hash}",  # the hash: a changed weights file must miss every cache
            schema_fields=embedded.grammar,
            extra=None if share_cache else {"cache_prompt": False},
            start=partial(embedded.start, model),
        )

    @property
    def key(self) -> str:
        """Location and name of the model, for cache keys. Complete only after `model_name` was awaited."""
        return f"{self._location} {self._model or '(first)'}"

    def cache_key(self, adapter: Adapter | None) -> str:
        """Return the cache key of the model with an adapter, or without one."""
        return f"{self.key} {adapter.hash}" if adapter else self.key

    async def model_name(self, deadline: Deadline | None = None) -> str:
        """Return the name of the model: the one asked for, else the first that the server lists."""
        if self._model is None:
            with translate_errors():
                models = await retry(deadline or Deadline(10), self._list_models)
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
        """Return an answer of the form `schema`. The server is asked to enforce the form, and the answer is validated anyway.

        If the answer breaks off, the complete part of it is returned, with the reason in `broken`; defaults in `schema` replace
        missing fields. Raises ModelError if nothing can be used or `adapter` is not available.

        Args:
            messages: The chat messages.
            schema: The pydantic model of the answer.
            max_tokens: Number of tokens that the model may write.
            deadline: When to stop waiting.
            temperature: Sampling temperature.
            frequency_penalty: Penalty for repeated tokens.
            seed: Sampling seed.
            adapter: The adapter to answer with; None for the plain model.
        """
        options = {"max_completion_tokens": max_tokens, "temperature": temperature, "seed": seed}
        options |= {"frequency_penalty": frequency_penalty} if frequency_penalty else {}
        options |= self._schema_fields(schema.__name__, parsing.strict_schema(schema))
        # Streamed, so that text written before a deadline or a dropped connection is not lost.
        stream = TextStream(lambda stream: self._stream_text(stream, messages, deadline, adapter, **options))
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
        """Return the log-probability of each one-token label as the first word of the answer.

        One decoded token scores all labels, as in FIRST (arXiv 2406.15657). Labels that the server does not return are missing
        in the reply.

        Args:
            messages: The chat messages.
            labels: The labels to score, one token each.
            deadline: When to stop waiting.
            adapter: The adapter to answer with; None for the plain model.
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
        logprobs = first_choice(completion).logprobs
        if not logprobs or not logprobs.content:
            raise BadAnswer("the server returned no log-probabilities")
        tokens = [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs]
        return Reply(parsing.label_scores(tokens, labels), read_usage(completion), _ms_since(started))

    def stream(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        deadline: Deadline,
        temperature: float = 0.0,
        adapter: Adapter | None = None,
    ) -> TextStream:
        """Return an answer as a stream of text. If the stream is closed or its reader is cancelled, the server stops writing.

        Args:
            messages: The chat messages.
            max_tokens: Number of tokens that the model may write.
            deadline: When to stop waiting.
            temperature: Sampling temperature.
            adapter: The adapter to answer with; None for the plain model.
        """
        return TextStream(
            lambda stream: self._stream_text(
                stream, messages, deadline, adapter, max_completion_tokens=max_tokens, temperature=temperature
            )
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _list_models(self) -> Any:
        return await self._client.models.list()

    async def _client_for(self, adapter: Adapter | None, deadline: Deadline) -> tuple[Any, str]:
        """Return the client for the model with or without an adapter, and the model's name there."""
        if adapter is None:
            return self._client, await self.model_name(deadline)
        if adapter.name not in self._adapters:
            self._adapters[adapter.name] = await self._find_adapter(adapter, deadline)
        return self._adapters[adapter.name]

    async def _find_adapter(self, adapter: Adapter, deadline: Deadline) -> tuple[Any, str]:
        with translate_errors():
            await asyncio.to_thread(adapter.check_files)
            if self._start is None:
                models = await retry(deadline, self._list_models)
                adapter.check_served([str(model.id) for model in models.data or ()])
                return self._client, adapter.name
            try:
                async with deadline.timeout():
                    engine = await asyncio.to_thread(self._start, adapter)
            except ModelError:
                raise
            except EvokeError as error:
                raise ModelDown(str(error)) from None
            return self._client.with_options(base_url=engine.base_url), engine.model_name

    async def _complete(self, messages: Messages, deadline: Deadline, adapter: Adapter | None, **options: Any) -> Any:
        client, model = await self._client_for(adapter, deadline)
        with translate_errors():
            async with deadline.timeout():
                await self._slots.acquire()
            try:
                return await self._create(client, model, messages, deadline, **options)
            finally:
                self._slots.release()

    async def _stream_text(
        self,
        stream: TextStream,
        messages: Messages,
        deadline: Deadline,
        adapter: Adapter | None,
        **options: Any,
    ) -> AsyncGenerator[str, None]:
        from openai.types.chat import ChatCompletionChunk

        client, model = await self._client_for(adapter, deadline)
        started = time.monotonic()
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        with translate_errors():
            async with deadline.timeout():
                await self._slots.acquire()
            answer, pieces = None, 0
            try:
                answer = await self._create(client, model, messages, deadline, **options)
                events = answer.aiter_lines()
                while True:
                    # Each event is awaited under a timeout of its own: a timeout must not stay open across a yield.
                    async with deadline.timeout():
                        event = await anext(events, None)
                    if event is None:
                        break
                    chunk = parsing.parse_event(event)
                    if chunk.get("usage"):
                        stream.usage = read_usage(ChatCompletionChunk.construct(**chunk))
                    if chunk.get("choices") and (text := chunk["choices"][0]["delta"].get("content")):
                        pieces += 1
                        yield text
            finally:
                self._slots.release()
                stream.ms = _ms_since(started)
                # A stream that was closed early gets no token count from the server. Servers send one token in each piece.
                stream.usage = stream.usage if stream.usage.calls else Usage(tokens_out=pieces, calls=1)
                if answer is not None:
                    await answer.aclose()

    async def _create(self, client: Any, model: str, messages: Messages, deadline: Deadline, **options: Any) -> Any:
        """Return the answer to one chat completion request.

        It is sent again without optional fields that the server refuses, and, after a pause, where the server cannot have
        processed it (see `agent.llm.retries.retry`).
        """
        import openai

        options |= {"model": model, "messages": list(messages)}
        options["timeout"] = deadline.remaining() + 1  # a second line of defence, which frees the connection
        call_fields = options.pop("extra_body", {})
        completions = client.chat.completions
        # Streams are read as raw lines: the client's own object for each token would cost more than the rest of a request.
        create: Any = completions.with_raw_response.create if "stream" in options else completions.create
        pauses = iter(PAUSES)
        while True:
            sent = {name: value for name, value in options.items() if name not in self._refused}
            extra = {name: value for name, value in self._extra.items() if name not in self._refused}
            try:
                async with deadline.timeout():
                    answer = await create(**sent, extra_body=call_fields | extra)
                return answer.http_response if "stream" in sent else answer
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                # Some hosted models do not accept a temperature or seed, and some servers refuse fields that they do not
                # know. Some servers name the field in `param`, others only in the message.
                refused = {name for name in OPTIONAL if name == error.param and name in sent}
                refused |= {name for name in extra if name == error.param or name in str(error)}
                if not refused:
                    raise
                self._refused |= refused
            except Exception as error:
                await wait_to_retry(error, pauses, deadline)


Connect = Callable[[], Awaitable[LLM]]


def _response_format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}}


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1000
