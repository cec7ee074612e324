"""Contrastive learning (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748) for a sentence-transformers encoder: from histories to
the item chosen next.

A history is read as the signals read it, by the decayed mean of its items' vectors: so whatever reads item vectors gains, and
recommending encodes nothing new. What is learned is one linear layer on top of the encoder, starting as the identity: a store's
own events are few, and with all weights learned from them recall fell (see eval/log/2026-11-22g).
What is below the layer being fixed, all vectors are at hand, and every item is a negative of each pair, the hard ones too.
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
from eval.comparison.llm_cache import Progress
from eval.fitting.sequences import Pair
from eval.training.checkpoint import Checkpoint, schedule
from store.embedder import Embedder

DECAY, RECENT = SHORT
BATCH = 1024
STEPS = 200
TEMPERATURE = 0.1
KEPT = 1.0
"""What it counts that vectors stay near what they were: texts that stand in no pair are to be found as before."""
RATE = 1e-3
WARM = 0.1
"""Share of the steps in which the rate rises."""


@dataclass(frozen=True)
class Material:
    """What is learned from: pairs, what each user chose at any time, and the catalog's vectors, (n, dim) with rows of length 1."""

    pairs: Sequence[Pair]
    chosen: Mapping[str, Sequence[int]]
    vectors: np.ndarray

    @cached_property
    def rows(self) -> np.ndarray:
        """The catalog rows that stand in a pair, ascending; all that follows counts in places among them."""
        return np.unique([row for pair in self.pairs for row in (*pair.history[-RECENT:], pair.chosen[0])])

    @cached_property
    def place(self) -> dict[int, int]:
        """The place of each of those rows."""
        return {row: n for n, row in enumerate(self.rows.tolist())}

    def same(self, other: Material) -> bool:
        """Whether the same is learned from both."""
        told = (self.pairs, self.chosen) == (other.pairs, other.chosen)
        return told and np.array_equal(self.vectors, other.vectors)

    def batch(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of these pairs: what each item of the history weighs, (b, rows); the place of the item chosen next, (b,); and which
        items are no negatives, since the user chose them at another time, (b, rows) bool."""
        reads = np.zeros((len(at), len(self.rows)), dtype=np.float32)
        barred = np.zeros(reads.shape, dtype=bool)
        positives = np.array([self.place[self.pairs[row].chosen[0]] for row in at])
        for n, pair in enumerate(self.pairs[row] for row in at):
            for age, row in enumerate(dict.fromkeys(reversed(pair.history[-RECENT:]))):
                reads[n, self.place[row]] = DECAY**age
            barred[n, [self.place[row] for row in self.chosen[pair.user] if row in self.place]] = True
        barred[np.arange(len(at)), positives] = False
        return reads, positives, barred


class Encoder:
    """A store's encoder with a layer in training."""

    def __init__(self, embedder: Embedder, seed: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize
        from transformers.utils import logging

        logging.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SentenceTransformer(str(embedder.folder), device=device, model_kwargs={"dtype": torch.float32})
        self.fingerprint, self.dim, self.seed = embedder.fingerprint, embedder.dim, seed
        self.layer = Dense(
            embedder.dim,
            embedder.dim,
            bias=False,
            activation_function=torch.nn.Identity(),
            init_weight=torch.zeros(embedder.dim, embedder.dim),
            use_residual=True,
        ).to(device)
        for module in (Normalize(), self.layer, Normalize()):
            self.model.append(module)

    def learn(
        self, material: Material, kept: Path, progress: Progress, what: str = "steps learned", share: float = 1.0
    ) -> float:
        """Returns the mean loss of the last tenth of the steps. Ended early it goes on from the last checkpoint (`kept`), which is
        of no use to other material. With `share` it takes that share of the steps. The same seed gives the same weights on one
        machine."""
        import torch

        before = torch.tensor(material.vectors[material.rows]).to(self.model.device)
        optimizer = torch.optim.AdamW(self.layer.parameters(), lr=RATE, weight_decay=0.0)
        steps = max(round(share * STEPS), 1)
        checkpoint = Checkpoint(kept, self._key(material, steps))
        at, losses = self._resumed(checkpoint, optimizer)
        with progress(what) as advance:
            for step in range(at, steps):
                for group in optimizer.param_groups:
                    group["lr"] = RATE * schedule(step, steps, WARM)
                rng = np.random.default_rng([self.seed, step])
                n = len(material.pairs)
                loss = self._loss(material.batch(rng.choice(n, min(BATCH, n), replace=False)), before)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                if checkpoint.due or step + 1 == steps:
                    checkpoint.save(
                        step=step + 1, losses=losses, weights=self.layer.state_dict(), optimizer=optimizer.state_dict()
                    )
                advance(step + 1, steps)
        return float(np.mean(losses[-max(len(losses) // 10, 1) :]))

    def through(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) unit vectors of the encoder before as the layer turns them: what encoding the same texts would give."""
        import torch
        import torch.nn.functional as F  # noqa: N812

        with torch.no_grad():
            whole = torch.tensor(vectors, dtype=torch.float32, device=self.model.device)
            turned: np.ndarray = F.normalize(self._turned(whole), dim=1).cpu().numpy()
        return turned

    @property
    def matrix(self) -> np.ndarray:
        """(dim, dim): the layer turns a vector v into this times v, before it is scaled to length 1."""
        import torch

        with torch.no_grad():
            turned: np.ndarray = self._turned(torch.eye(self.dim, device=self.model.device)).T.cpu().numpy()
        return turned

    def save(self, folder: Path) -> None:
        """Write the encoder with its layer as sentence-transformers does."""
        self.model.save_pretrained(str(folder), create_model_card=False)

    def _loss(self, batch: tuple[np.ndarray, np.ndarray, np.ndarray], before: Any) -> Any:
        """Cross-entropy of the items chosen next among all, and how far vectors have gone from what they were."""
        import torch
        import torch.nn.functional as F  # noqa: N812  as everybody calls it

        reads, positives, barred = (torch.tensor(part).to(before.device) for part in batch)
        vectors = F.normalize(self._turned(before), dim=1)
        scores = F.normalize(reads @ vectors, dim=1) @ vectors.T / TEMPERATURE
        chosen = F.cross_entropy(scores.masked_fill(barred, -torch.inf), positives)
        return chosen + KEPT * (1 - (vectors * before).sum(dim=1)).mean()

    def _turned(self, vectors: Any) -> Any:
        return self.layer({"sentence_embedding": vectors})["sentence_embedding"]

    def _key(self, material: Material, steps: int) -> str:
        settings = (self.fingerprint, self.seed, RECENT, BATCH, steps, TEMPERATURE, KEPT, RATE)
        whole = hashlib.blake2b(
            repr((settings, [(p.history, p.chosen) for p in material.pairs])).encode(), digest_size=16
        )
        whole.update(material.vectors[material.rows].tobytes())
        return whole.hexdigest()

    def _resumed(self, checkpoint: Checkpoint, optimizer: Any) -> tuple[int, list[float]]:
        state = checkpoint.load(self.model.device)
        if state is None:
            return 0, []
        self.layer.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["losses"]
