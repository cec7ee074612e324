"""How the service and its answers end: stopped with open streams, killed while writing, client disconnected."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.faults import Text
from tests.helpers.serving import process, served, until

SLOW = Text("word " * 400, pause=0.05)


def chat_request(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "evoke", "messages": [{"role": "user", "content": text}], **more}


def test_stopping_the_service_ends_streams_properly(films_store: Path, tmp_path: Path, model_server: Any) -> None:
    store, model = shutil.copytree(films_store, tmp_path / "store"), model_server(SLOW)
    with process(store, tmp_path, EVOKE_BASE_URL=model.base_url) as service:
        body = chat_request("a slow heist film", stream=True, session="s1")
        with service.http().stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            until(lambda: model.pieces)
            service.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert "being stopped" in rest[-2]
        assert service.process.wait(30) == -signal.SIGTERM
        assert model.left.wait(10)
    with served(store=store) as again:
        turns = again.http().get("/v1/sessions/s1").json()["turns"]
    assert turns[0]["content"] == "a slow heist film"


def test_kill_loses_nothing_that_was_acknowledged(films_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(films_store, tmp_path / "store")
    events: list[int] = []
    turns: list[str] = []

    def write(url: str) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
            for number in range(10_000):
                event = {"user": "ida", "item": "heat-1995", "timestamp": number, "kind": "view"}
                headers = {"Idempotency-Key": str(number)}
                if http.post("/v1/events", json={"events": [event]}, headers=headers).json()["accepted"]:
                    events.append(number)

    def talk(url: str) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
            for number in range(10_000):
                text = f"hello {number}"
                if http.post("/v1/chat/completions", json=chat_request(text, session="s1")).status_code == 200:
                    turns.append(text)

    def until_cut(work: Any, url: str) -> None:
        with contextlib.suppress(httpx.TransportError):
            work(url)

    with process(store, tmp_path, EVOKE_SERVE__RATE="1000000") as service:
        workers = [threading.Thread(target=until_cut, args=(work, service.url)) for work in (write, talk)]
        for worker in workers:
            worker.start()
        until(lambda: len(events) > 20 and len(turns) > 5, patience=240)
        service.process.kill()
        for worker in workers:
            worker.join(30)
    with served(store=store) as again:
        kept = {event.timestamp for event in again.app.tenants.all[0].recommender.history.of("ida")}
        stored = {turn["content"] for turn in again.http().get("/v1/sessions/s1").json()["turns"]}
        before = len(kept)
        # An acknowledged event that is sent again is not added again.
        again.http().post(
            "/v1/events",
            json={"events": [{"user": "ida", "item": "heat-1995", "timestamp": 0, "kind": "view"}]},
            headers={"Idempotency-Key": "0"},
        )
        assert len(again.app.tenants.all[0].recommender.history.of("ida")) == before
    assert set(events) <= kept
    assert set(turns) <= stored


def test_user_id_that_is_not_utf_8_is_refused_in_one_line(films_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(films_store, tmp_path / "store")
    command = [sys.executable, "-m", "agent.terminal.cli", "forget", "--store", str(store), "--user", b"\xff"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1
    assert "not valid UTF-8" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_embedded_model_stops_when_the_client_disconnects(films: Path) -> None:
    from agent.llm.embedded import start

    engine = start()
    metrics = engine.base_url.removesuffix("/v1") + "/metrics"

    def busy() -> int:
        found = re.search(
            r"^llamacpp:requests_processing (\d+)", httpx.get(metrics, trust_env=False, timeout=60).text, re.MULTILINE
        )
        assert found
        return int(found[1])

    with served(store=films, base_url=None) as service:
        client = service.openai_async()
        stream = await client.chat.completions.create(
            **chat_request("a slow heist film with a long story", stream=True)
        )
        await anext(aiter(stream))
        # The items came from retrieval. Now the model writes the explanations.
        for _ in range(500):
            if await asyncio.to_thread(busy):
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("the model was never called")
        await stream.close()
        left = time.monotonic()
        while await asyncio.to_thread(busy):
            assert time.monotonic() - left < 20, "the model continued to write"
            await asyncio.sleep(0.02)
        await client.close()
