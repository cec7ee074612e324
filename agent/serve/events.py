"""POST /v1/events stores events before it answers. DELETE /v1/users/{id} deletes everything about a user."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from pydantic import BaseModel, Field

from agent.errors import EvokeError
from agent.serve.dependencies import CurrentTenant
from agent.serve.errors import ApiError
from agent.serve.tenants import Tenant
from store.errors import StoreBusy
from store.idempotency import OtherContent
from store.records import Event, event_fault

_FIELDS = ("user", "item", "timestamp", "rating", "kind")
_KEY = Header(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")


class EventsRequest(BaseModel, extra="forbid"):
    """The body. Each event is checked separately: an invalid one does not keep the others from being stored."""

    events: list[dict[str, Any]] = Field(max_length=10_000)


def install(app: FastAPI) -> None:
    """Add the endpoints to the app."""

    @app.post("/v1/events")
    async def events(
        body: EventsRequest,
        request: Request,
        tenant: CurrentTenant,
        idempotency_key: Annotated[str | None, _KEY] = None,
    ) -> dict[str, Any]:
        digest = hashlib.sha256(await request.body()).hexdigest()
        return await asyncio.to_thread(_add, tenant, body.events, idempotency_key, digest)

    @app.delete("/v1/users/{user:path}")
    async def forget(user: str, tenant: CurrentTenant) -> dict[str, Any]:
        try:
            forgotten = await tenant.recommender.forget(user)
        except EvokeError:
            raise ApiError(404, "no data is stored about this user", code="user_not_found") from None
        except StoreBusy:
            message = "the user's rows are deleted, but the database log still contains traces; repeat this in a moment"
            raise ApiError(503, message, code="store_busy", retry=2) from None
        return {"user": user, "deleted": True, "rows": forgotten.rows, "trained": tenant.recommender.trained}


def _add(tenant: Tenant, sent: list[dict[str, Any]], key: str | None, digest: str) -> dict[str, Any]:
    known = tenant.recommender.catalog.snapshot().rows
    now = time.time()
    kept: list[Event] = []
    rejected = []
    for index, row in enumerate(sent):
        event, reason = _parse_event(row, known, now)
        if event:
            kept.append(event)
        else:
            rejected.append({"index": index, "reason": reason})
    answer: dict[str, Any] = {"accepted": len(kept), "rejected": rejected}
    history = tenant.recommender.history
    if key is None:
        history.add(kept)
    else:
        try:
            answer = history.add_once(key, digest, kept, answer)
        except OtherContent as error:
            raise ApiError(409, str(error), code="idempotency_key_reused", param="Idempotency-Key") from None
    tenant.metrics.events.labels("accepted").inc(answer["accepted"])
    tenant.metrics.events.labels("rejected").inc(len(answer["rejected"]))
    return answer


def _parse_event(row: dict[str, Any], known: Collection[str], now: float) -> tuple[Event | None, str]:
    """Return the event, or None and the reason why it is invalid. Without a timestamp, `now` is used."""
    # The name is not repeated: the answer is stored, and is not deleted with the user (see `store.idempotency`).
    if not row.keys() <= set(_FIELDS):
        return None, f"unknown field; an event has the fields {', '.join(_FIELDS)}"
    if row.get("timestamp") is None:
        row = row | {"timestamp": now}
    if not isinstance(row.get("kind"), str | None):
        return None, '"kind" must be text'
    values: Any = [row.get(name) for name in _FIELDS]
    event = Event(*values)
    if fault := event_fault(event):
        return None, fault
    return (event, "") if event.item in known else (None, "the catalog has no such item")
