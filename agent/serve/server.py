"""The app put together, and the process around it: where it may listen, and how it ends."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from agent.dialogue.nlu.lexicon import Lexicon
from agent.errors import EvokeError
from agent.serve import chat, errors, events, health, page, recommendations, sessions
from agent.serve.middleware import Gate
from agent.serve.tenants import Tenants
from agent.serve.tracing import Tracing
from agent.settings import Serving, Settings
from store import Catalog
from store.errors import StoreError
from store.paths import last_store

log = logging.getLogger("evoke")

READ = 2000
"""Items read into memory at the start."""
THREADS = 32
GRACE = 15
"""Seconds that requests have to end when the service is stopped; streams end at once, whole."""


class App:
    """The service as an ASGI app; `stop` makes its streams end cleanly."""

    def __init__(self, tenants: Tenants, serving: Serving) -> None:
        self.tenants = tenants
        self.tracing = tracing = Tracing()

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            # Threads mostly wait, for the disk or for each other's batch in the encoder: more of them than cores.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "evoke"))
            for tenant in tenants.all:
                await tenant.recommender.warm()
                await asyncio.to_thread(_read, tenant.recommender.catalog)
            yield
            await asyncio.gather(*app.state.ending, *(answer.end() for answer in app.state.writing))
            await tenants.close()
            tracing.close()

        # The pages that describe an API come from other hosts; the description itself is at /openapi.json.
        app = FastAPI(title="Evoke", lifespan=lifespan, docs_url=None, redoc_url=None)
        app.state.tenants, app.state.serving, app.state.tracing = tenants, serving, tracing
        app.state.stopping, app.state.writing, app.state.ending = False, set(), set()
        self._state = app.state
        errors.install(app)
        for part in (chat, sessions, recommendations, events, health, page):
            part.install(app)
        self._gate: Any = Gate(app, tenants, serving, tracing)
        if serving.origins:
            self._gate = CORSMiddleware(
                self._gate, allow_origins=serving.origins, allow_methods=["*"], allow_headers=["*"]
            )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One ASGI connection."""
        await self._gate(scope, receive, send)

    def stop(self) -> None:
        """End the streams: each with a last chunk, and saved as far as it went."""
        self._state.stopping = True
        for answer in self._state.writing:
            answer.stop("the service is being stopped")


class Server(uvicorn.Server):
    """A server that tells the app when it is being stopped."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self.app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started and sockets:
            names = ", ".join(tenant.name for tenant in self.app.tenants.all)
            log.warning("serving %s on http://%s:%s", names, self.config.host, sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then the connections."""
        self.app.stop()
        await super().shutdown(sockets)


def serve(store: Path | None, host: str, port: int) -> None:
    """Serve `store`, or the tenants of `evoke.toml`, until a signal ends it."""
    server, sockets = listening(Settings.load(store=store), host, port, chosen=store is not None)
    with suppress(KeyboardInterrupt):  # how a terminal ends it, once everything is closed
        server.run(sockets)


def listening(settings: Settings, host: str, port: int, *, chosen: bool = False) -> tuple[Server, list[socket.socket]]:
    """The server, ready to run, and its socket. `chosen`: a store was asked for, beside what `evoke.toml` says.

    Raises EvokeError for a host that may not be served, tenants that share something, and a port that is taken.
    """
    if not settings.tenants and not _is_loopback(host):
        raise EvokeError(
            f"without API keys only this machine may be served, not {host}: name tenants with keys in evoke.toml, "
            "or leave --host out"
        )
    store = settings.store or last_store()
    if settings.tenants and chosen:
        raise EvokeError("evoke.toml names tenants, each with its store: leave --store out, or take them out")
    if not settings.tenants and store is None:
        raise StoreError("no store is named and none was indexed before; run `evoke index DIR` first")
    app = App(Tenants.open(settings, store), settings.serve)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # requests are counted, not logged: addresses and ids of people are in them
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
        lifespan="on",
    )
    try:
        return Server(config, app), [config.bind_socket()]
    except SystemExit:
        raise EvokeError(f"{host}:{port} cannot be listened on; choose another --port") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(catalog: Catalog) -> None:
    Lexicon.of(catalog)
    catalog.get(catalog.ids()[:READ])
