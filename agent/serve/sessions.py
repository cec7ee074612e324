"""Endpoints of stored conversations: their turns, feedback on an item, removal of a constraint."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from agent.dialogue.session import AsyncSession
from agent.errors import EvokeError, SessionNotFound
from agent.serve.dependencies import CurrentTenant, Id, SessionId
from agent.serve.errors import ApiError
from agent.serve.item_cards import item_cards
from agent.serve.tenants import Tenant


class FeedbackRequest(BaseModel, extra="forbid"):
    """Feedback of the user on an item."""

    item: Id
    kind: Literal["like", "dislike", "seen", "hide"]


class RelaxRequest(BaseModel, extra="forbid"):
    """The constraint to remove, by its position from 0 on."""

    index: int = Field(ge=0)


def install(app: FastAPI) -> None:
    """Add the endpoints to the app."""

    @app.get("/v1/sessions/{id}")
    async def session(id: SessionId, tenant: CurrentTenant) -> dict[str, Any]:
        found = await _load(tenant, id)
        messages, reasons = found.state.messages, found.state.reasons
        shown = [one for message in messages for one in message.get("items", []) if one in reasons]
        ids = [id for one in shown for id in (one, *reasons[one]["evidence"])]
        known = await asyncio.to_thread(item_cards, tenant.recommender.catalog, ids)
        rows = {one: {"id": one, "title": known[one]["title"], **reasons[one]} for one in shown if one in known}
        turns = [m | {"items": [rows[one] for one in m.get("items", []) if one in rows]} for m in messages]
        return found.as_json() | {"turns": turns, "seen": found.state.seen, "details": known}

    @app.post("/v1/sessions/{id}/feedback")
    async def feedback(id: SessionId, body: FeedbackRequest, tenant: CurrentTenant) -> dict[str, Any]:
        found = await _load(tenant, id)
        try:
            await found.feedback(body.item, body.kind)
        except SessionNotFound:
            raise  # the session was deleted meanwhile; the item is not the problem
        except EvokeError as error:
            raise ApiError(404, str(error), code="item_not_found", param="item") from None
        return _without_turns(found)

    @app.post("/v1/sessions/{id}/relax")
    async def relax(id: SessionId, body: RelaxRequest, tenant: CurrentTenant) -> dict[str, Any]:
        found = await _load(tenant, id)
        try:
            await found.relax(body.index)
        except SessionNotFound:
            raise
        except (EvokeError, IndexError):
            raise ApiError(
                404, "this session has no such constraint", code="constraint_not_found", param="index"
            ) from None
        return _without_turns(found)


async def _load(tenant: Tenant, id: str) -> AsyncSession:
    try:
        return await AsyncSession.load(tenant.recommender, id)
    except SessionNotFound:
        raise ApiError(404, "unknown session", code="session_not_found", param="session") from None


def _without_turns(session: AsyncSession) -> dict[str, Any]:
    """Return the session as JSON without its messages."""
    return {name: value for name, value in session.as_json().items() if name != "turns"}
