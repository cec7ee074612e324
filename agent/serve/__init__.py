"""The HTTP service: OpenAI-compatible chat, recommendations, events and the chat page. Each tenant has its own store."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from store.errors import MissingExtra


def run(store: Path | None, host: str, port: int) -> None:
    """Serve until a signal ends the process. Raises EvokeError or StoreError, with one line, if the service cannot start."""
    if not all(find_spec(name) for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise MissingExtra("evoke serve", "serve")
    from agent.serve.server import serve

    serve(store, host, port)
