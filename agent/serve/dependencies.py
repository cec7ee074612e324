"""Code shared by the endpoints: the tenant of a request, and waiting for a result while the client does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from pydantic import StringConstraints

from agent.results import Trace
from agent.serve.errors import ApiError
from agent.serve.tenants import Tenant

T = TypeVar("T")

Id = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]+$")]
SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


async def current_tenant(request: Request) -> Tenant:
    """Return the tenant that the middleware admitted."""
    return cast(Tenant, request.state.tenant)


CurrentTenant = Annotated[Tenant, Depends(current_tenant)]


async def wait_for(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. It is cancelled if the client disconnects (ApiError 499), and at the deadline (504)."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait(
            {task, gone}, timeout=request.app.state.serving.deadline, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if gone.done():
            raise ApiError(499, "the client disconnected", code="client_left")
        raise ApiError(504, "no answer within the service's deadline", code="deadline_exceeded")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def record_trace(request: Request, tenant: Tenant, trace: Trace | None) -> None:
    """Record the stages of an answer in the metrics and as spans."""
    tenant.metrics.count_trace(trace)
    request.app.state.tracing.record_stages(request.state.span, trace)
