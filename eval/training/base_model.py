"""Load the base language model from its GGUF file for training in PyTorch."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.training.checkpoint import count_threads
from store.embedder import has_bfloat16


def load(gguf: Path) -> tuple[Any, Any]:
    """Load (model, tokenizer) from a GGUF file. Weights become bfloat16, or float32 where that is faster.

    Raises EvalError if the extra "train" is missing, or if the file cannot be loaded.
    """
    try:
        import peft  # noqa: F401  needed for training later
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging
    except ImportError:
        raise EvalError('training needs the extra "train": pip install "evoke-rec[train]"') from None
    torch.set_num_threads(count_threads())
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        # The conversion of tensors prints a progress bar that no setting of the library turns off.
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForCausalLM.from_pretrained(
                **source,
                dtype=torch.bfloat16 if has_bfloat16(device) else torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                # On a CPU the backward pass of fused attention takes three times as long.
                attn_implementation="eager" if device == "cpu" else None,
            )
    except (ImportError, OSError, ValueError) as error:
        raise EvalError(
            f"{gguf.name} cannot be loaded for training ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
            "give another GGUF file as EVOKE_MODEL"
        ) from None
    vars(model.config).pop("quantization_config", None)  # with it, peft would treat the weights as quantised
    return model.to(device), tokenizer
