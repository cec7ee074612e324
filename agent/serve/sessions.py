"""Kept conversations: what was said, feedback on an item, a constraint lifted."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from agent.dialogue.session import AsyncSession
from agent.errors import EvokeError, SessionNotFound
from agent.serve.dependencies import Id, SessionId, Whose
from agent.serve.errors import Refused
from agent.serve.item_cards import details
from agent.serve.tenants import Tenant


class Said(BaseModel):
    """What the user says of an item."""

    model_config = ConfigDict(extra="forbid")
    item: Id
    kind: Literal["like", "dislike", "seen", "hide"]


class Lifted(BaseModel):
    """Which constraint is taken back, by its place."""

    model_config = ConfigDict(extra="forbid")
    index: int = Field(ge=0)


def install(app: FastAPI) -> None:
    """Add the addresses to the app."""

    @app.get("/v1/sessions/{id}")
    async def session(id: SessionId, tenant: Whose) -> dict[str, Any]:
        found = await _loaded(tenant, id)
        messages, reasons = found.state.messages, found.state.reasons
        shown = [one for message in messages for one in message.get("items", []) if one in reasons]
        ids = [id for one in shown for id in (one, *reasons[one]["evidence"])]
        known = await asyncio.to_thread(details, tenant.recommender.catalog, ids)
        rows = {one: {"id": one, "title": known[one]["title"], **reasons[one]} for one in shown if one in known}
        turns = [m | {"items": [rows[one] for one in m.get("items", []) if one in rows]} for m in messages]
        return found.as_json() | {"turns": turns, "seen": found.state.seen, "details": known}

    @app.post("/v1/sessions/{id}/feedback")
    async def feedback(id: SessionId, said: Said, tenant: Whose) -> dict[str, Any]:
        found = await _loaded(tenant, id)
        try:
            await found.feedback(said.item, said.kind)
        except SessionNotFound:
            raise  # forgotten meanwhile, which is no fault of the item
        except EvokeError as error:
            raise Refused(404, str(error), code="item_not_found", param="item") from None
        return _state(found)

    @app.post("/v1/sessions/{id}/relax")
    async def relax(id: SessionId, lifted: Lifted, tenant: Whose) -> dict[str, Any]:
        found = await _loaded(tenant, id)
        try:
            await found.relax(lifted.index)
        except SessionNotFound:
            raise
        except (EvokeError, IndexError):
            raise Refused(
                404, "this session has no such constraint", code="constraint_not_found", param="index"
            ) from None
        return _state(found)


async def _loaded(tenant: Tenant, id: str) -> AsyncSession:
    try:
        return await AsyncSession.load(tenant.recommender, id)
    except SessionNotFound:
        raise Refused(404, "there is no such session", code="session_not_found", param="session") from None


def _state(session: AsyncSession) -> dict[str, Any]:
    """The session without what was said in it."""
    return {name: value for name, value in session.as_json().items() if name != "turns"}
