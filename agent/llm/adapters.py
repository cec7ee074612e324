"""What `evoke train` taught a language model for a store: LoRA adapters (Hu et al. 2021, arXiv 2106.09685), one a task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from agent.errors import AdapterRefused, EvokeError
from agent.forgetting import FORGOTTEN
from agent.llm.weights import file_hash
from prompts import Prompts
from store.paths import retriever, write_atomically

PROMPTS: Mapping[str, tuple[str, ...]] = {"queries": ("search",), "rank": ("rank",)}
"""The templates that a task's adapter is trained with."""
TASKS = tuple(PROMPTS)
RECORD = "adapter.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
GGUF = "adapter.gguf"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The bounds that vLLM can be given for an adapter's rank."""


class Mix(NamedTuple):
    """Queries that are added, without a model, to those that an adapter writes: one for each of the `latest` items of a history,
    and at least `built` from the fields of its items."""

    latest: int = 0
    built: int = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter trained for one task of one store: what it belongs to, and where it lies.

    `folder` holds this record, peft's `adapter_config.json` and `adapter_model.safetensors`, and `adapter.gguf` for the embedded
    engine. `hash` is of the safetensors, `gguf_hash` of adapter.gguf, `weights` of the GGUF file it was trained on, `model` that
    file's name, `prompt` the fingerprint of its templates. `on` says that validation showed that it pays: only such an adapter
    is used.
    """

    task: str
    folder: Path
    hash: str
    gguf_hash: str
    weights: str
    model: str
    prompt: str
    on: bool
    evidence: dict[str, Any]

    @property
    def name(self) -> str:
        """What a model server serves it as."""
        return f"evoke-{self.task}-{self.hash[:8]}"

    @property
    def gguf(self) -> Path:
        """The adapter as the embedded engine takes it."""
        return self.folder / GGUF

    @property
    def knows_forgotten(self) -> bool:
        """Whether somebody was forgotten since it was trained, from whom it may have learned."""
        return (self.folder / FORGOTTEN).exists()

    @property
    def mix(self) -> Mix:
        """What is searched for beside what it writes: what found most in training."""
        return Mix(int(self.evidence.get("latest", 0)), int(self.evidence.get("built", 0)))

    @property
    def rank(self) -> int:
        """The rank of its matrices. Raises AdapterRefused where its configuration cannot be read."""
        try:
            return int(json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))["r"])
        except (OSError, ValueError, TypeError, KeyError):
            raise AdapterRefused(f"the {self.task} adapter's {CONFIG} cannot be read: {self._again}") from None

    def check_files(self) -> None:
        """Raises AdapterRefused where the adapter's files are gone or are not those that the record was made of."""
        try:
            same = (file_hash(self.folder / WEIGHTS), file_hash(self.gguf)) == (self.hash, self.gguf_hash)
        except OSError:
            same = False
        if not same:
            raise AdapterRefused(f"the {self.task} adapter's files were changed or are gone: {self._again}")

    def check_prompt(self, prompts: Prompts) -> None:
        """Raises AdapterRefused where these are not the prompts that the adapter was trained with."""
        names = PROMPTS[self.task]
        if prompts.fingerprint(*names) != self.prompt:
            files = ", ".join(f"{name}.j2" for name in names)
            raise AdapterRefused(
                f"the {self.task} adapter was trained with another prompt: take {files} and what it imports out of the "
                f"prompts folder, or {self._again}"
            )

    def check_weights(self, weights: str, model: str) -> None:
        """Raises AdapterRefused unless these are the weights that the adapter was trained on (their hash and name)."""
        if weights != self.weights:
            raise AdapterRefused(
                f"the {self.task} adapter was trained on {self.model}, and {model} runs: unset EVOKE_MODEL, or {self._again}"
            )

    def check_served(self, served: list[str]) -> None:
        """Raises AdapterRefused unless a server lists the adapter among its models."""
        if self.name not in served:
            raise AdapterRefused(
                f"the server does not serve the {self.task} adapter: start vLLM with {' '.join(vllm_options([self]))}"
            )

    @property
    def _again(self) -> str:
        return f"run `evoke train {self.task}` again"


@dataclass(frozen=True, slots=True)
class Trained:
    """The adapters of a store, by task, whether they are on or not."""

    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    @classmethod
    def load(cls, store: Path | None, tasks: Sequence[str] = TASKS) -> Trained:
        """What was trained for this store; nothing where it never was. Raises EvokeError for a record that cannot be read."""
        found = {}
        for task in tasks if store else ():
            folder = store / "trained" / task  # type: ignore[operator]
            if (folder / RECORD).is_file():
                found[task] = _read(folder, task)
        return cls(found)

    def adapter(self, task: str) -> Adapter | None:
        """The adapter of the task, where there is one and it is on."""
        found = self.adapters.get(task)
        return found if found and found.on else None

    @property
    def on(self) -> list[Adapter]:
        """The adapters that are used."""
        return [adapter for adapter in self.adapters.values() if adapter.on]

    @staticmethod
    def save(adapter: Adapter) -> None:
        """Write the record into the adapter's folder, whole or not at all; `load` finds it in `STORE/trained/TASK`."""
        row = asdict(adapter)
        del row["folder"]  # a store can be moved
        adapter.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(adapter.folder / RECORD, json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n")


def parts_trained(store: Path | None) -> list[str]:
    """What there is of a store that `evoke train` taught on people's histories, in force or not."""
    adapters = [f"{task} adapter" for task in Trained.load(store).adapters]
    return ["retriever", *adapters] if store and retriever(store) else adapters


def vllm_options(adapters: Sequence[Adapter]) -> list[str]:
    """The options of `vllm serve` that serve these adapters beside the model that they were trained on.

    Raises AdapterRefused where an adapter's configuration cannot be read.
    """
    rank = max(adapter.rank for adapter in adapters)
    several = ["--max-loras", str(len(adapters))] if len(adapters) > 1 else []
    return [
        "--enable-lora",
        "--max-lora-rank",
        str(min((r for r in RANKS if r >= rank), default=rank)),
        *several,
        "--lora-modules",
        *(f"{adapter.name}={adapter.folder.resolve()}" for adapter in adapters),
    ]


def _read(folder: Path, task: str) -> Adapter:
    try:
        row = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return TypeAdapter(Adapter).validate_python(row | {"folder": folder, "task": task})
    except (OSError, ValueError, TypeError) as error:
        why = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else error
        raise EvokeError(f"{folder / RECORD} cannot be read ({why}): run `evoke train {task}` again") from None
