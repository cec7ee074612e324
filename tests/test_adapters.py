"""LoRA adapters: exported from peft, run by the embedded engine beside plain answers, refused where they do not belong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from agent import EvokeError
from agent.embedded import find_weights
from agent.errors import AdapterRefused
from agent.llm import LLM, Deadline
from agent.trained import PROMPTS, TASKS, Adapter, Trained, vllm_options
from eval.cli import cli
from eval.train.export import export
from eval.train.weights import load
from prompts import Prompts
from tests.adapters import LABELS, Messages, adapter, best, random_lora, ranking_prompts, torch_labels
from tests.recommending import modelled

GONE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, films_store: Path) -> dict[str, Any]:
    """Two adapters, 20 ranking prompts, and what torch says to these, plain and with each adapter."""
    folder = tmp_path_factory.mktemp("trained")
    asked = ranking_prompts(films_store, 20, seed=1)
    made: dict[str, Any] = {"folder": folder, "asked": asked}
    for seed, task in enumerate(TASKS):
        base, tokenizer = load(find_weights())
        model = random_lora(base.float(), seed)
        made[task] = adapter(folder / task, task, model)
        made[f"torch {task}"] = torch_labels(model, tokenizer, asked)
    made["torch plain"] = torch_labels(model, tokenizer, asked, plain=True)
    return made


async def labelled(llm: LLM, asked: Sequence[Messages], adapter: Adapter | None = None) -> list[dict[str, float]]:
    return [
        (await llm.labels(messages, LABELS, deadline=Deadline(60), adapter=adapter)).value for messages in asked
    ]


async def test_the_engine_says_with_an_adapter_what_torch_says(made: dict[str, Any]) -> None:
    llm = LLM.embedded()
    said: dict[str, Any] = {"plain": await labelled(llm, made["asked"])}
    said |= {task: await labelled(llm, made["asked"], made[task]) for task in TASKS}
    await llm.close()
    agree = {
        (ours, theirs): np.mean(
            [best(a) == best(b) for a, b in zip(said[ours], made[f"torch {theirs}"], strict=True)]
        )
        for ours in said
        for theirs in said
    }
    print(agree)
    for name in said:
        assert agree[name, name] >= 0.7
        assert all(agree[name, other] < agree[name, name] for other in said if other != name)


async def test_plain_answers_stay_plain_beside_adapters(made: dict[str, Any]) -> None:
    asked = made["asked"][:3]
    llm = LLM.embedded()
    await labelled(llm, asked)
    alone = {task: await labelled(llm, asked, made.get(task)) for task in ("plain", *TASKS)}
    # The prompts are in the cache now, of each engine its own.
    for task in ("rank", "plain", "queries", "plain", "rank"):
        assert await labelled(llm, asked, made.get(task)) == alone[task]
    await llm.close()


async def test_what_an_adapter_says_is_cached_by_itself(made: dict[str, Any]) -> None:
    llm = LLM(GONE, "some")
    keys = {llm.key_of(None), *(llm.key_of(made[task]) for task in TASKS)}
    assert len(keys) == 3 and llm.key in keys
    await llm.close()


async def test_an_adapter_of_other_weights_is_refused(made: dict[str, Any]) -> None:
    llm = LLM.embedded()
    other = replace(made["rank"], weights="0" * 16, model="SomeModel", hash=made["rank"].hash)
    llm._adapted.clear()
    shutil.copytree(made["rank"].folder, folder := made["folder"] / "other")
    changed = replace(made["rank"], folder=folder)
    (folder / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(AdapterRefused, match="the rank adapter's files were changed or are gone: run `evoke train rank`"):
        await labelled(llm, made["asked"][:1], changed)
    with pytest.raises(AdapterRefused, match="trained on SomeModel, and .* runs: unset EVOKE_MODEL, or run `evoke train rank`"):
        other.check_weights(made["rank"].weights, made["rank"].model)
    await llm.close()


async def test_a_server_must_list_the_adapter(made: dict[str, Any], model_server: Callable[..., Any]) -> None:
    llm = LLM(model_server(modelled()).base_url)
    with pytest.raises(AdapterRefused, match=f"--enable-lora --max-lora-rank 8 --lora-modules {made['rank'].name}=/"):
        await labelled(llm, made["asked"][:1], made["rank"])
    await llm.close()


def test_two_adapters_are_served_side_by_side(made: dict[str, Any]) -> None:
    both = [made[task] for task in TASKS]
    options = vllm_options(both)
    assert options[options.index("--max-loras") + 1] == "2"
    assert options[-2:] == [f"{a.name}={a.folder}" for a in both]
