"""Which model answers: the one behind the base URL in the settings, or else the embedded one."""

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
    """The client of the model in force. Starting the embedded one blocks for about a second.

    Raises EvokeError where the embedded engine or its weights are missing.
    """
    if not settings.base_url:
        return LLM.embedded(settings.model, shares=settings.cache_salt is None)
    if not near(settings.base_url):
        _say_once(urlsplit(settings.base_url).hostname or settings.base_url)
    return LLM(
        settings.base_url,
        settings.model,
        api_key=settings.api_key,
        concurrency=settings.concurrency,
        extra={"cache_salt": settings.cache_salt} if settings.cache_salt else None,
    )


async def connected(settings: Settings) -> LLM:
    """`connect` without blocking. Raises ModelError whatever is missing."""
    try:
        return await asyncio.to_thread(connect, settings)
    except ModelError:
        raise
    except EvokeError as error:  # no engine, or no weights
        raise ModelDown(str(error)) from error


def near(base_url: str) -> bool:
    """Whether the address is this machine or a private network, as far as its name tells."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_loopback or address.is_private


@cache
def _say_once(host: str) -> None:
    log.warning("histories are sent to %s, the model server", host)


async def check(settings: Settings, adapters: Sequence[Adapter] = ()) -> dict[str, Any]:
    """Ask the model in force for one word, plain and with each of the adapters: {"model", "where", "answers": bool,
    "reason": null or why not, "ms", "adapters": [{"task", "name", "usable": bool, "reason"}], "vllm": what serves them or null}.
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
            found["adapters"] = [await _checked(adapter, llm, prompts) for adapter in adapters]
            found["vllm"] = shlex.join(["vllm", "serve", "MODEL", *vllm_options(adapters)])
    except EvokeError as error:
        found["reason"] = str(error)
    finally:
        if llm:
            await llm.close()
    return found


async def _checked(adapter: Adapter, llm: LLM, prompts: Prompts) -> dict[str, Any]:
    reason = None
    try:
        adapter.check_prompt(prompts)
        await llm.labels(QUESTION, ["A", "B"], deadline=Deadline(20), adapter=adapter)
    except ModelError as error:
        reason = error.reason
    return {"task": adapter.task, "name": adapter.name, "usable": reason is None, "reason": reason}
