"""LoRA adapters and ranking prompts for tests, drawn by a seed from the demo films."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from agent.item_text import prompt_line, prompt_lines
from agent.llm import parsing
from agent.llm.adapters import GGUF, PROMPTS, WEIGHTS, Adapter, Adapters
from agent.llm.client import TOP_LOGPROBS
from agent.llm.weights import file_hash, find_weights
from agent.ranking.rerank import WINDOW
from eval.training.gguf_export import export
from eval.training.lora import Sample
from prompts import Prompts
from store import Catalog, History, Item

LABELS = ascii_uppercase[:WINDOW]
Messages = Sequence[dict[str, str]]


def export_adapter(folder: Path, task: str, model: Any) -> Adapter:
    """Write a peft model's adapter with its record into `folder`, switched on; return it."""
    model.save_pretrained(str(folder))
    weights = find_weights()
    export(folder, weights)
    found = Adapter(
        task=task,
        folder=folder,
        hash=file_hash(folder / WEIGHTS),
        gguf_hash=file_hash(folder / GGUF),
        weights=file_hash(weights),
        model=weights.stem,
        prompt=Prompts().fingerprint(*PROMPTS[task]),
        on=True,
        evidence={},
    )
    Adapters.save(found)
    return found


def record_adapter(task: str, store: Path, **other: Any) -> Adapter:
    """Write an adapter that no engine can run, with its record, into the store; return it."""
    folder = store / "trained" / task
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(task.encode())
    (folder / "adapter.gguf").write_bytes(b"nothing")
    (folder / "adapter_config.json").write_text('{"r": 12}')
    facts = {
        "hash": file_hash(folder / "adapter_model.safetensors"),
        "gguf_hash": file_hash(folder / "adapter.gguf"),
        "weights": file_hash(find_weights()),
        "model": "TheModel",
        "prompt": Prompts().fingerprint(*PROMPTS[task]),
        "on": True,
        "evidence": {"ndcg@10": [0.1, 0.2]},
    }
    found = Adapter(task=task, folder=folder, **(facts | other))
    Adapters.save(found)
    return found


def random_lora(base: Any, seed: int, scale: float = 0.08) -> Any:
    """Return the base model with a random adapter on all linear layers, large enough to change its answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
    return model.eval()


def ranking_samples(store: Path, n: int, seed: int) -> list[Sample]:
    """Return `n` prompts that rank a window of films for a user, in the order of users, so that shared prefixes are cached.

    The right answer is the label of the film that the user liked last; it is not in the history shown.
    """
    drawn, prompts = random.Random(seed), Prompts()
    with Catalog.open(store) as catalog, History.open(store) as history:
        users = sorted(history.users())
        liked = {user: [event.item for event in history.positive(history.of(user))] for user in users}
        items: dict[str, Item] = {item.id: item for item in catalog.items()}
    samples = []
    for user in sorted(drawn.choices([user for user in users if len(liked[user]) > 1], k=n)):
        *known, right = liked[user]
        window = [right, *drawn.sample(sorted(items.keys() - set(liked[user])), WINDOW - 1)]
        drawn.shuffle(window)
        asked = prompts.render(
            "rank",
            history=prompt_lines([items[id] for id in known[-5:]]),
            request="",
            candidates=[prompt_line(label, items[id]) for label, id in zip(LABELS, window, strict=True)],
        )
        samples.append(Sample(asked, LABELS[window.index(right)]))
    return samples


def torch_labels(model: Any, tokenizer: Any, asked: Sequence[Messages]) -> list[dict[str, float]]:
    """Return the label scores that `LLM.labels` returns, computed by the model in this process."""
    import torch

    found = []
    with torch.inference_mode():
        for messages in asked:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            scores = model(**tokens, logits_to_keep=1).logits[0, -1].float().log_softmax(-1).topk(TOP_LOGPROBS)
            top = [(tokenizer.decode([id]), float(score)) for score, id in zip(*scores, strict=True)]
            found.append(parsing.label_scores(top, list(LABELS)))
    return found


def best_label(labels: dict[str, float]) -> str:
    """Return the label with the highest log-probability."""
    return max(labels, key=lambda label: labels[label])


def gap(labels: dict[str, float]) -> float:
    """Return the difference, in nats, between the best label and the second."""
    first, second, *_ = sorted(labels.values(), reverse=True)
    return first - second
