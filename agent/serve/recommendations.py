"""POST /v1/recommendations: recommend items for a JSON request."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from agent.serve.dependencies import CurrentTenant, Id, record_trace, wait_for
from agent.serve.errors import ApiError
from agent.serve.tenants import Tenant
from store.errors import StoreError
from store.filters import normalise_filter


class RecommendationRequest(BaseModel, extra="forbid"):
    """The body, with the arguments of `Recommender.recommend`."""

    user: Id | None = None
    text: str | None = Field(None, max_length=20_000)
    history: list[Id] | None = Field(None, max_length=1000)
    n: int = Field(10, ge=1, le=100)
    where: dict[str, Any] | None = None
    exclude: list[Id] = Field([], max_length=10_000)


def install(app: FastAPI) -> None:
    """Add the endpoint to the app."""

    @app.post("/v1/recommendations")
    async def recommendations(body: RecommendationRequest, request: Request, tenant: CurrentTenant) -> dict[str, Any]:
        await asyncio.to_thread(_check_filter, tenant, body.where)
        result = await wait_for(request, tenant.recommender.recommend(**body.model_dump()))
        record_trace(request, tenant, result.trace)
        return result.as_json()


def _check_filter(tenant: Tenant, where: dict[str, Any] | None) -> None:
    schema = tenant.recommender.catalog.schema()
    try:
        normalise_filter(where, schema)
    except StoreError as error:
        raise ApiError(400, str(error), code="invalid_filter", param="where") from None
