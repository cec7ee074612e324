"""The service: OpenAI-compatible chat, recommendations, events and the chat page, over one store a tenant."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from store.errors import MissingExtra


def run(store: Path | None, host: str, port: int) -> None:
    """Serve until a signal ends it. Raises EvokeError or StoreError, in one line, where it cannot begin."""
    if not all(find_spec(name) for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise MissingExtra("evoke serve", "serve")
    from agent.serve.server import serve

    serve(store, host, port)
