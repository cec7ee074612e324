"""What endpoints share: whose request it is, and waiting for an answer no longer than it is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from pydantic import StringConstraints

from agent.results import Trace
from agent.serve.errors import Refused
from agent.serve.tenants import Tenant

T = TypeVar("T")

Id = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]+$")]
SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


async def tenant_of(request: Request) -> Tenant:
    """The tenant that the gate let in."""
    return cast(Tenant, request.state.tenant)


Whose = Annotated[Tenant, Depends(tenant_of)]


async def wanted(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. It is cancelled when the client leaves, and at the deadline (Refused, 504)."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(request.state.gone.wait())
    try:
        await asyncio.wait(
            {task, gone}, timeout=request.app.state.serving.deadline, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if gone.done():
            raise Refused(499, "the client left", code="client_left")
        raise Refused(504, "no answer within the service's deadline", code="deadline_exceeded")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def note(request: Request, tenant: Tenant, trace: Trace | None) -> None:
    """Count the stages of an answer, and trace them."""
    tenant.metrics.trace(trace)
    request.app.state.tracing.stages(request.state.span, trace)
