"""LoRA adapters: export from peft, use by the embedded engine and by a server, and refusal of those that do not fit."""

from __future__ import annotations

import json
import random
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from agent import EvokeError
from agent.errors import AdapterRefused, ModelDown
from agent.item_text import item_query
from agent.llm.adapters import TASKS, Adapter, Adapters
from agent.llm.client import LLM, Deadline
from agent.llm.weights import find_weights
from agent.profile.interests import PENALTY
from agent.retrieval.channels import OTHERS, chosen_by_others
from agent.retrieval.sources import Sources
from eval import compare
from eval.cli import cli
from eval.data.leakage import hash_tuning_data
from eval.training.base_model import load
from eval.training.gguf_export import export
from prompts import Prompts
from store import Catalog, History
from tests.helpers.adapters import (
    LABELS,
    Messages,
    best_label,
    export_adapter,
    random_lora,
    record_adapter,
    torch_labels,
)
from tests.helpers.model_contract import rank_prompt
from tests.helpers.recommending import FILMS, modelled

GONE = "http://127.0.0.1:9/v1"


@dataclass(frozen=True)
class Made:
    """An adapter for each task, and short ranking prompts with the label scores that torch computes with the ranking adapter."""

    adapters: dict[str, Adapter]
    asked: list[list[dict[str, str]]]
    torch: list[dict[str, float]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    drawn = random.Random(1)
    titles = [json.loads(row)["title"] for row in (FILMS / "items.jsonl").read_text().splitlines()]
    asked = [rank_prompt(drawn.sample(titles, 5)) for _ in range(20)]
    folder, adapters = tmp_path_factory.mktemp("trained"), {}
    base, tokenizer = load(find_weights())
    for seed, task in enumerate(TASKS):
        model = random_lora(base, seed)
        adapters[task] = export_adapter(folder / task, task, model)
        scores = torch_labels(model, tokenizer, asked) if task == "rank" else []
        base = model.unload()
    return Made(adapters, asked, scores)


async def score_labels(llm: LLM, asked: Sequence[Messages], adapter: Adapter | None = None) -> list[dict[str, float]]:
    return [(await llm.labels(messages, LABELS, deadline=Deadline(60), adapter=adapter)).value for messages in asked]


def distance(some: Sequence[dict[str, float]], others: Sequence[dict[str, float]]) -> float:
    """Return the mean difference, in nats, of the labels that both have scores for."""
    both = [(a[label], b[label]) for a, b in zip(some, others, strict=True) for label in a.keys() & b.keys()]
    return sum(abs(ours - theirs) for ours, theirs in both) / len(both)


@pytest.mark.slow
async def test_embedded_engine_with_an_adapter_agrees_with_torch(made: Made) -> None:
    llm = LLM.embedded()
    plain = await score_labels(llm, made.asked)
    adapted = await score_labels(llm, made.asked, made.adapters["rank"])
    await llm.close()
    assert sum(best_label(ours) == best_label(theirs) for ours, theirs in zip(adapted, made.torch, strict=True)) >= 16
    # The plain model and these adapters all prefer the same letter, so the scores of all labels are compared.
    assert distance(adapted, made.torch) < distance(plain, made.torch) / 2


@pytest.mark.slow
async def test_adapters_do_not_change_answers_of_the_plain_model(made: Made) -> None:
    asked = made.asked[:2]
    llm = LLM.embedded()
    await score_labels(llm, asked)
    alone = {task: await score_labels(llm, asked, made.adapters.get(task)) for task in ("plain", *TASKS)}
    # The prompts are in each engine's cache now; results from the cache differ a little from the first ones.
    for task in ("plain", "rank", "plain", "queries", "rank"):
        again = await score_labels(llm, asked, made.adapters.get(task))
        assert all(distance(again, alone[task]) < distance(again, alone[other]) / 2 for other in alone if other != task)
    await llm.close()


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Adapter]:
    """`record_adapter` in the store `tmp_path / "store"`, or in another one."""

    def make(task: str, store: Path = tmp_path / "store", **other: Any) -> Adapter:
        return record_adapter(task, store, **other)

    return make


async def ask(llm: LLM, adapter: Adapter) -> Any:
    return await llm.labels([{"role": "user", "content": "A or B?"}], "AB", deadline=Deadline(60), adapter=adapter)


def test_store_keeps_its_adapters_and_uses_those_that_are_on(record: Callable[..., Adapter], tmp_path: Path) -> None:
    rank, queries = record("rank"), record("queries", on=False)
    found = Adapters.load(tmp_path / "store")
    assert found.adapters == {"rank": rank, "queries": queries}
    assert found.adapter("rank") == rank and found.adapter("queries") is None and found.on == [rank]
    assert Adapters.load(None).on == Adapters.load(tmp_path).on == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"on": 3}', "\x00"])
def test_broken_adapter_record_gives_one_line_with_the_remedy(
    text: str, record: Callable[..., Adapter], tmp_path: Path
) -> None:
    (record("rank").folder / "adapter.json").write_text(text)
    with pytest.raises(EvokeError, match="run `evoke train rank` again") as caught:
        Adapters.load(tmp_path / "store")
    assert "\n" not in str(caught.value)


async def test_each_adapter_has_its_own_cache_key(record: Callable[..., Adapter]) -> None:
    llm = LLM(GONE, "some")
    keys = {llm.cache_key(None), llm.cache_key(record("rank")), llm.cache_key(record("queries"))}
    assert len(keys) == 3 and llm.key in keys
    await llm.close()


async def test_adapter_of_another_model_or_with_changed_files_is_refused(
    record: Callable[..., Adapter], tmp_path: Path
) -> None:
    llm = LLM.embedded()
    with pytest.raises(
        AdapterRefused, match=r"trained on TheModel, and .* runs: unset EVOKE_MODEL, or run `evoke train"
    ):
        await ask(llm, record("rank", weights="0" * 16))
    with pytest.raises(ModelDown, match=r"the queries adapter cannot be run .*: run `evoke train queries` again"):
        await ask(llm, record("queries"))
    for file in ("adapter_model.safetensors", "adapter.gguf"):
        changed = record("rank", tmp_path / file)
        (changed.folder / file).write_bytes(b"changed")
        with pytest.raises(AdapterRefused, match="files were changed or are gone: run `evoke train rank` again"):
            await ask(llm, changed)
    await llm.close()


def test_adapter_trained_with_another_prompt_is_refused(record: Callable[..., Adapter], tmp_path: Path) -> None:
    (tmp_path / "rank.j2").write_text("{% block system %}{% endblock %}{% block user %}Which?{% endblock %}")
    with pytest.raises(AdapterRefused, match=r"another prompt: take rank.j2 .* out of the prompts folder, or run"):
        record("rank").check_prompt(Prompts(tmp_path))


async def test_adapter_is_requested_from_a_server_by_its_name(
    record: Callable[..., Adapter], model_server: Callable[..., Any]
) -> None:
    adapter, server = record("rank"), model_server(modelled())
    llm = LLM(server.base_url)
    with pytest.raises(AdapterRefused, match=f"--enable-lora --max-lora-rank 16 --lora-modules {adapter.name}=/"):
        await ask(llm, adapter)
    assert server.requests == []
    server.models.append(adapter.name)
    await ask(llm, adapter)
    await llm.labels([{"role": "user", "content": "A or B?"}], "AB", deadline=Deadline(5))
    assert [request["model"] for request in server.requests] == [adapter.name, server.models[0]]
    await llm.close()


def test_refused_adapter_degrades_only_the_rank_stage(
    rec: Callable[..., Any], films: Path, record: Callable[..., Adapter]
) -> None:
    adapter = record("rank", films)
    recommender = rec(rank_weight=0.5, explain=False)
    refused = recommender.recommend(user="mara")
    assert len(refused) == 10
    assert [d["stage"] for d in refused.as_json()["trace"]["degraded"]] == ["rerank"]
    assert "--lora-modules" in refused.trace["rerank"].degraded
    recommender.server.models.append(adapter.name)
    used = recommender.recommend(user="mara")
    assert used.trace.degraded == [] and "trained adapter" in used.trace["rerank"].notes
    assert {r["model"] for r in recommender.server.requests if r.get("logprobs")} == {adapter.name}
    assert recommender.trained == ["rank adapter"]


def test_latest_items_are_searched_for_with_and_without_a_model_answer(
    rec: Callable[..., Any], films: Path, record: Callable[..., Adapter]
) -> None:
    adapter = record("queries", films, evidence={"latest": 2})
    recommender = rec(weights={"queries": 0.3, "dense": 1.0}, explain=False)
    refused = recommender.recommend(history=["se7en-1995", "heat-1995"])
    assert "--lora-modules" in refused.trace["profile"].degraded
    recommender.server.models.append(adapter.name)
    used = recommender.recommend(history=["se7en-1995", "heat-1995"])
    assert used.trace.degraded == [] and "trained adapter" in used.trace["profile"].notes
    for found in (refused, used):
        assert [query.split(",")[0] for query in found.queries[:2]] == ["Heat", "Se7en"]
    assert "a crew plans one last robbery" in used.queries


def test_prompt_of_a_trained_model_shows_items_that_others_chose_next(
    rec: Callable[..., Any], films: Path, record: Callable[..., Adapter]
) -> None:
    adapter = record("queries", films)
    recommender = rec(weights={"queries": 0.3, "dense": 1.0}, explain=False)
    recommender.server.models.append(adapter.name)
    with Catalog.open(films) as catalog, History.open(films) as history:
        sources, schema = Sources.of(catalog, history), catalog.schema()
        liked = [event.item for event in history.positive(history.of("mara"))]
        snapshot, may = sources.snapshot, ~sources.snapshot.hidden
        may[snapshot.rows_of(event.item for event in history.of("mara"))] = False
        rows = np.array([snapshot.rows[id] for id in liked])
        first = [snapshot.ids[row] for row in chosen_by_others(sources.counts, rows, may)]
        catalog.upsert([replace(catalog.get(first[:1])[first[0]], hidden=True)])
        shown = [item_query(item, schema) for item in catalog.get(first).values() if not item.hidden]
    assert len(first) == OTHERS and not set(first) & set(liked)
    recommender.recommend(user="mara")
    asked = [r["messages"][1]["content"] for r in recommender.server.requests if r["model"] == adapter.name]
    shown_lines = [line for line in asked[0].partition("Others chose next:")[2].splitlines() if line.startswith('"')]
    assert [json.loads(line) for line in shown_lines][: len(shown)] == shown
    assert len(shown_lines) == OTHERS


def test_comparison_asks_the_adapter_and_the_plain_model(
    films: Path, record: Callable[..., Adapter], model_server: Callable[..., Any]
) -> None:
    adapter = record("queries", films, evidence={"on": "valid", "seen": hash_tuning_data(FILMS)})
    server = model_server(modelled())
    server.models.append(adapter.name)
    arms = ["queries", "dense+queries-adapter"]
    given: dict[str, Any] = {"store": films, "base_url": server.base_url, "model": server.models[0], "cases": 5}
    run = compare(FILMS, arms, **given)
    asked = [request["model"] for request in server.requests]
    # The recommender asks the plain model for the profile, and the adapter for queries and for titles.
    assert asked.count(adapter.name) == asked.count(server.models[0]) == 2 * run.cases
    held = {(request["model"], request.get("frequency_penalty")) for request in server.requests}
    assert held == {(adapter.name, PENALTY), (server.models[0], None)}
    assert {"model", "model (-adapter)"} <= run.settings.keys()
    assert run.arms["queries"]["calls"] == 3 and run.arms["dense+queries-adapter"]["calls"] == 1
    compare(FILMS, ["base+queries+named", "named", "queries"], **given)
    assert len(server.requests) == 4 * run.cases, "earlier answers come from the cache"


def test_model_command_reports_whether_adapters_can_be_used(
    record: Callable[..., Adapter], tmp_path: Path, model_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = model_server(modelled())
    monkeypatch.setenv("EVOKE_BASE_URL", server.base_url)
    both = [record("queries"), record("rank")]
    command = ["model", "--store", str(tmp_path / "store"), "--json"]
    refused = CliRunner().invoke(cli, command)
    assert refused.exit_code == 1
    assert ["--lora-modules" in adapter["reason"] for adapter in json.loads(refused.output)["adapters"]] == [True, True]
    server.models += [adapter.name for adapter in both]
    used = CliRunner().invoke(cli, command)
    assert used.exit_code == 0
    assert json.loads(used.output)["vllm"] == shlex.join(
        ["vllm", "serve", "MODEL", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--lora-modules"]
        + [f"{adapter.name}={adapter.folder}" for adapter in both]
    )
    assert CliRunner().invoke(cli, command[:-1]).output.splitlines()[1] == f"queries adapter ({both[0].name}): answers"


@pytest.mark.slow
def test_only_plain_adapters_of_known_architectures_are_exported(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.adapters["rank"].folder, tmp_path / "odd")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(EvokeError, match="use_dora has no GGUF form; serve it with vLLM"):
        export(folder, find_weights())
    (folder / "adapter_config.json").write_text(json.dumps(config))
    other = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    other.add_block_count(1)
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.close()
    with pytest.raises(
        EvokeError, match=r"other\.gguf: adapters for architecture gpt2 cannot be written; set EVOKE_MODEL"
    ):
        export(folder, tmp_path / "other.gguf")
