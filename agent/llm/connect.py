"""Connect to the model of the settings: the one behind the base URL, else the embedded one."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import shlex
from collections.abc import Sequence
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from agent.errors import EvokeError, ModelDown, ModelError
from agent.llm.adapters import Adapter, vllm_options
from agent.llm.client import LLM, Deadline
from agent.settings import Settings
from prompts import Prompts

log = logging.getLogger("evoke")
QUESTION = [{"role": "user", "content": "A or B?"}]


def connect(settings: Settings) -> LLM:
    """Return a client for the model of the settings. Starting the embedded model blocks for about a second.

    Raises EvokeError if the embedded engine or its weights are missing.
    """
    if not settings.base_url:
        return LLM.embedded(settings.model, share_cache=settings.cache_salt is None)
    if not is_local(settings.base_url):
        _warn_once(urlsplit(settings.base_url).hostname or settings.base_url)
    return LLM(
        settings.base_url,
        settings.model,
        api_key=settings.api_key,
        concurrency=settings.concurrency,
        extra={"cache_salt": settings.cache_salt} if settings.cache_salt else None,
    )


async def connect_async(settings: Settings) -> LLM:
    """Return the client as `connect` does, without blocking the event loop. Raises ModelError if anything is missing."""
    try:
        return await asyncio.to_thread(connect, settings)
    except ModelError:
        raise
    except EvokeError as error:  # no engine, or no weights
        raise ModelDown(str(error)) from error


def is_local(base_url: str) -> bool:
    """Return whether the address is on this machine or in a private network, judging by its host name."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_loopback or address.is_private


@cache
def _warn_once(host: str) -> None:
    log.warning("histories are sent to %s, the model server", host)


async def check(settings: Settings, adapters: Sequence[Adapter] = ()) -> dict[str, Any]:
    """Ask the model of the settings for one word, without an adapter and with each of the given ones.

    Returns {"model": name, "where": base URL or "embedded", "answers": bool, "reason": error or null, "ms": float or null,
    "adapters": [{"task", "name", "usable": bool, "reason"}], "vllm": command that serves the adapters, or null}.
    """
    found: dict[str, Any] = {
        "model": settings.model,
        "where": settings.base_url or "embedded",
        "answers": False,
        "reason": None,
        "ms": None,
        "adapters": [],
        "vllm": None,
    }
    llm = None
    try:
        llm = await asyncio.to_thread(connect, settings)
        found["model"] = await llm.model_name()
        reply = await llm.labels(QUESTION, ["A", "B"], deadline=Deadline(20))
        found |= {"answers": True, "ms": round(reply.ms, 1)}
        if adapters:
            prompts = Prompts(settings.prompts)
            found["adapters"] = [await _check_adapter(adapter, llm, prompts) for adapter in adapters]
            found["vllm"] = shlex.join(["vllm", "serve", "MODEL", *vllm_options(adapters)])
    except EvokeError as error:
        found["reason"] = str(error)
    finally:
        if llm:
            await llm.close()
    return found


async def _check_adapter(adapter: Adapter, llm: LLM, prompts: Prompts) -> dict[str, Any]:
    reason = None
    try:
        adapter.check_prompt(prompts)
        await llm.labels(QUESTION, ["A", "B"], deadline=Deadline(20), adapter=adapter)
    except ModelError as error:
        reason = error.reason
    return {"task": adapter.task, "name": adapter.name, "usable": reason is None, "reason": reason}
