"""POST /v1/chat/completions, compatible with OpenAI's API, as JSON or as a stream; and GET /v1/models."""

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
from agent.serve.dependencies import CurrentTenant, Id, SessionId, record_trace, wait_for
from agent.serve.errors import ApiError, to_api_error
from agent.serve.item_cards import item_cards
from agent.serve.streaming import AnswerTask, Stop
from agent.serve.tenants import Tenant

MODEL = "evoke"
Text = Annotated[str, StringConstraints(max_length=20_000)]


class Part(BaseModel):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None

    @property
    def text(self) -> str:
        """Text of the message as one string."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields of the body that are used. Others, such as sampling parameters, are accepted and ignored.

    `session` is the id of a stored conversation, which is created if necessary: then only the last message is read. `user` is
    the user whose history is used.
    """

    model: str
    messages: list[Message] = Field(min_length=1, max_length=500)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    session: SessionId | None = None
    user: Id | None = None


def install(app: FastAPI) -> None:
    """Add the endpoints to the app."""
    model = {"id": MODEL, "object": "model", "created": int(time.time()), "owned_by": "evoke"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        _check_model(name)
        return model

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request, tenant: CurrentTenant) -> Any:
        _check_model(body.model)
        if body.messages[-1].role != "user" or not body.messages[-1].text.strip():
            message = "the last message must have the role user and must not be empty"
            raise ApiError(400, message, param="messages")
        session = await _open_session(body, tenant)
        answer = Answer(body, request, tenant, session)
        return await (answer.stream() if body.stream else answer.complete())


def _check_model(model: str) -> None:
    if model != MODEL:
        message = f"unknown model: this service has only {MODEL}"
        raise ApiError(404, message, code="model_not_found", param="model")


async def _open_session(body: ChatRequest, tenant: Tenant) -> AsyncSession:
    if body.session is None:
        messages = [{"role": m.role, "content": m.text} for m in body.messages]
        return await asyncio.to_thread(AsyncSession.of_messages, tenant.recommender, messages, body.user)
    try:
        return await asyncio.to_thread(tenant.recommender.session, body.user, body.session)
    except EvokeError:
        message = "this session belongs to another user"
        raise ApiError(400, message, code="session_of_another_user", param="user") from None


class Answer:
    """The answer to one request, as JSON or as a stream."""

    def __init__(self, body: ChatRequest, request: Request, tenant: Tenant, session: AsyncSession) -> None:
        self._body, self._request, self._tenant, self._session = body, request, tenant, session
        self._text = body.messages[-1].text
        self._detailed: set[str] = set()  # ids of the items whose details have been sent
        self._header = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": MODEL,
            "session": body.session,
        }

    async def complete(self) -> dict[str, Any]:
        """Return the completion as JSON."""
        turn = await wait_for(self._request, self._session.send(self._text))
        record_trace(self._request, self._tenant, turn.trace)
        choice = {"index": 0, "message": {"role": "assistant", "content": turn.text}, "finish_reason": "stop"}
        extra = await self._extra(turn)
        return {**self._header, "object": "chat.completion", "choices": [choice], "usage": _usage(turn), **extra}

    async def stream(self) -> Response:
        """Return the stream once its first event exists, so that earlier errors get an HTTP status of their own."""
        started = time.perf_counter()
        task = AnswerTask(self._session, self._text)
        answers: set[AnswerTask] = self._request.app.state.answers
        answers.add(task)
        try:
            first = await wait_for(self._request, task.next())
        except BaseException:
            answers.discard(task)
            await task.end()
            raise
        return EventSourceResponse(
            self._events(task, first, started), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def _events(self, task: AnswerTask, event: Event | Stop, started: float) -> AsyncGenerator[bytes, None]:
        loop, state = asyncio.get_running_loop(), self._request.app.state
        late = loop.call_later(state.serving.deadline, task.stop, "the answer took longer than the service allows")
        if state.stopping:
            task.stop("the service is being stopped")
        try:
            async with aclosing(self._chunks(task, event, started)) as chunks:
                async for chunk in chunks:
                    yield format_sse_event(data_str=json.dumps(chunk, ensure_ascii=False, separators=(",", ":")))
            yield format_sse_event(data_str="[DONE]")
        except Exception as error:
            yield format_sse_event(data_str=json.dumps(to_api_error(error).as_json()))
        finally:
            late.cancel()
            state.answers.discard(task)
            # Not awaited here, because the client may be gone. The task saves the conversation and ends by itself.
            ending = asyncio.ensure_future(task.end())
            state.ending.add(ending)
            ending.add_done_callback(state.ending.discard)

    async def _chunks(
        self, task: AnswerTask, event: Event | Stop, started: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        constraints: list[dict[str, Any]] = []
        begun = False
        while True:
            if isinstance(event, Understanding):
                constraints = [constraint.as_json() for constraint in event.understood.constraints]
            elif isinstance(event, Items):
                if not begun:
                    self._tenant.metrics.first_items.observe(time.perf_counter() - started)
                yield self._chunk(_first_delta(begun)) | await self._items(event.items) | {"constraints": constraints}
                begun = True
            elif not begun:
                begun = True
                yield self._chunk(_first_delta(False)) | {"recommendations": [], "constraints": constraints}
            if isinstance(event, Words):
                yield self._chunk({"content": event.text})
            elif isinstance(event, Done):
                record_trace(self._request, self._tenant, event.turn.trace)
                yield self._chunk({}, "stop") | await self._extra(event.turn)
                if self._body.stream_options and self._body.stream_options.include_usage:
                    yield self._chunk({}) | {"choices": [], "usage": _usage(event.turn)}
                return
            elif isinstance(event, Stop):
                await task.end()
                degraded = [{"stage": "stream", "reason": event.reason}]
                yield self._chunk({}, "length") | {"degraded": degraded}
                return
            event = await task.next()

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._header, "object": "chat.completion.chunk", "choices": [choice]}

    async def _extra(self, turn: Turn) -> dict[str, Any]:
        return {
            **await self._items(turn.items),
            "constraints": [constraint.as_json() for constraint in turn.constraints],
            "degraded": turn.degraded,
            "question": turn.question,
            "profile": turn.profile.as_json() if turn.profile else None,
            "trace": turn.trace.as_json() if turn.trace else None,
            "session": self._body.session,
        }

    async def _items(self, items: list[Recommendation]) -> dict[str, Any]:
        """Return the items as JSON. In a stored conversation, the details of new items are added, for their cards."""
        row: dict[str, Any] = {"recommendations": [item.as_json() for item in items]}
        new = [id for item in items for id in (item.item.id, *item.evidence) if id not in self._detailed]
        if self._body.session and new:
            self._detailed.update(new)
            row["details"] = await asyncio.to_thread(item_cards, self._tenant.recommender.catalog, new)
        return row


def _first_delta(begun: bool) -> dict[str, Any]:
    return {} if begun else {"role": "assistant", "content": ""}


def _usage(turn: Turn) -> dict[str, int]:
    total = turn.tokens_in + turn.tokens_out
    return {"prompt_tokens": turn.tokens_in, "completion_tokens": turn.tokens_out, "total_tokens": total}
