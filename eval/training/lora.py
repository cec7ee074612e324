"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) for a language model: training on samples, and generating text."""

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
from eval.progress import Progress
from eval.training.base_model import load
from eval.training.checkpoint import Checkpoint, mean_of_last_tenth, schedule
from eval.training.chunked_loss import chunked_cross_entropy

RANK = 16
LAYERS = 0.5
"""The share of layers with an adapter, from the top: layers below need no backward pass."""
BATCH = 16
RATE = 1e-3
POLICY_RATE = 1e-4
"""The learning rate of policy gradient, lower because rewards of sampled lists are a noisier signal than examples."""
WARM_UP = 0.06
"""The share of steps in which the learning rate rises."""
PROMPTS_AT_ONCE = 32
"""The batch size of generation."""
TOKENS_AT_ONCE = 2048
"""The most tokens in one forward and backward pass, each of which takes about 1.5 MB."""

Messages = Sequence[dict[str, str]]
Row = tuple[list[int], int, float]
"""A sample's tokens, the number of them that are its answer, and its weight."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with the answer to learn.

    Args:
        messages: the prompt.
        answer: the answer.
        weight: the weight in the loss; below 0, the answer becomes less likely.
        prefix: the beginning of the answer that was given, and is not learned.
        complete: whether the answer ends here; an incomplete one was cut off.
    """

    messages: Messages
    answer: str
    weight: float = 1.0
    prefix: str = ""
    complete: bool = True


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
        self.adapter: list[Any] = [p for p in self.model.parameters() if p.requires_grad]

    def learn(self, samples: Sequence[Sample], epochs: int, kept: Path, what: str, progress: Progress) -> float:
        """Train on the samples; return the mean loss of the last tenth of the steps.

        A training that was killed continues from its last checkpoint. The same seed gives the same adapter on one machine.

        Args:
            samples: the samples.
            epochs: how often all samples are used.
            kept: the file of the checkpoint. A checkpoint of other samples is ignored.
            what: the name of the steps in the progress display.
            progress: the progress display.
        """
        rows = [self._tokenize(sample) for sample in samples]
        batches = list(self._batches([len(row[0]) for row in rows], epochs))
        master = _MasterWeights(self)

        def take(step: int) -> float:
            batch = [(*rows[row], samples[row].weight) for row in batches[step]]
            tokens = sum(answer * weight for _, answer, weight in batch)
            return master.step(batch, tokens, RATE * schedule(step, len(batches), WARM_UP))

        checkpoint = Checkpoint(kept, _key(samples, epochs, self.seed, self.weights))
        losses = checkpoint.run(len(batches), take, master, what, progress)
        self.model.eval()
        return mean_of_last_tenth(losses)

    def reinforce(
        self,
        rounds: int,
        draw: Callable[[int], tuple[Sequence[Sample], float]],
        key: str,
        kept: Path,
        progress: Progress,
    ) -> list[float]:
        """Take one policy-gradient step in each round; return the mean reward of each round.

        A step is smaller if rewards differ less. A training that was killed continues from its last checkpoint.

        Args:
            rounds: the number of steps.
            draw: returns, for the number of a round, samples that this model has generated, and their mean reward. The weight of
                a sample is its advantage: its reward, less the mean reward of its group.
            key: names everything that `draw` depends on.
            kept: the file of the checkpoint. A checkpoint with another key is ignored.
            progress: the progress display.
        """
        key = f"{self.state_hash} {self.seed} {rounds} {POLICY_RATE} {key}"
        master = _MasterWeights(self)

        def take(step: int) -> float:
            samples, mean = draw(step)
            batch = [(*self._tokenize(sample), sample.weight) for sample in samples]
            tokens = sum(answer for _, answer, _ in batch)
            master.step(batch, tokens, POLICY_RATE * schedule(step, rounds, WARM_UP))
            return float(mean)

        return Checkpoint(kept, key).run(rounds, take, master, "policy-gradient steps taken", progress)

    def generate(
        self,
        prompts: Sequence[Messages],
        prefix: str,
        tokens: int,
        temperature: float,
        what: str,
        progress: Progress,
        draw: int = 0,
        top_p: float = 0.95,
    ) -> list[str]:
        """Sample an answer to each prompt; return the answers with their prefix.

        Args:
            prompts: the prompts.
            prefix: how each answer begins.
            tokens: the most tokens after the prefix.
            temperature: the temperature of sampling.
            what: the name of the prompts in the progress display.
            progress: the progress display.
            draw: another number gives other answers.
            top_p: sample from the most likely tokens that have this probability together.
        """
        import torch

        self.model.eval()
        self.tokenizer.padding_side = "left"
        texts = [self._render(messages) + prefix for messages in prompts]
        answers = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        options = {"do_sample": True, "max_new_tokens": tokens, "temperature": temperature, "top_k": 0, "top_p": top_p}
        torch.manual_seed(int(np.random.SeedSequence([self.seed, draw]).generate_state(1)[0]) if draw else self.seed)
        with progress(what) as advance, torch.no_grad():
            for start in range(0, len(order), PROMPTS_AT_ONCE):
                rows = order[start : start + PROMPTS_AT_ONCE]
                batch = self.tokenizer(
                    [texts[row] for row in rows], return_tensors="pt", padding=True, add_special_tokens=False
                ).to(self.model.device)
                out = self.model.generate(**batch, **options, pad_token_id=self._end)
                for row, ids in zip(rows, out[:, batch["input_ids"].shape[1] :], strict=True):
                    answers[row] = prefix + self.tokenizer.decode(ids, skip_special_tokens=True)
                advance(start + len(rows), len(order))
        return answers

    def save(self, folder: Path) -> None:
        """Write the adapter as peft does: adapter_config.json and adapter_model.safetensors."""
        with warnings.catch_warnings(action="ignore"):  # peft warns that a GGUF file has no config.json
            self.model.save_pretrained(str(folder))

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return str(self.model.device.type) != "cpu"

    @property
    def state_hash(self) -> str:
        """A hash of the base model and of the adapter's present weights."""
        import torch

        whole = hashlib.blake2b(self.weights.encode(), digest_size=12)
        for weights in self.adapter:
            whole.update(weights.detach().cpu().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    def backward(self, rows: Sequence[Row], tokens: float) -> float:
        """Return the loss of these rows, and add its gradients to those of the adapter.

        The loss is the weighted sum of the cross-entropies of the answers' tokens, over `tokens` of the whole batch.
        """
        import torch

        device = self.model.device
        most = max(len(ids) for ids, _, _ in rows)
        ids = torch.full((len(rows), most), self._end, device=device)
        mask = torch.zeros((len(rows), most), dtype=torch.long, device=device)
        predicts = torch.zeros((len(rows), most), dtype=torch.bool, device=device)
        weights = torch.zeros((len(rows), most), device=device)
        for row, (own, answer, weight) in enumerate(rows):
            ids[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = 1
            predicts[row, len(own) - answer - 1 : len(own) - 1] = True
            weights[row, len(own) - answer - 1 : len(own) - 1] = weight
        causal = self.model.get_base_model()
        hidden = causal.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[predicts]
        shares = weights[predicts] / max(tokens, 1e-6)
        targets = ids.roll(-1, 1)[predicts]
        loss, gradient = chunked_cross_entropy(hidden.detach(), causal.lm_head.weight, targets, shares)
        hidden.backward(gradient)
        return loss

    @property
    def _end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _render(self, messages: Messages) -> str:
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _tokenize(self, sample: Sample) -> tuple[list[int], int]:
        """Return the sample's tokens, and the number of them that are its answer."""
        prompt, answer = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (self._render(sample.messages) + sample.prefix, sample.answer)
        )
        answer += [self._end] if sample.complete else []
        return prompt + answer, len(answer)

    def _batches(self, lengths: Sequence[int], epochs: int) -> Iterator[list[int]]:
        """Yield batches of rows of similar length, in a new order in each epoch."""
        rng = np.random.default_rng(self.seed)
        for _ in range(epochs):
            order = np.argsort(np.asarray(lengths) + rng.uniform(0, 16, len(lengths)))
            groups = [order[start : start + BATCH].tolist() for start in range(0, len(order), BATCH)]
            for group in rng.permutation(len(groups)):
                yield groups[group]


class _MasterWeights:
    """The adapter's weights in float32, with their optimizer: bfloat16 is too coarse for small steps."""

    def __init__(self, lora: Lora) -> None:
        import torch

        self.lora, self.device = lora, lora.model.device
        self.weights = [p.detach().float().clone().requires_grad_() for p in lora.adapter]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE, weight_decay=0.0)

    def step(self, batch: Sequence[Row], tokens: float, rate: float) -> float:
        """Take one step at this learning rate; return the batch's loss, the mean over so many `tokens`."""
        import torch

        self.lora.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = sum(self.lora.backward(rows, tokens) for rows in _split(batch))
        for own, used in zip(self.weights, self.lora.adapter, strict=True):
            own.grad, used.grad = used.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self._copy_to_adapter()
        return loss

    def state(self) -> dict[str, Any]:
        """Return the weights and the state of the optimizer."""
        return {"weights": self.weights, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        import torch

        with torch.no_grad():
            for own, value in zip(self.weights, state["weights"], strict=True):
                own.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self._copy_to_adapter()

    def _copy_to_adapter(self) -> None:
        import torch

        with torch.no_grad():
            for own, used in zip(self.weights, self.lora.adapter, strict=True):
                used.copy_(own)


def _split(batch: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the batch in parts of TOKENS_AT_ONCE, of one row at least."""
    at_once = max(TOKENS_AT_ONCE // max(len(ids) for ids, _, _ in batch), 1)
    for start in range(0, len(batch), at_once):
        yield batch[start : start + at_once]


def _key(samples: Sequence[Sample], epochs: int, seed: int, weights: str) -> str:
    whole = json.dumps([[list(s.messages), s.answer, s.weight] for s in samples])
    return hashlib.blake2b(
        f"{weights} {epochs} {seed} {RANK} {LAYERS} {RATE} {whole}".encode(), digest_size=16
    ).hexdigest()
