"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) for a language model: learning from samples, and writing so."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.llm.weights import file_hash
from eval.comparison.llm_cache import Progress
from eval.training.base_model import load
from eval.training.checkpoint import Checkpoint, schedule
from eval.training.chunked_loss import compared

RANK = 16
LAYERS = 0.5
"""Share of the layers that are adapted, the upper ones: below them nothing has to be run backwards."""
BATCH = 16
RATE = 1e-3
POLICY_RATE = 1e-4
"""Its own lists say less, and less surely, than examples do."""
WARM = 0.06
"""Share of the steps in which the rate rises."""
WRITING = 32
"""Prompts that are answered at once."""

HELD = 2048
"""Tokens that go through the model at once: about 1.5 MB of each are held until it has run backwards."""

Messages = Sequence[dict[str, str]]
Row = tuple[list[int], int, float]
"""A sample's tokens, how many of them are its answer, and its weight."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is asked and what is right; `weight` is what it counts in the loss (below 0: it is wrong by so much).

    How the answer has `begun` was given, and is not learned; an answer that has not `ended` broke off.
    """

    messages: Messages
    answer: str
    weight: float = 1.0
    begun: str = ""
    ended: bool = True


class Lora:
    """A base model with one adapter in training."""

    def __init__(self, gguf: Path, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        base, self.tokenizer = load(gguf)
        from peft import LoraConfig, get_peft_model

        self.weights = file_hash(gguf)
        layers = base.config.num_hidden_layers
        linear = {
            name.rpartition(".")[2]
            for name, part in base.named_modules()
            if isinstance(part, torch.nn.Linear) and ".layers." in name
        }
        self.model = get_peft_model(
            base,
            LoraConfig(
                r=RANK,
                lora_alpha=2 * RANK,
                target_modules=sorted(linear),
                layers_to_transform=list(range(round(layers * (1 - LAYERS)), layers)),
                task_type="CAUSAL_LM",
            ),
            autocast_adapter_dtype=False,
        )
        self.seed = seed
        self._taught: list[Any] = [p for p in self.model.parameters() if p.requires_grad]

    def learn(self, samples: Sequence[Sample], epochs: int, kept: Path, what: str, progress: Progress) -> float:
        """Goes over the samples so often; returns the mean loss of the last tenth. Ended early it goes on from the last
        checkpoint (`kept`), which is of no use to other samples. The same seed gives the same adapter on one machine."""
        rows = [self._tokens(sample) for sample in samples]
        steps = list(self._batches([len(row[0]) for row in rows], epochs))
        whole, optimizer = self._optimized()
        checkpoint = Checkpoint(kept, _key(samples, epochs, self.seed, self.weights))
        at, losses = self._resumed(checkpoint, whole, optimizer)
        with progress(what) as advance:
            for step in range(at, len(steps)):
                batch = [(*rows[row], samples[row].weight) for row in steps[step]]
                counted = sum(answer * weight for _, answer, weight in batch)
                losses.append(self._step(batch, counted, whole, optimizer, RATE * schedule(step, len(steps), WARM)))
                if checkpoint.due or step + 1 == len(steps):
                    checkpoint.save(step=step + 1, losses=losses, weights=whole, optimizer=optimizer.state_dict())
                advance(step + 1, len(steps))
        self.model.eval()
        return float(np.mean(losses[-max(len(losses) // 10, 1) :]))

    def reinforce(
        self,
        rounds: int,
        drawn: Callable[[int], tuple[Sequence[Sample], float]],
        key: str,
        kept: Path,
        progress: Progress,
    ) -> list[float]:
        """One step by policy gradient in each round, on what `drawn(round)` says: samples that this very model wrote, each weighed
        by how far it is ahead of the others (below 0: behind), and their mean reward. A step is smaller where they differ less.
        Returns the mean reward of each round. Ended early it goes on from the last checkpoint (`kept`), which is of no use to
        another `key`."""
        whole, optimizer = self._optimized()
        checkpoint = Checkpoint(kept, f"{self.learned} {self.seed} {rounds} {POLICY_RATE} {key}")
        at, earned = self._resumed(checkpoint, whole, optimizer)
        with progress("steps learned by reward") as advance:
            for turn in range(at, rounds):
                samples, mean = drawn(turn)
                earned.append(float(mean))
                batch = [(*self._tokens(sample), sample.weight) for sample in samples]
                rate = POLICY_RATE * schedule(turn, rounds, WARM)
                self._step(batch, sum(answer for _, answer, _ in batch), whole, optimizer, rate)
                if checkpoint.due or turn + 1 == rounds:
                    checkpoint.save(step=turn + 1, losses=earned, weights=whole, optimizer=optimizer.state_dict())
                advance(turn + 1, rounds)
        return earned

    def write(
        self,
        asked: Sequence[Messages],
        begun: str,
        tokens: int,
        temperature: float,
        what: str,
        progress: Progress,
        draw: int = 0,
        top_p: float = 0.95,
    ) -> list[str]:
        """An answer to each that begins so and has at most so many tokens more, drawn at this temperature from the likeliest tokens
        that make up `top_p`; others for another `draw`."""
        import torch

        self.model.eval()
        self.tokenizer.padding_side = "left"
        texts = [self._prompt(messages) + begun for messages in asked]
        written = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        options = {"do_sample": True, "max_new_tokens": tokens, "temperature": temperature, "top_k": 0, "top_p": top_p}
        torch.manual_seed(int(np.random.SeedSequence([self.seed, draw]).generate_state(1)[0]) if draw else self.seed)
        with progress(what) as advance, torch.no_grad():
            for start in range(0, len(order), WRITING):
                rows = order[start : start + WRITING]
                batch = self.tokenizer(
                    [texts[row] for row in rows], return_tensors="pt", padding=True, add_special_tokens=False
                ).to(self.model.device)
                out = self.model.generate(**batch, **options, pad_token_id=self._end)
                for row, ids in zip(rows, out[:, batch["input_ids"].shape[1] :], strict=True):
                    written[row] = begun + self.tokenizer.decode(ids, skip_special_tokens=True)
                advance(start + len(rows), len(order))
        return written

    def save(self, folder: Path) -> None:
        """Write the adapter as peft does: adapter_config.json and adapter_model.safetensors."""
        with warnings.catch_warnings(action="ignore"):  # that a GGUF file has no config.json beside it
            self.model.save_pretrained(str(folder))

    @property
    def on_gpu(self) -> bool:
        """Whether it learns on a GPU."""
        return str(self.model.device.type) != "cpu"

    @property
    def learned(self) -> str:
        """A hash of the base model and of what the adapter has learned so far."""
        import torch

        whole = hashlib.blake2b(self.weights.encode(), digest_size=12)
        for weights in self._taught:
            whole.update(weights.detach().cpu().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    @property
    def _end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _prompt(self, messages: Messages) -> str:
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _tokens(self, sample: Sample) -> tuple[list[int], int]:
        """The sample's tokens, and how many of them are its answer."""
        prompt, answer = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (self._prompt(sample.messages) + sample.begun, sample.answer)
        )
        answer += [self._end] if sample.ended else []
        return prompt + answer, len(answer)

    def _batches(self, lengths: Sequence[int], epochs: int) -> Iterator[list[int]]:
        """Rows of like length together, in an order drawn anew for each epoch."""
        rng = np.random.default_rng(self.seed)
        for _ in range(epochs):
            near = np.asarray(lengths) + rng.uniform(0, 16, len(lengths))
            order = np.argsort(near)
            groups = [order[start : start + BATCH].tolist() for start in range(0, len(order), BATCH)]
            for group in rng.permutation(len(groups)):
                yield groups[group]

    def _optimized(self) -> tuple[list[Any], Any]:
        """What is taught, in full precision, and its optimizer: bfloat16 is too coarse to add small steps to."""
        import torch

        whole = [p.detach().float().clone().requires_grad_() for p in self._taught]
        return whole, torch.optim.AdamW(whole, lr=RATE, weight_decay=0.0)

    def _step(self, batch: Sequence[Row], counted: float, whole: Sequence[Any], optimizer: Any, rate: float) -> float:
        """One step at this rate; returns the batch's loss, the mean over so many `counted` tokens."""
        import torch

        self.model.train()
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = sum(self._backward(few, counted) for few in _held(batch))
        for own, used in zip(whole, self._taught, strict=True):
            own.grad, used.grad = used.grad.float(), None
        torch.nn.utils.clip_grad_norm_(whole, 1.0)
        optimizer.step()
        self._take(whole)
        return loss

    def _backward(self, rows: Sequence[Row], whole: float) -> float:
        """The cross-entropy of the answers' tokens, each by its share in the weight of a `whole` batch; adds its gradients to those
        of what is taught."""
        import torch

        device = self.model.device
        most = max(len(ids) for ids, _, _ in rows)
        ids = torch.full((len(rows), most), self._end, device=device)
        there = torch.zeros((len(rows), most), dtype=torch.long, device=device)
        said = torch.zeros((len(rows), most), dtype=torch.bool, device=device)
        weights = torch.zeros((len(rows), most), device=device)
        for row, (own, answer, weight) in enumerate(rows):
            ids[row, : len(own)] = torch.tensor(own)
            there[row, : len(own)] = 1
            said[row, len(own) - answer - 1 : len(own) - 1] = True
            weights[row, len(own) - answer - 1 : len(own) - 1] = weight
        causal = self.model.get_base_model()
        hidden = causal.model(input_ids=ids, attention_mask=there, use_cache=False).last_hidden_state[said]
        counts = weights[said] / max(whole, 1e-6)
        loss, gradient = compared(hidden.detach(), causal.lm_head.weight, ids.roll(-1, 1)[said], counts)
        hidden.backward(gradient)
        return loss

    def _take(self, whole: Sequence[Any]) -> None:
        import torch

        with torch.no_grad():
            for own, used in zip(whole, self._taught, strict=True):
                used.copy_(own)

    def _resumed(self, checkpoint: Checkpoint, whole: Sequence[Any], optimizer: Any) -> tuple[int, list[float]]:
        import torch

        state = checkpoint.load(self.model.device)
        if state is None:
            return 0, []
        with torch.no_grad():
            for own, value in zip(whole, state["weights"], strict=True):
                own.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        self._take(whole)
        return state["step"], state["losses"]


def _held(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows in turn, as many at once as can be held."""
    at_once = max(HELD // max(len(ids) for ids, _, _ in rows), 1)
    for start in range(0, len(rows), at_once):
        yield rows[start : start + at_once]


def _key(samples: Sequence[Sample], epochs: int, seed: int, weights: str) -> str:
    whole = json.dumps([[list(s.messages), s.answer, s.weight] for s in samples])
    return hashlib.blake2b(
        f"{weights} {epochs} {seed} {RANK} {LAYERS} {RATE} {whole}".encode(), digest_size=16
    ).hexdigest()
