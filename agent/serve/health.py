"""GET /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from agent.llm import connect
from agent.serve.dependencies import CurrentTenant
from agent.serve.tenants import Tenant, Tenants
from store.errors import StoreError

_MAX_AGE = 10
"""Seconds for which a result is reused: each check costs a model call."""
_TIMEOUT = 5


def install(app: FastAPI) -> None:
    """Add the endpoints to the app."""
    readiness = _Readiness(app.state.tenants)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse(found := await readiness.check(), 503 if found["status"] == "down" else 200)

    @app.get("/metrics")
    async def metrics(tenant: CurrentTenant) -> Response:
        return Response(tenant.metrics.render(), media_type=CONTENT_TYPE_LATEST)


class _Readiness:
    """The state of all tenants together. It needs no API key, and says nothing about a single tenant."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._last: dict[str, Any] = {}
        self._at = -_MAX_AGE * 2.0
        self._lock = asyncio.Lock()

    async def check(self) -> dict[str, Any]:
        """Return {"status": "ok" | "degraded" | "down", "store": ..., "model": ..., "degraded": [{"part", "reason"}]}."""
        async with self._lock:
            if time.monotonic() - self._at > _MAX_AGE:
                self._last = await self._check()
                self._at = time.monotonic()
        return self._last

    async def _check(self) -> dict[str, Any]:
        tenants = self._tenants.all
        stores = await asyncio.gather(*(asyncio.to_thread(_is_readable, tenant) for tenant in tenants))
        models = await asyncio.gather(*(_model_fault(tenant) for tenant in tenants))
        degraded = []
        if not all(stores):
            reason = "no store can be read" if not any(stores) else "a store cannot be read"
            degraded.append({"part": "store", "reason": reason})
        degraded += [{"part": "model", "reason": reason} for reason in sorted({fault for fault in models if fault})]
        status = "down" if not any(stores) else "degraded" if degraded else "ok"
        return {"status": status, "store": all(stores), "model": not any(models), "degraded": degraded}


def _is_readable(tenant: Tenant) -> bool:
    try:
        catalog, history = tenant.recommender.catalog, tenant.recommender.history
        return bool(history.version) and len(catalog) > 0
    except StoreError:
        return False


async def _model_fault(tenant: Tenant) -> str | None:
    """Return None, or the reason why the model does not answer. Recommendations are then made without it."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            found = await connect.check(tenant.recommender.settings)
    except TimeoutError:
        return f"no answer within {_TIMEOUT} s"
    return None if found["answers"] else found["reason"]
