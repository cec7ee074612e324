"""POST /v1/recommendations: a request in JSON, the recommendation JSON back."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from agent.serve.dependencies import Id, Whose, note, wanted
from agent.serve.errors import Refused
from agent.serve.tenants import Tenant
from store.errors import StoreError
from store.filters import normalised


class Asked(BaseModel):
    """The body: as `Recommender.recommend` takes it."""

    model_config = ConfigDict(extra="forbid")
    user: Id | None = None
    text: str | None = Field(None, max_length=20_000)
    history: list[Id] | None = Field(None, max_length=1000)
    n: int = Field(10, ge=1, le=100)
    where: dict[str, Any] | None = None
    exclude: list[Id] = Field([], max_length=10_000)


def install(app: FastAPI) -> None:
    """Add the address to the app."""

    @app.post("/v1/recommendations")
    async def recommendations(asked: Asked, request: Request, tenant: Whose) -> dict[str, Any]:
        await asyncio.to_thread(_check, tenant, asked.where)
        result = await wanted(
            request,
            tenant.recommender.recommend(
                asked.text,
                user=asked.user,
                history=asked.history,
                n=asked.n,
                where=asked.where,
                exclude=asked.exclude,
            ),
        )
        note(request, tenant, result.trace)
        return result.as_json()


def _check(tenant: Tenant, where: dict[str, Any] | None) -> None:
    schema = tenant.recommender.catalog.schema()
    try:
        normalised(where, schema)
    except StoreError as error:
        raise Refused(400, str(error), code="invalid_filter", param="where") from None
