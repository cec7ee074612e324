"""The generative model's weights as PyTorch trains them."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.training.checkpoint import threads
from store.embedder import has_bfloat16


def load(gguf: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, dequantised to bfloat16, or to float32 where that is quicker; its chat template included.

    Raises EvalError where the extra "train" is missing or the file cannot be read so.
    """
    try:
        import peft  # noqa: F401  what learns on them
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging
    except ImportError:
        raise EvalError('training needs the extra "train": pip install "evoke-rec[train]"') from None
    torch.set_num_threads(threads())
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        # Tensors are converted under a bar of their own, which no setting of the library turns off.
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=torch.bfloat16 if has_bfloat16(device) else torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                # The fused one takes three times as long backwards on a CPU.
                attn_implementation="eager" if device == "cpu" else None,
            )
    except (ImportError, OSError, ValueError) as error:
        raise EvalError(
            f"{gguf.name} cannot be trained on ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
            "give another GGUF file as EVOKE_MODEL"
        ) from None
    vars(model.config).pop("quantization_config", None)  # peft would take the weights for quantised ones
    return model.to(device), tokenizer
