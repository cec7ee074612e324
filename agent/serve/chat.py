"""POST /v1/chat/completions as OpenAI's clients know it, in JSON or as a stream, and /v1/models."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel, Field, StringConstraints

from agent.dialogue.events import Done, Event, Items, Turn, Understanding, Words
from agent.dialogue.session import AsyncSession
from agent.errors import EvokeError
from agent.results import Recommendation
from agent.serve.dependencies import Id, SessionId, Whose, note, wanted
from agent.serve.errors import Refused, handled
from agent.serve.item_cards import details
from agent.serve.streaming import Stop, Writing
from agent.serve.tenants import Tenant

MODEL = "evoke"
Text = Annotated[str, StringConstraints(max_length=20_000)]


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None

    @property
    def text(self) -> str:
        """The message in one string."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """What a stream should tell beside the answer."""

    include_usage: bool = False


class Asked(BaseModel):
    """The body, as far as it means anything here; sampling parameters are taken and have no effect.

    `session` names a conversation that is kept (begun where there is none by this id): then only the last message counts.
    `user` is the user whose history counts.
    """

    model: str
    messages: list[Message] = Field(min_length=1, max_length=500)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    session: SessionId | None = None
    user: Id | None = None


def install(app: FastAPI) -> None:
    """Add the addresses to the app."""
    model = {"id": MODEL, "object": "model", "created": int(time.time()), "owned_by": "evoke"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        _known(name)
        return model

    @app.post("/v1/chat/completions")
    async def chat(asked: Asked, request: Request, tenant: Whose) -> Any:
        _known(asked.model)
        if asked.messages[-1].role != "user" or not asked.messages[-1].text.strip():
            raise Refused(400, "the last message must be the user's, and not empty", param="messages")
        session = await _session(asked, tenant)
        answer = Answer(asked, request, tenant, session)
        return await (answer.streamed() if asked.stream else answer.whole())


def _known(model: str) -> None:
    if model != MODEL:
        said = f"there is no model of the name asked for: this service has {MODEL}"
        raise Refused(404, said, code="model_not_found", param="model")


async def _session(asked: Asked, tenant: Tenant) -> AsyncSession:
    if asked.session is None:
        messages = [{"role": m.role, "content": m.text} for m in asked.messages]
        return await asyncio.to_thread(AsyncSession.of_messages, tenant.recommender, messages, asked.user)
    try:
        return await asyncio.to_thread(tenant.recommender.session, asked.user, asked.session)
    except EvokeError:
        raise Refused(400, "this session is another user's", code="session_of_another_user", param="user") from None


class Answer:
    """One answer to one request, in either form."""

    def __init__(self, asked: Asked, request: Request, tenant: Tenant, session: AsyncSession) -> None:
        self._asked, self._request, self._tenant, self._session = asked, request, tenant, session
        self._text = asked.messages[-1].text
        self._told: set[str] = set()
        self._facts = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": MODEL,
            "session": asked.session,
        }

    async def whole(self) -> dict[str, Any]:
        """The completion."""
        turn = await wanted(self._request, self._session.send(self._text))
        note(self._request, self._tenant, turn.trace)
        choice = {"index": 0, "message": {"role": "assistant", "content": turn.text}, "finish_reason": "stop"}
        extra = await self._extra(turn)
        return {**self._facts, "object": "chat.completion", "choices": [choice], "usage": _usage(turn), **extra}

    async def streamed(self) -> Response:
        """The stream, once its first event is there: what goes wrong before that gets a status of its own."""
        started = time.perf_counter()
        writing = Writing(self._session, self._text)
        open_ones: set[Writing] = self._request.app.state.writing
        open_ones.add(writing)
        try:
            first = await wanted(self._request, writing.next())
        except BaseException:
            open_ones.discard(writing)
            await writing.end()
            raise
        return EventSourceResponse(
            self._sent(writing, first, started), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def _sent(self, writing: Writing, event: Event | Stop, started: float) -> AsyncGenerator[bytes, None]:
        loop, state = asyncio.get_running_loop(), self._request.app.state
        late = loop.call_later(state.serving.deadline, writing.stop, "the answer took longer than the service allows")
        if state.stopping:
            writing.stop("the service is being stopped")
        try:
            async with aclosing(self._chunks(writing, event, started)) as chunks:
                async for chunk in chunks:
                    yield format_sse_event(data_str=json.dumps(chunk, ensure_ascii=False, separators=(",", ":")))
            yield format_sse_event(data_str="[DONE]")
        except Exception as error:
            yield format_sse_event(data_str=json.dumps(handled(error).as_json()))
        finally:
            late.cancel()
            state.writing.discard(writing)
            # Not awaited when the reader has gone: the task ends by itself, and saves what was said.
            ending = asyncio.ensure_future(writing.end())
            state.ending.add(ending)
            ending.add_done_callback(state.ending.discard)

    async def _chunks(
        self, writing: Writing, event: Event | Stop, started: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        constraints: list[dict[str, Any]] = []
        begun = False
        while True:
            if isinstance(event, Understanding):
                constraints = [constraint.as_json() for constraint in event.understood.constraints]
            elif isinstance(event, Items):
                if not begun:
                    self._tenant.metrics.first_items.observe(time.perf_counter() - started)
                yield self._chunk(_opening(begun)) | await self._shown(event.items) | {"constraints": constraints}
                begun = True
            elif not begun:
                begun = True
                yield self._chunk(_opening(False)) | {"recommendations": [], "constraints": constraints}
            if isinstance(event, Words):
                yield self._chunk({"content": event.text})
            elif isinstance(event, Done):
                note(self._request, self._tenant, event.turn.trace)
                yield self._chunk({}, "stop") | await self._extra(event.turn)
                if self._asked.stream_options and self._asked.stream_options.include_usage:
                    yield self._chunk({}) | {"choices": [], "usage": _usage(event.turn)}
                return
            elif isinstance(event, Stop):
                await writing.end()
                degraded = [{"stage": "stream", "reason": event.reason}]
                yield self._chunk({}, "length") | {"degraded": degraded}
                return
            event = await writing.next()

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._facts, "object": "chat.completion.chunk", "choices": [choice]}

    async def _extra(self, turn: Turn) -> dict[str, Any]:
        return {
            **await self._shown(turn.items),
            "constraints": [constraint.as_json() for constraint in turn.constraints],
            "degraded": turn.degraded,
            "question": turn.question,
            "profile": turn.profile.as_json() if turn.profile else None,
            "trace": turn.trace.as_json() if turn.trace else None,
            "session": self._asked.session,
        }

    async def _shown(self, items: list[Recommendation]) -> dict[str, Any]:
        """The items as JSON, and in a kept conversation what their cards say, once."""
        shown: dict[str, Any] = {"recommendations": [item.as_json() for item in items]}
        new = [id for item in items for id in (item.item.id, *item.evidence) if id not in self._told]
        if self._asked.session and new:
            self._told.update(new)
            shown["details"] = await asyncio.to_thread(details, self._tenant.recommender.catalog, new)
        return shown


def _opening(begun: bool) -> dict[str, Any]:
    return {} if begun else {"role": "assistant", "content": ""}


def _usage(turn: Turn) -> dict[str, int]:
    total = turn.tokens_in + turn.tokens_out
    return {"prompt_tokens": turn.tokens_in, "completion_tokens": turn.tokens_out, "total_tokens": total}
