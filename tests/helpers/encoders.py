"""Helpers for tests that train the retriever's encoder: few steps, fast fake vectors, and a look into the store."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.training import compare_encoders, contrastive
from eval.training.contrastive import Encoder
from store import Catalog
from store.embedder import Embedder

NOBODY = "http://127.0.0.1:9/v1"
"""A URL where no server answers."""


def few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for few steps, and ignore settings from outside."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in ("EVOKE_BASE_URL", "OPENAI_BASE_URL", "EVOKE_STORE", "EVOKE_EMBEDDING_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(contrastive, "BATCH", 32)
    monkeypatch.setattr(contrastive, "STEPS", 6)
    monkeypatch.setattr(compare_encoders, "FUSIONS", (0,))


def encode_by_hash(self: Embedder, method: str, texts: Any) -> np.ndarray:
    """In place of encoding: random vectors that depend on the model and the text."""
    digests = [hashlib.blake2b(f"{self.fingerprint}{text}".encode(), digest_size=8).digest() for text in texts]
    seeds = [int.from_bytes(digest, "little") for digest in digests]
    rows = np.stack([np.random.default_rng(seed).standard_normal(384) for seed in seeds])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def read_model_and_neighbours(store: Path) -> tuple[str, list[str]]:
    """Return the name of the model that a store is opened with, and the ids nearest to its first item."""
    with Catalog.open(store, create=False) as catalog:
        vectors = catalog.vectors(catalog.ids()[:1])
        (hits,) = catalog.query(vectors, 5)
        assert np.allclose(vectors, catalog.snapshot().vectors[:1])
        return catalog.embedder.name, [hit.id for hit in hits]


def add_noise(self: Encoder, *_: Any) -> float:
    """In place of training: change the weights."""
    import torch

    with torch.no_grad():
        next(self.layer.parameters()).add_(0.01)
    return 1.0
