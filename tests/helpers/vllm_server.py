"""Real vLLM (its CPU build, in a separate environment), serving the weights of the embedded model on a loopback port."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

from agent.llm.adapters import Adapter, vllm_options
from agent.llm.weights import find_weights
from agent.terminal.progress import progress
from eval.training.lora import Lora
from store.embedder import has_bfloat16
from tests.helpers.adapters import export_adapter, ranking_samples
from tests.helpers.services import free_port, missing, running
from tests.helpers.vllm_setup import PYTHON, WEIGHTS

MODEL = "smollm2"
PATIENCE = 600


@dataclass(frozen=True)
class VLLM:
    """A running server: its base URL and its metrics."""

    base_url: str

    def metric(self, name: str) -> float:
        """Return the sum of a Prometheus counter over its labels."""
        with urlopen(self.base_url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def prefix_hits(self) -> tuple[float, float]:
        """Return (tokens looked up, tokens found) in the prefix cache so far."""
        return self.metric("vllm:prefix_cache_queries_total"), self.metric("vllm:prefix_cache_hits_total")


@pytest.fixture(scope="session")
def rank_adapter(films_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter trained to rank films for about a minute: enough for other answers than the plain model's."""
    folder = tmp_path_factory.mktemp("rank")
    lora = Lora(find_weights(), seed=0)
    lora.learn(ranking_samples(films_store, 96, seed=0), 1, folder / "kept", "steps of learning to rank", progress)
    return export_adapter(folder / "rank", "rank", lora.model)


@pytest.fixture(scope="session")
def vllm() -> Iterator[VLLM]:
    """Real vLLM, started once for all tests."""
    if not PYTHON.exists() or not WEIGHTS.exists():
        missing("vLLM (make test-vllm sets it up)")
    with serving_vllm() as server:
        yield server


@pytest.fixture(scope="session")
def adapted_vllm(rank_adapter: Adapter) -> Iterator[VLLM]:
    """Real vLLM with an adapter and the plain model."""
    if not PYTHON.exists() or not WEIGHTS.exists():
        missing("vLLM (make test-vllm sets it up)")
    with serving_vllm([rank_adapter]) as server:
        yield server


@contextmanager
def serving_vllm(adapters: Sequence[Adapter] = ()) -> Iterator[VLLM]:
    """Run a server with prefix caching and these adapters."""
    port = free_port()
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(WEIGHTS), "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096", "--enforce-eager", "--enable-prefix-caching",
        "--dtype", "bfloat16" if has_bfloat16("cpu") else "float32",
        "--enable-prompt-tokens-details", "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
        *(vllm_options(adapters) if adapters else ()),
    ]  # fmt: skip
    # By default vLLM keeps one core free for its front end. With two cores, that halves the speed.
    env = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in sorted(os.sched_getaffinity(0))),
    }  # fmt: skip

    def ready() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with running(command, ready, patience=PATIENCE, env=env):
        yield VLLM(f"http://127.0.0.1:{port}/v1")
