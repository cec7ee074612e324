"""What every request passes first: the host it came by, key, rate, concurrency, size. And what is counted of every one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from agent.llm.retries import LOOPBACK
from agent.serve.errors import Refused, handled
from agent.serve.tenants import Tenant, Tenants
from agent.serve.tracing import Tracing
from agent.settings import Serving

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BODY_SECONDS = 30
"""A body that takes longer to arrive is not waited for."""
_PROTECTED = ("/v1/", "/metrics")


class Gate:
    """The outermost ASGI app. A request's state gets `tenant`, `gone` (set when the client left) and `span`."""

    def __init__(self, app: Any, tenants: Tenants, serving: Serving, tracing: Tracing) -> None:
        self._app, self._tenants, self._serving, self._tracing = app, tenants, serving, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, whole = time.perf_counter(), 0, False
        tenant: Tenant | None = None

        async def counted(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-content-type-options", b"nosniff"))
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body")

        with self._tracing.request(scope["method"]) as span:
            try:
                tenant = self._admitted(scope)
                if tenant:
                    tenant.metrics.running.inc()
                await self._answer(scope, receive, counted, tenant, span)
            except Exception as error:
                if not status:
                    await handled(error).response()(scope, receive, counted)
                elif not whole:
                    raise  # the answer had begun: the connection is cut, and the server logs why
            finally:
                route = getattr(scope.get("route"), "path", "none")
                if tenant:
                    tenant.running -= 1
                    tenant.metrics.running.dec()
                    tenant.metrics.request(route, status or 499, time.perf_counter() - started)
                if span:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.response.status_code", status)

    def _admitted(self, scope: Scope) -> Tenant | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._tenants.keyless and not _is_local(headers.get(b"host", "")):
            # Else any page in a browser could reach the service by a name of its own that leads to this machine.
            raise Refused(403, "without API keys only requests to localhost are served", code="host_not_allowed")
        if not scope["path"].startswith(_PROTECTED):
            return None
        if _length(headers) > self._serving.body:
            raise self._too_large()
        return self._tenants.admitted(headers.get(b"authorization"))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, tenant: Tenant | None, span: Any) -> None:
        body = await self._body(receive)
        gone = asyncio.Event()
        watching = asyncio.create_task(_watch(receive, gone))
        told = False

        async def replayed() -> Message:
            nonlocal told
            if not told:
                told = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        scope.setdefault("state", {}).update(tenant=tenant, gone=gone, span=span)
        try:
            await self._app(scope, replayed, send)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _body(self, receive: Receive) -> bytes:
        """The whole body, never more than is allowed of it."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the request broke off", code="bad_request")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._serving.body:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, "the request did not arrive in time", code="request_timeout") from None

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self._serving.body} bytes", code="request_too_large")


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in LOOPBACK


def _length(headers: dict[bytes, str]) -> int:
    length = headers.get(b"content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0 if not length else 2**63
