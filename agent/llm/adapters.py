"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) that `evoke train` wrote into a store: one for each task."""

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
from store.paths import trained_encoder, write_atomically

PROMPTS: Mapping[str, tuple[str, ...]] = {"queries": ("search",), "rank": ("rank",)}
"""Prompt templates that the adapter of each task is trained with."""
TASKS = tuple(PROMPTS)
RECORD = "adapter.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
GGUF = "adapter.gguf"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for `--max-lora-rank`."""


class Mix(NamedTuple):
    """Queries that are added, without a model, to those that an adapter writes: one for each of the `latest` items of a history,
    and at least `built` from the fields of its items."""

    latest: int = 0
    built: int = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """The record of a LoRA adapter that was trained for one task of one store.

    Attributes:
        task: "queries" or "rank".
        folder: Folder with this record, peft's `adapter_config.json` and `adapter_model.safetensors`, and `adapter.gguf` for the
            embedded engine.
        hash: Hash of `adapter_model.safetensors`.
        gguf_hash: Hash of `adapter.gguf`.
        weights: Hash of the GGUF file of the model that it was trained on.
        model: Name of that model.
        prompt: Fingerprint of the prompt templates that it was trained with.
        on: Whether it is used: it improved validation results, or was switched on with `--anyway`.
        evidence: How it was trained, and its validation results.
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
        """Name under which a model server serves the adapter."""
        return f"evoke-{self.task}-{self.hash[:8]}"

    @property
    def gguf(self) -> Path:
        """Path of the adapter file for the embedded engine."""
        return self.folder / GGUF

    @property
    def knows_forgotten(self) -> bool:
        """Whether a user that the adapter may have learned from was forgotten after its training."""
        return (self.folder / FORGOTTEN).exists()

    @property
    def mix(self) -> Mix:
        """Queries that are added to those that the adapter writes: the mix that found most in training."""
        return Mix(int(self.evidence.get("latest", 0)), int(self.evidence.get("built", 0)))

    @property
    def rank(self) -> int:
        """Rank of the LoRA matrices. Raises AdapterRefused if the configuration cannot be read."""
        try:
            return int(json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))["r"])
        except (OSError, ValueError, TypeError, KeyError):
            raise AdapterRefused(f"the {self.task} adapter's {CONFIG} cannot be read: {self._retrain}") from None

    def check_files(self) -> None:
        """Raise AdapterRefused if the adapter's files are missing or have changed since the record was written."""
        try:
            same = (file_hash(self.folder / WEIGHTS), file_hash(self.gguf)) == (self.hash, self.gguf_hash)
        except OSError:
            same = False
        if not same:
            raise AdapterRefused(f"the {self.task} adapter's files were changed or are gone: {self._retrain}")

    def check_prompt(self, prompts: Prompts) -> None:
        """Raise AdapterRefused if these prompts differ from those that the adapter was trained with."""
        names = PROMPTS[self.task]
        if prompts.fingerprint(*names) != self.prompt:
            files = ", ".join(f"{name}.j2" for name in names)
            raise AdapterRefused(
                f"the {self.task} adapter was trained with another prompt: take {files} and the files it imports out of the "
                f"prompts folder, or {self._retrain}"
            )

    def check_weights(self, weights: str, model: str) -> None:
        """Raise AdapterRefused if the adapter was trained on other weights than these (their hash and name)."""
        if weights != self.weights:
            raise AdapterRefused(
                f"the {self.task} adapter was trained on {self.model}, and {model} runs: unset EVOKE_MODEL, or {self._retrain}"
            )

    def check_served(self, served: list[str]) -> None:
        """Raise AdapterRefused if the adapter is not among the models that a server lists (`served`)."""
        if self.name not in served:
            raise AdapterRefused(
                f"the server does not serve the {self.task} adapter: start vLLM with {' '.join(vllm_options([self]))}"
            )

    @property
    def _retrain(self) -> str:
        return f"run `evoke train {self.task}` again"


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters of a store, by task, whether they are switched on or not."""

    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    @classmethod
    def load(cls, store: Path | None, tasks: Sequence[str] = TASKS) -> Adapters:
        """Read the adapters of a store; an empty mapping without a store. Raises EvokeError if a record cannot be read."""
        found = {}
        for task in tasks if store else ():
            folder = store / "trained" / task  # type: ignore[operator]
            if (folder / RECORD).is_file():
                found[task] = _read(folder, task)
        return cls(found)

    def adapter(self, task: str) -> Adapter | None:
        """Return the adapter of the task; None if there is none or it is switched off."""
        found = self.adapters.get(task)
        return found if found and found.on else None

    @property
    def on(self) -> list[Adapter]:
        """Adapters that are switched on."""
        return [adapter for adapter in self.adapters.values() if adapter.on]

    @staticmethod
    def save(adapter: Adapter) -> None:
        """Write the adapter's record into its folder, atomically. `load` reads it from `STORE/trained/TASK`."""
        row = asdict(adapter)
        del row["folder"]  # a store can be moved
        adapter.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(adapter.folder / RECORD, json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n")


def trained_parts(store: Path | None) -> list[str]:
    """Return names of the parts of a store that `evoke train` trained on users' histories, switched on or not."""
    adapters = [f"{task} adapter" for task in Adapters.load(store).adapters]
    return ["retriever", *adapters] if store and trained_encoder(store) else adapters


def vllm_options(adapters: Sequence[Adapter]) -> list[str]:
    """Return the options of `vllm serve` that load these adapters with the model they were trained on.

    Raises AdapterRefused if an adapter's configuration cannot be read.
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
