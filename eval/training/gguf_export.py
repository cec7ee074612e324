"""A LoRA adapter as the embedded engine takes it: peft's folder in, one GGUF file out.

GGUF keeps the base model's own tensor names with `.lora_a` and `.lora_b`. Where the conversion of the base reordered rows of
its query and key weights (llama: each head's two rotary halves interleaved), the adapter's rows go the same way.
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
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
REORDERED = {"llama": True, "qwen2": False, "qwen3": False}
"""The architectures whose layers are named so, and whether their query and key rows were reordered."""
PEFT = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight")
OTHER_KINDS = ("use_dora", "use_rslora", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
ELSEWHERE = "serve it with vLLM, or train plain LoRA on linear layers"


def check_architecture(weights: Path) -> str:
    """The architecture of a GGUF file. Raises EvokeError where adapters for it have no GGUF form, MissingExtra without gguf."""
    try:
        architecture = _field(_gguf().GGUFReader(weights), "general.architecture")
    except ValueError:
        raise EvokeError(f"{weights.name} is no GGUF file; set EVOKE_MODEL to one") from None
    if architecture not in REORDERED:
        raise EvokeError(
            f"{weights.name}: adapters for architecture {architecture} cannot be written; set EVOKE_MODEL to a GGUF file of "
            f"{', '.join(REORDERED)}"
        )
    return architecture


def export(folder: Path, weights: Path) -> Path:
    """Write `adapter.gguf` beside peft's files in `folder`, for the base model in the GGUF file `weights`; returns its path.

    Raises EvokeError for an adapter or an architecture that has no such form, MissingExtra without the package gguf.
    """
    gguf = _gguf()
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if odd := [kind for kind in OTHER_KINDS if config.get(kind)]:
        raise EvokeError(f"{folder.name}: an adapter with {odd[0]} has no GGUF form; {ELSEWHERE}")
    base = gguf.GGUFReader(weights)
    architecture = check_architecture(weights)
    heads = _heads(base, architecture) if REORDERED[architecture] else {}
    tensors = {name: _reordered(name, tensor, heads) for name, tensor in _named(folder).items()}
    _check(tensors, base, weights)
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


def _named(folder: Path) -> dict[str, np.ndarray]:
    """The adapter's matrices in single precision, by their GGUF names."""
    from safetensors.torch import load_file

    named = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        found = PEFT.fullmatch(name)
        if not found or found[2] not in NAMES:
            raise EvokeError(f"{folder.name}: {name} has no place in a GGUF adapter; {ELSEWHERE}")
        named[f"blk.{found[1]}.{NAMES[found[2]]}.weight.lora_{found[3].lower()}"] = tensor.float().numpy()
    return named


def _heads(base: Any, architecture: str) -> dict[str, int]:
    heads = _field(base, f"{architecture}.attention.head_count")
    return {"attn_q": heads, "attn_k": _field(base, f"{architecture}.attention.head_count_kv", heads)}


def _reordered(name: str, tensor: np.ndarray, heads: dict[str, int]) -> np.ndarray:
    """The rows of what a query or key projection puts out, in the order that the base model's file has them."""
    n = heads.get(name.split(".")[2])
    if n is None or not name.endswith("lora_b"):
        return tensor
    rows, rank = tensor.shape
    halves = tensor.reshape(n, 2, rows // n // 2, rank)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, rank)


def _check(tensors: dict[str, np.ndarray], base: Any, weights: Path) -> None:
    """That each matrix fits the base model's weight of that name: llama.cpp would end the process otherwise."""
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in base.tensors}
    for name, tensor in tensors.items():
        weight, _, side = name.rpartition(".")
        wide, tall = shapes.get(weight, (0, 0))
        if not (tensor.shape[1] == wide if side == "lora_a" else tensor.shape[0] == tall):
            raise EvokeError(f"the adapter does not fit {weights.name} ({weight}): name the weights it was trained on")


def _field(base: Any, name: str, default: Any = None) -> Any:
    field = base.get_field(name)
    return default if field is None else field.contents()


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtra("writing adapters", "train") from None
    return gguf
