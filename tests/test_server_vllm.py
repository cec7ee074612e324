"""The service with real vLLM (make test-vllm): the openai client, closed streams, and separate prompts of tenants."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.helpers.serving import served, until
from tests.helpers.vllm_server import VLLM

pytestmark = pytest.mark.vllm

LEFT, RIGHT = "sk-left-0123456789abcdef", "sk-right-0123456789abcdef"
ASKED: dict[str, Any] = {"model": "evoke", "messages": [{"role": "user", "content": "a slow heist film"}]}


def test_openai_client_works_with_vllm(vllm: VLLM, films: Path) -> None:
    with served(store=films, base_url=vllm.base_url, deadline=240, reading=60, serve={"body": 10_000}) as service:
        client = service.openai()
        done = client.chat.completions.create(**ASKED)
        assert len(done.model_extra["recommendations"]) == 5
        assert done.model_extra["degraded"] == []
        assert done.usage.completion_tokens > 0
        chunks = list(client.chat.completions.create(**ASKED, stream=True))
        assert len(chunks[0].model_extra["recommendations"]) == 5
        assert chunks[-1].choices[0].finish_reason == "stop"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**ASKED | {"model": "gpt-4"})
        with pytest.raises(openai.APIStatusError, match="larger than"):
            client.chat.completions.create(**ASKED, user="x" * 20_000)


def test_closing_a_stream_stops_vllm(vllm: VLLM, films: Path) -> None:
    running = "vllm:num_requests_running"
    with served(store=films, base_url=vllm.base_url) as service:
        with service.openai().chat.completions.create(**ASKED, stream=True) as stream:
            next(iter(stream))
            until(lambda: vllm.metric(running) > 0)
        until(lambda: vllm.metric(running) == 0)


def test_tenants_share_no_cached_prompt(vllm: VLLM, films_store: Path, tmp_path: Path) -> None:
    stores = {name: shutil.copytree(films_store, tmp_path / name) for name in ("left", "right")}
    keys = {"left": LEFT, "right": RIGHT}
    tenants = {name: {"store": stores[name], "keys": [keys[name]], "base_url": vllm.base_url} for name in stores}
    request = {"text": "a heist that nobody asked for before", "n": 3}
    found = []
    with served(tenants=tenants, deadline=240) as service:
        for key in (LEFT, RIGHT, RIGHT):
            before = vllm.prefix_hits()[1]
            assert service.http(key).post("/v1/recommendations", json=request).json()["trace"]["degraded"] == []
            found.append(vllm.prefix_hits()[1] - before)
    assert found[1] == 0  # although the prompt of the left tenant is exactly the same
    assert found[2] > 0
