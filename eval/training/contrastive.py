"""Contrastive learning (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748) for a sentence-transformers encoder.

It moves the vector of a history nearer to the vector of the item chosen next. The vector of a history is the decayed mean of its
items' vectors, as in the signals, so everything that uses item vectors can gain, and a request needs no more encoding than before.

Only one linear layer on top of the encoder is trained, beginning with the identity. A store has few events, and training all
weights on them lowered recall (see eval/log/2026-11-22g). Because the encoder below the layer is fixed, all item vectors are
known, and each pair has all items as negatives, hard ones included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agent.retrieval.signals import SHORT
from eval.fitting.sequences import Pair
from eval.progress import Progress
from eval.training.checkpoint import Checkpoint, mean_of_last_tenth, schedule
from store.embedder import Embedder

DECAY, RECENT = SHORT
BATCH = 1024
STEPS = 200
TEMPERATURE = 0.1
DRIFT_WEIGHT = 1.0
"""The weight of the penalty for moving vectors, which keeps texts that are in no pair as easy to find as before."""
RATE = 1e-3
WARM_UP = 0.1
"""The share of steps in which the learning rate rises."""


@dataclass(frozen=True)
class Material:
    """The training data: pairs, the rows that each user chose at any time, and the catalog's vectors, (n, dim) of length 1."""

    pairs: Sequence[Pair]
    chosen: Mapping[str, Sequence[int]]
    vectors: np.ndarray

    @cached_property
    def rows(self) -> np.ndarray:
        """The catalog rows that are in a pair, ascending. Batches use positions in this array."""
        return np.unique([row for pair in self.pairs for row in (*pair.history[-RECENT:], pair.chosen[0])])

    @cached_property
    def position(self) -> dict[int, int]:
        """The position of each catalog row in `rows`."""
        return {row: n for n, row in enumerate(self.rows.tolist())}

    def same(self, other: Material) -> bool:
        """Return whether both have the same data."""
        same = (self.pairs, self.chosen) == (other.pairs, other.chosen)
        return same and np.array_equal(self.vectors, other.vectors)

    def batch(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return three arrays for the pairs at these positions: the weight of each item in the history, (b, rows); the position of
        the item chosen next, (b,); and the items that are not negatives because the user chose them at another time, (b, rows)
        bool."""
        histories = np.zeros((len(at), len(self.rows)), dtype=np.float32)
        excluded = np.zeros(histories.shape, dtype=bool)
        positives = np.array([self.position[self.pairs[row].chosen[0]] for row in at])
        for n, pair in enumerate(self.pairs[row] for row in at):
            for age, row in enumerate(dict.fromkeys(reversed(pair.history[-RECENT:]))):
                histories[n, self.position[row]] = DECAY**age
            excluded[n, [self.position[row] for row in self.chosen[pair.user] if row in self.position]] = True
        excluded[np.arange(len(at)), positives] = False
        return histories, positives, excluded


class Encoder:
    """A store's encoder with a layer in training."""

    def __init__(self, embedder: Embedder, seed: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SentenceTransformer(
            str(embedder.folder), device=self.device, model_kwargs={"dtype": torch.float32}
        )
        self.fingerprint, self.dim, self.seed = embedder.fingerprint, embedder.dim, seed
        self.layer = Dense(
            embedder.dim,
            embedder.dim,
            bias=False,
            activation_function=torch.nn.Identity(),
            init_weight=torch.zeros(embedder.dim, embedder.dim),
            use_residual=True,
        ).to(self.device)
        for module in (Normalize(), self.layer, Normalize()):
            self.model.append(module)

    def learn(
        self, material: Material, kept: Path, progress: Progress, what: str = "steps learned", share: float = 1.0
    ) -> float:
        """Train the layer; return the mean loss of the last tenth of the steps.

        A training that was killed continues from its last checkpoint. The same seed gives the same weights on one machine.

        Args:
            material: what is learned from.
            kept: the file of the checkpoint. A checkpoint of other material is ignored.
            progress: the progress display.
            what: the name of the steps in the progress display.
            share: the share of STEPS to take.
        """
        import torch

        untrained = torch.tensor(material.vectors[material.rows]).to(self.model.device)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=RATE, weight_decay=0.0)
        steps = max(round(share * STEPS), 1)

        def take(step: int) -> float:
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * schedule(step, steps, WARM_UP)
            rng = np.random.default_rng([self.seed, step])
            n = len(material.pairs)
            loss = self._loss(material.batch(rng.choice(n, min(BATCH, n), replace=False)), untrained)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return float(loss.detach())

        return mean_of_last_tenth(Checkpoint(kept, self._key(material, steps)).run(steps, take, self, what, progress))

    def state(self) -> dict[str, Any]:
        """Return the weights of the layer and the state of the optimizer."""
        return {"weights": self.layer.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.layer.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """Return the vectors, (n, dim) of length 1, that this encoder gives to texts with these vectors of the untrained one."""
        import torch
        import torch.nn.functional as F  # noqa: N812

        with torch.no_grad():
            whole = torch.tensor(vectors, dtype=torch.float32, device=self.model.device)
            transformed: np.ndarray = F.normalize(self._apply(whole), dim=1).cpu().numpy()
        return transformed

    @property
    def matrix(self) -> np.ndarray:
        """(dim, dim): the layer maps a vector v to this matrix times v, before it is scaled to length 1."""
        import torch

        with torch.no_grad():
            matrix: np.ndarray = self._apply(torch.eye(self.dim, device=self.model.device)).T.cpu().numpy()
        return matrix

    def save(self, folder: Path) -> None:
        """Write the encoder with its layer as sentence-transformers does."""
        self.model.save_pretrained(str(folder), create_model_card=False)

    def _loss(self, batch: tuple[np.ndarray, np.ndarray, np.ndarray], untrained: Any) -> Any:
        """Return the cross-entropy of the items chosen next among all items, plus the penalty for moving vectors."""
        import torch
        import torch.nn.functional as F  # noqa: N812  as everybody calls it

        histories, positives, excluded = (torch.tensor(part).to(untrained.device) for part in batch)
        vectors = F.normalize(self._apply(untrained), dim=1)
        scores = F.normalize(histories @ vectors, dim=1) @ vectors.T / TEMPERATURE
        chosen = F.cross_entropy(scores.masked_fill(excluded, -torch.inf), positives)
        return chosen + DRIFT_WEIGHT * (1 - (vectors * untrained).sum(dim=1)).mean()

    def _apply(self, vectors: Any) -> Any:
        return self.layer({"sentence_embedding": vectors})["sentence_embedding"]

    def _key(self, material: Material, steps: int) -> str:
        settings = (self.fingerprint, self.seed, RECENT, BATCH, steps, TEMPERATURE, DRIFT_WEIGHT, RATE)
        whole = hashlib.blake2b(
            repr((settings, [(p.history, p.chosen) for p in material.pairs])).encode(), digest_size=16
        )
        whole.update(material.vectors[material.rows].tobytes())
        return whole.hexdigest()
