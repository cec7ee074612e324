"""Whether the service lives, how well it can work, and its metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from agent.llm import connect
from agent.serve.dependencies import Whose
from agent.serve.tenants import Tenant, Tenants
from store.errors import StoreError

_FRESH = 10
"""Seconds for which an answer about the model stands: asking costs a model call."""
_PATIENCE = 5


def install(app: FastAPI) -> None:
    """Add the addresses to the app."""
    readiness = _Readiness(app.state.tenants)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse(found := await readiness.asked(), 503 if found["status"] == "down" else 200)

    @app.get("/metrics")
    async def metrics(tenant: Whose) -> Response:
        return Response(tenant.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class _Readiness:
    """Over all tenants at once: who asks needs no key, and learns nothing of any of them."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._found: dict[str, Any] = {}
        self._at = -_FRESH * 2.0
        self._asking = asyncio.Lock()

    async def asked(self) -> dict[str, Any]:
        """{"status": "ok" | "degraded" | "down", "store": ..., "model": ..., "degraded": [{"part", "reason"}]}."""
        async with self._asking:
            if time.monotonic() - self._at > _FRESH:
                self._found = await self._look()
                self._at = time.monotonic()
        return self._found

    async def _look(self) -> dict[str, Any]:
        tenants = self._tenants.all
        stores = await asyncio.gather(*(asyncio.to_thread(_reads, tenant) for tenant in tenants))
        models = await asyncio.gather(*(_answers(tenant) for tenant in tenants))
        degraded = []
        if not all(stores):
            some = "no store can be read" if not any(stores) else "a store cannot be read"
            degraded.append({"part": "store", "reason": some})
        degraded += [{"part": "model", "reason": reason} for reason in sorted({said for said in models if said})]
        status = "down" if not any(stores) else "degraded" if degraded else "ok"
        return {"status": status, "store": all(stores), "model": not any(models), "degraded": degraded}


def _reads(tenant: Tenant) -> bool:
    try:
        catalog, history = tenant.recommender.catalog, tenant.recommender.history
        return bool(history.version) and len(catalog) > 0
    except StoreError:
        return False


async def _answers(tenant: Tenant) -> str | None:
    """None, or why the model does not answer: recommendations are then given without it."""
    try:
        async with asyncio.timeout(_PATIENCE):
            found = await connect.check(tenant.recommender.settings)
    except TimeoutError:
        return f"no answer within {_PATIENCE} s"
    return None if found["answers"] else found["reason"]
