"""The outermost layer: checks host, API key, rate, concurrency and size of every request, and counts every response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from agent.llm.retries import LOOPBACK
from agent.serve.errors import ApiError, to_api_error
from agent.serve.tenants import Tenant, Tenants
from agent.serve.tracing import Tracing
from agent.settings import Serving

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BODY_SECONDS = 30
"""Time limit for receiving a request body, in seconds."""
_PROTECTED = ("/v1/", "/metrics")


class Middleware:
    """The outermost ASGI app. It adds `tenant` and `span` to the state of a request."""

    def __init__(self, app: Any, tenants: Tenants, serving: Serving, tracing: Tracing) -> None:
        self._app, self._tenants, self._serving, self._tracing = app, tenants, serving, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, complete = time.perf_counter(), 0, False
        tenant: Tenant | None = None

        async def send_counted(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-content-type-options", b"nosniff"))
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        with self._tracing.request_span(scope["method"]) as span:
            try:
                tenant = self._admit(scope)
                if tenant:
                    tenant.metrics.running.inc()
                await self._answer(scope, receive, send_counted, tenant, span)
            except Exception as error:
                if not status:
                    await to_api_error(error).response()(scope, receive, send_counted)
                elif not complete:
                    raise  # the response has begun: the server closes the connection and logs the error
            finally:
                route = getattr(scope.get("route"), "path", "none")
                if tenant:
                    tenant.running -= 1
                    tenant.metrics.running.dec()
                    tenant.metrics.count_request(route, status or 499, time.perf_counter() - started)
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.response.status_code", status)

    def _admit(self, scope: Scope) -> Tenant | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._tenants.keyless and not _is_local(headers.get(b"host", "")):
            # Otherwise any web page could reach the service through a host name that resolves to this machine (DNS rebinding).
            raise ApiError(403, "without API keys only requests to localhost are served", code="host_not_allowed")
        if not scope["path"].startswith(_PROTECTED):
            return None
        if _length(headers) > self._serving.body:
            raise self._too_large()
        return self._tenants.admit(headers.get(b"authorization"))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, tenant: Tenant | None, span: Any) -> None:
        body = [await self._body(receive)]

        async def receive_body() -> Message:
            return {"type": "http.request", "body": body.pop(), "more_body": False} if body else await receive()

        scope.setdefault("state", {}).update(tenant=tenant, span=span)
        await self._app(scope, receive_body, send)

    async def _body(self, receive: Receive) -> bytes:
        """Return the body. Raises ApiError if it is too large or does not arrive in time."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the request was interrupted", code="bad_request")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._serving.body:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, "the request did not arrive in time", code="request_timeout") from None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self._serving.body} bytes", code="request_too_large")


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in LOOPBACK


def _length(headers: dict[bytes, str]) -> int:
    length = headers.get(b"content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0 if not length else 2**63
