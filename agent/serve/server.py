"""The app and its server: which addresses it may listen on, and how it shuts down."""

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
from agent.serve.middleware import Middleware
from agent.serve.tenants import Tenants
from agent.serve.tracing import Tracing
from agent.settings import Serving, Settings
from store import Catalog
from store.errors import StoreError
from store.paths import last_store

log = logging.getLogger("evoke")

PRELOADED = 2000
"""Items that are read into memory at the start."""
THREADS = 32
GRACE = 15
"""Seconds that requests have to finish when the service is stopped. Streams end at once, with a last chunk."""


class App:
    """The service as an ASGI app. `stop` ends its streams properly."""

    def __init__(self, tenants: Tenants, serving: Serving) -> None:
        self.tenants = tenants
        self.tracing = tracing = Tracing()

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            # More threads than cores: they mostly wait for the disk or for the encoder.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "evoke"))
            for tenant in tenants.all:
                await tenant.recommender.warm()
                await asyncio.to_thread(_preload, tenant.recommender.catalog)
            yield
            await asyncio.gather(*app.state.ending, *(answer.end() for answer in app.state.answers))
            await tenants.close()
            tracing.close()

        # FastAPI's documentation pages load code from other hosts. The description itself is at /openapi.json.
        app = FastAPI(title="Evoke", lifespan=lifespan, docs_url=None, redoc_url=None)
        app.state.tenants, app.state.serving, app.state.tracing = tenants, serving, tracing
        app.state.stopping, app.state.answers, app.state.ending = False, set(), set()
        self._state = app.state
        errors.install(app)
        for part in (chat, sessions, recommendations, events, health, page):
            part.install(app)
        self._outer: Any = Middleware(app, tenants, serving, tracing)
        if serving.origins:
            self._outer = CORSMiddleware(
                self._outer, allow_origins=serving.origins, allow_methods=["*"], allow_headers=["*"]
            )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI connection."""
        await self._outer(scope, receive, send)

    def stop(self) -> None:
        """End all streams, each with a last chunk, and save their conversations."""
        self._state.stopping = True
        for answer in self._state.answers:
            answer.stop("the service is being stopped")


class Server(uvicorn.Server):
    """A server that tells the app when it is being stopped."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self.app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and log the address."""
        await super().startup(sockets)
        if self.started and sockets:
            names = ", ".join(tenant.name for tenant in self.app.tenants.all)
            log.warning("serving %s on http://%s:%s", names, self.config.host, sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then the connections."""
        self.app.stop()
        await super().shutdown(sockets)


def serve(store: Path | None, host: str, port: int) -> None:
    """Serve `store`, or the tenants of `evoke.toml`, until a signal ends the process."""
    server, sockets = create_server(Settings.load(store=store), host, port, chosen=store is not None)
    with suppress(KeyboardInterrupt):  # Ctrl-C; by now everything is closed
        server.run(sockets)


def create_server(
    settings: Settings, host: str, port: int, *, chosen: bool = False
) -> tuple[Server, list[socket.socket]]:
    """Return a server that is ready to run, and its socket.

    Raises EvokeError if the host must not be served, tenants share anything, or the port is in use.

    Args:
        settings: The settings, with the tenants or the store to serve.
        host: Address to listen on. Without tenants it must be a loopback address.
        port: Port to listen on; 0 for any free port.
        chosen: Whether `--store` was given, which excludes tenants.
    """
    if not settings.tenants and not _is_loopback(host):
        raise EvokeError(
            f"without API keys only this machine can be served, not {host}: define tenants with keys in evoke.toml, "
            "or leave out --host"
        )
    store = settings.store or last_store()
    if settings.tenants and chosen:
        raise EvokeError("evoke.toml defines tenants, each with its store: leave out --store, or remove the tenants")
    if not settings.tenants and store is None:
        raise StoreError("no store was given and none was indexed before; run `evoke index DIR` first")
    app = App(Tenants.open(settings, store), settings.serve)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # requests are counted, not logged: they contain addresses and user ids
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
        lifespan="on",
    )
    try:
        return Server(config, app), [config.bind_socket()]
    except SystemExit:
        raise EvokeError(f"cannot listen on {host}:{port}; choose another --port") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _preload(catalog: Catalog) -> None:
    Lexicon.of(catalog)
    catalog.get(catalog.ids()[:PRELOADED])
