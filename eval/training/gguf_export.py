"""Export a LoRA adapter from peft's folder to one GGUF file, which the embedded engine can load.

GGUF uses the base model's tensor names with `.lora_a` and `.lora_b` appended. If the conversion of the base model reordered
rows of its query and key weights (llama: the two rotary halves of each head are interleaved), the adapter's rows are reordered
in the same way.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import EvokeError
from store.errors import MissingExtra

FILE = "adapter.gguf"
REORDERED = {"llama": True, "qwen2": False, "qwen3": False}
"""The architectures that adapters can be exported for, and whether their query and key rows are reordered in GGUF."""
PEFT = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight")
UNSUPPORTED = ("use_dora", "use_rslora", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
REMEDY = "serve it with vLLM, or train plain LoRA on linear layers"


def check_architecture(weights: Path) -> str:
    """Return the architecture of a GGUF file.

    Raises EvokeError if adapters for it cannot be exported, MissingExtra without the package gguf.
    """
    try:
        architecture = _field(_gguf().GGUFReader(weights), "general.architecture")
    except ValueError:
        raise EvokeError(f"{weights.name} is not a GGUF file; set EVOKE_MODEL to one") from None
    if architecture not in REORDERED:
        raise EvokeError(
            f"{weights.name}: adapters for architecture {architecture} cannot be written; set EVOKE_MODEL to a GGUF file of "
            f"{', '.join(REORDERED)}"
        )
    return architecture


def export(folder: Path, weights: Path) -> Path:
    """Write `adapter.gguf` into `folder` with peft's files, for the base model in the GGUF file `weights`; return its path.

    Raises EvokeError for an adapter or an architecture that cannot be exported, MissingExtra without the package gguf.
    """
    gguf = _gguf()
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if unsupported := [kind for kind in UNSUPPORTED if config.get(kind)]:
        raise EvokeError(f"{folder.name}: an adapter with {unsupported[0]} has no GGUF form; {REMEDY}")
    base = gguf.GGUFReader(weights)
    architecture = check_architecture(weights)
    heads = _count_heads(base, architecture) if REORDERED[architecture] else {}
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, 1)
    tensors = {name: _reorder(name, tensor, heads) for name, tensor in _read_tensors(folder, names).items()}
    _check_shapes(tensors, base, weights)
    partial = folder / f"{FILE}.part"
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.replace(folder / FILE)


def _read_tensors(folder: Path, names: Any) -> dict[str, np.ndarray]:
    """Return the adapter's matrices in single precision, by their GGUF names; `names` maps those of the first layer."""
    from safetensors.torch import load_file

    tensors = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        found = PEFT.fullmatch(name)
        weight = names.get_name(f"model.layers.0.{found[2]}") if found else None
        if not found or not weight:
            raise EvokeError(f"{folder.name}: {name} has no place in a GGUF adapter; {REMEDY}")
        tensors[f"blk.{found[1]}.{weight.removeprefix('blk.0.')}.weight.lora_{found[3].lower()}"] = (
            tensor.float().numpy()
        )
    return tensors


def _count_heads(base: Any, architecture: str) -> dict[str, int]:
    heads = _field(base, f"{architecture}.attention.head_count")
    return {"attn_q": heads, "attn_k": _field(base, f"{architecture}.attention.head_count_kv", heads)}


def _reorder(name: str, tensor: np.ndarray, heads: dict[str, int]) -> np.ndarray:
    """Return the tensor; for the output of a query or key projection, with rows in the order of the base model's file."""
    n = heads.get(name.split(".")[2])
    if n is None or not name.endswith("lora_b"):
        return tensor
    rows, rank = tensor.shape
    halves = tensor.reshape(n, 2, rows // n // 2, rank)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, rank)


def _check_shapes(tensors: dict[str, np.ndarray], base: Any, weights: Path) -> None:
    """Raise EvokeError unless each matrix fits the base model's weight of that name. llama.cpp would abort the process."""
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in base.tensors}
    for name, tensor in tensors.items():
        weight, _, side = name.rpartition(".")
        wide, tall = shapes.get(weight, (0, 0))
        if not (tensor.shape[1] == wide if side == "lora_a" else tensor.shape[0] == tall):
            raise EvokeError(
                f"the adapter does not fit {weights.name} ({weight}): set EVOKE_MODEL to the model it was trained on"
            )


def _field(base: Any, name: str, default: Any = None) -> Any:
    field = base.get_field(name)
    return default if field is None else field.contents()


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtra("writing adapters", "train") from None
    return gguf
