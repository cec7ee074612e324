"""Training adapters of the language model: determinism, resuming, samples, rewards, verdicts, and the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from agent.forgetting import drop_derived
from agent.item_text import TITLE
from agent.llm.adapters import WEIGHTS, Adapters
from agent.llm.weights import file_hash, find_weights
from agent.profile.fallback import Mix
from agent.profile.interests import SHOWN
from eval.data.cases import Case
from eval.data.leakage import hash_tuning_data
from eval.data.read_cases import load_cases
from eval.errors import EvalError
from eval.fitting.sequences import Pair, pairs
from eval.progress import quiet
from eval.training import adapters, checkpoint, queries, rejection, reranker, reward
from eval.training import lora as lora_module
from eval.training.chunked_loss import chunked_cross_entropy
from eval.training.examples import QUERY_CHARACTERS, Examples, retrieve_candidates, retrieve_chosen_next
from eval.training.lora import Lora, Sample
from eval.training.policy_gradient import group_relative
from eval.training.verdict import Verdict, spread_over_users
from eval.tuning.tune import validation_cases
from prompts import Prompts
from store import Catalog
from store.locks import exclusive_lock
from tests.helpers.adapters import record_adapter
from tests.helpers.recommending import FILMS


def evoke(*words: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the embedded model."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EVOKE_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "eval.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment | {"EVOKE_DEADLINE": "400"} | variables,
        timeout=900,
    )


def read_json(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the command's output; fail with its messages if it failed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Killed(Exception):
    pass


def killed_after(after: int) -> Callable[[str], Any]:
    """Return a progress display that raises Killed after so many steps."""

    @contextmanager
    def progress(_: str) -> Iterator[Callable[[int, int], None]]:
        def advance(done: int, __: int) -> None:
            if done >= after:
                raise Killed

        yield advance

    return progress


@pytest.fixture
def examples(films: Path) -> Iterator[Examples]:
    with Catalog.open(films) as catalog:
        yield Examples.of(catalog, Prompts())


def samples(examples: Examples, n: int) -> list[Sample]:
    return [examples.sample(pair, others, "queries") for pair, others in draw_pairs(examples, n, seed=0)]


def draw_pairs(examples: Examples, n: int, seed: int) -> list[tuple[Pair, list[int]]]:
    """Return pairs, each with the rows that other users chose next."""
    cases = load_cases(FILMS, "valid")
    drawn = pairs(cases, examples.snapshot, n, seed)
    return list(zip(drawn, retrieve_chosen_next(cases, examples.catalog, drawn), strict=True))


def test_chunked_loss_and_gradient_equal_those_of_torch() -> None:
    torch.manual_seed(0)
    hidden, vocabulary = torch.randn(300, 8, requires_grad=True), torch.randn(50, 8)
    targets, weights = torch.randint(0, 50, (300,)), torch.rand(300)
    loss, gradient = chunked_cross_entropy(hidden.detach(), vocabulary, targets, weights)
    whole = (cross_entropy(hidden @ vocabulary.T, targets, reduction="none") * weights).sum()
    whole.backward()
    assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
    assert torch.allclose(gradient, hidden.grad, atol=1e-5)


@pytest.mark.slow
def test_training_depends_on_the_seed_alone_also_after_a_kill(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "BATCH", 2)
    monkeypatch.setattr(checkpoint, "SAVED_EVERY", 0.0)
    some = samples(examples, 8)
    hashes, losses, learned = [], [], []
    for name, killed in (("whole", False), ("killed", True)):
        if killed:
            with pytest.raises(Killed):
                Lora(find_weights(), 0).learn(some, 1, tmp_path / name / "kept.pt", "steps", killed_after(2))
        own = Lora(find_weights(), 0)
        fresh = own.state_hash
        losses.append(own.learn(some, 1, tmp_path / name / "kept.pt", "steps", quiet))
        own.save(tmp_path / name)
        hashes.append(file_hash(tmp_path / name / WEIGHTS))
        learned.append(own.state_hash)
    assert hashes[0] == hashes[1]
    assert losses[0] == losses[1]
    assert fresh != learned[0] == learned[1]
    kept = own.learn(
        some, 1, tmp_path / "killed" / "kept.pt", "steps", killed_after(0)
    )  # it is complete: no further step
    assert kept == losses[1]
    monkeypatch.setattr(lora_module, "TOKENS_AT_ONCE", 1)  # one row at a time
    apart = Lora(find_weights(), 0).learn(some, 1, tmp_path / "apart" / "kept.pt", "steps", quiet)
    assert apart == pytest.approx(losses[0], rel=0.02)


def test_pairs_come_from_before_the_cut_and_evenly_from_all_users(examples: Examples) -> None:
    cases = load_cases(FILMS, "valid")
    drawn = pairs(cases, examples.snapshot, 80, seed=0)
    ids = examples.snapshot.ids
    chosen: dict[str, list[str]] = {}
    for event in sorted(cases.events, key=lambda event: event.timestamp):
        chosen.setdefault(event.user, []).append(event.item)
    for pair in drawn:
        own = [id for id in chosen[pair.user] if id in {ids[row] for row in (*pair.history, *pair.chosen)}]
        assert own[: len(pair.history)] == [ids[row] for row in pair.history]
    counts = np.unique([pair.user for pair in drawn], return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_validation_cases_are_drawn_from_as_many_users_as_possible() -> None:
    cases = validation_cases(FILMS)
    users = cases.users
    few = spread_over_users(cases, users - 3, 0)
    assert len({cases.cases[row].user for row in few}) == len(few) == users - 3
    assert sorted(spread_over_users(cases, 10_000, 0)) == list(range(len(cases)))
    assert spread_over_users(cases, 5, 0) == few[:5] != spread_over_users(cases, 5, 1)


def test_answers_use_the_catalogs_words_and_do_not_repeat_the_history(examples: Examples) -> None:
    for pair, others in draw_pairs(examples, 30, seed=1):
        written = json.loads(examples.sample(pair, others, "queries").answer)["queries"]
        named = json.loads(examples.sample(pair, others, "named").answer)["named"]
        old = {examples.describe(row) for row in pair.history}
        assert not old & set(written)
        assert all(len(query) <= TITLE for query in written)
        assert sum(map(len, written)) <= QUERY_CHARACTERS
        assert {title["title"] for title in named} <= set(examples.snapshot.titles)
        lines = examples.prompt(pair, others, "queries")[1]["content"].splitlines()
        shown = [json.loads(line) for line in lines if line.startswith('"')]
        known = [examples.describe(row) for row in dict.fromkeys(reversed(pair.history))][:SHOWN]
        assert shown == known + [examples.describe(row) for row in others]
        assert not others or set(written) <= set(shown[len(known) :])


def test_items_that_this_user_chose_come_first_among_those_of_others(examples: Examples) -> None:
    pair = Pair("u", (0, 1), (1, 50, 7))
    assert examples.order_by_choice(pair, [3, 7, 50, 9]) == [50, 7, 3, 9]
    assert examples.order_by_choice(pair, []) == [50, 7]


@pytest.mark.parametrize("retrieve", [retrieve_candidates, retrieve_chosen_next])
def test_rows_for_a_pair_come_from_other_users_events(examples: Examples, retrieve: Any) -> None:
    cases = load_cases(FILMS, "valid")
    drawn = pairs(cases, examples.snapshot, 40, seed=0)
    found = retrieve(cases, examples.catalog, drawn)
    own = drawn[0].user
    others = [event for event in cases.events if event.user != own]
    changed = [
        replace(event, item=others[at % len(others)].item) for at, event in enumerate(cases.events) if event.user == own
    ]
    again = retrieve(replace(cases, events=(*others, *changed)), examples.catalog, drawn)
    assert [own for own, pair in zip(found, drawn, strict=True) if pair.user == own] == [
        own for own, pair in zip(again, drawn, strict=True) if pair.user == own
    ]
    assert found != again


def test_mix_with_most_latest_items_among_the_best_is_chosen(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    most = rng.random(300)
    recall = {mix: most - 0.1 * rng.random(300) for mix in queries.MIXES}
    recall |= {
        Mix(0, 0): most,
        Mix(4, 0): most - 0.002 + np.tile([0.1, -0.1], 150),
        Mix(4, 3): recall[Mix(4, 3)] - 0.1,
    }
    monkeypatch.setattr(queries, "_recall_by_mix", lambda *_: recall)
    assert queries.choose_mix(examples, [], [], True)[0] == Mix(4, 0)


def test_recall_of_mixes_is_measured_with_the_encoder(examples: Examples) -> None:
    drawn = draw_pairs(examples, 12, seed=0)
    mix, recall = queries.choose_mix(examples, *map(list, zip(*drawn, strict=True)), repeats=False)
    assert mix in queries.MIXES and len(recall) == len(queries.MIXES)
    assert max(recall.values()) > min(recall.values()) >= 0


def test_history_items_are_candidates_only_where_repeats_are_allowed(examples: Examples) -> None:
    pair = Pair("u", (0, 1, 2), (1, 50))
    candidates = list(range(40))
    new, again = (
        reranker.make_samples(examples, [pair], [candidates], repeats, seed=0)[0] for repeats in (False, True)
    )
    titles = [examples.item(row).title for row in range(51)]
    for sample, right in ((new, 50), (again, 1)):
        window = sample.messages[-1]["content"].partition("Task:")[2]
        assert f'\n{sample.answer}. "{titles[right]}' in window
    shown = new.messages[-1]["content"].partition("Task:")[2]
    assert not any(f'"{titles[row]}' in shown for row in pair.history)


class Scripted:
    """A model that writes the same two queries for every history."""

    seed, state_hash = 0, ""

    def __init__(self, found: str) -> None:
        self.found = found

    def generate(self, prompts: Sequence[Any], *_: Any) -> list[str]:
        return [json.dumps({"queries": ["a film about nothing at all", self.found]}) for _ in prompts]


def test_query_that_retrieves_the_chosen_item_is_learned(examples: Examples, tmp_path: Path) -> None:
    rows = examples.snapshot.rows
    history, chosen = rows["heat-1995"], rows["spirited-away-2001"]
    pair = Pair("u", (history,), (chosen,))
    query = f"{examples.item(chosen).title}, animation by Hayao Miyazaki"
    best, figures = rejection.select_best(examples, [(pair, [5])], Scripted(query), tmp_path, quiet)  # type: ignore[arg-type]
    assert json.loads(best[0].answer)["queries"][0] == query
    assert best[0].weight == 2.0  # the history's vector does not retrieve it
    assert figures["reward"]["mean"] == 2.0
    assert best[0].messages == examples.prompt(pair, [5], "queries")


class Drawing:
    """A model on a GPU that keeps the samples it gets, and whose lists repeat: one that finds nothing, one that finds the item, one
    that is cut off, and an empty one."""

    seed, state_hash, on_gpu = 0, "", True

    def __init__(self, found: str) -> None:
        self.lists = ["a film about nothing at all", found]
        self.samples: list[Sample] = []

    def learn(self, *_: Any) -> float:
        return 0.0

    def generate(self, prompts: Sequence[Any], *_: Any) -> list[str]:
        whole = [json.dumps({"queries": [query]}) for query in self.lists]
        return [[*whole, whole[1][:-2], reward.PREFIX][at % 4] for at in range(len(prompts))]

    def reinforce(self, rounds: int, draw: Callable[[int], tuple[list[Sample], float]], *_: Any) -> list[float]:
        samples, mean = draw(0)
        self.samples += samples
        return [mean] * rounds


def test_advantage_is_the_reward_above_the_mean_of_the_group(examples: Examples, tmp_path: Path) -> None:
    rows = examples.snapshot.rows
    heat, chosen, other = rows["heat-1995"], rows["spirited-away-2001"], rows["ronin-1998"]
    model: Any = Drawing(f"{examples.item(chosen).title}, animation by Hayao Miyazaki")
    shown: Any = [
        (Pair("u", (heat,), (chosen, heat)), [5]),
        (Pair("v", (3,), (other,)), []),
        (Pair("w", (3,), (3,)), []),
    ]
    example = Sample([], "an example")
    figures = group_relative.train_by_policy_gradient(examples, shown, [example], model, tmp_path, quiet)
    assert figures["scored"] == 2  # the last chose nothing new
    assert model.samples.pop() == replace(example, weight=group_relative.EXAMPLE_WEIGHT)
    finds, nothing = (json.dumps({"queries": [query]})[len(reward.PREFIX) :] for query in model.lists[::-1])
    for pair, others in shown[:2]:
        prompt = examples.prompt(pair, others, "queries")
        group = [sample for sample in model.samples if sample.messages == prompt]
        assert len(group) == group_relative.GROUP
        assert sum(sample.weight for sample in group) == pytest.approx(0)
        assert {(s.answer, s.prefix, s.complete) for s in group} == {
            (answer, reward.PREFIX, answer.endswith("}")) for answer in (finds, nothing, finds[:-2], "")
        }
        weight = {sample.answer: sample.weight for sample in group}
        assert weight[finds] == weight[finds[:-2]] >= weight[nothing] >= weight[""] <= 0
        if pair.user == "u":
            assert weight[finds] - weight[""] == 2.0  # it ranks first, and the history's vectors do not retrieve it
    assert group_relative.train_by_policy_gradient(examples, shown[2:], [example], model, tmp_path, quiet) == {
        "scored": 0
    }


def test_policy_gradient_runs_on_a_gpu_and_rejection_on_a_cpu(examples: Examples, tmp_path: Path) -> None:
    drawn = draw_pairs(examples, 40, seed=0)
    model: Any = Drawing("a heist film")
    figures = queries.train_queries(examples, *map(list, zip(*drawn, strict=True)), False, model, tmp_path, quiet)
    assert figures["rounds"] == group_relative.ROUNDS and "winners" not in figures
    model.on_gpu = False
    figures = queries.train_queries(examples, *map(list, zip(*drawn, strict=True)), False, model, tmp_path, quiet)
    assert "rounds" not in figures and figures["winners"] <= figures["scored"]


@pytest.mark.slow
def test_policy_gradient_raises_the_reward_and_depends_on_the_seed_alone_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "POLICY_RATE", 1e-3)
    monkeypatch.setattr(checkpoint, "SAVED_EVERY", 0.0)
    prompts = [[{"role": "user", "content": "Name kinds of films."}]] * 8

    def reinforced(name: str, progress: Any) -> tuple[list[float], str, list[int]]:
        own, turns = Lora(find_weights(), 0), []

        def draw(turn: int) -> tuple[list[Sample], float]:
            turns.append(turn)
            texts = own.generate(prompts, reward.PREFIX, 20, 1.0, "", quiet, 1 + turn, 1.0)
            commas = np.array([text.count(",") for text in texts], dtype=np.float64)
            ahead = commas - commas.mean()
            learned = [
                Sample(m, text.removeprefix(reward.PREFIX), float(a), reward.PREFIX, False)
                for m, text, a in zip(prompts, texts, ahead, strict=True)
            ]
            return learned, commas.mean()

        return own.reinforce(8, draw, "commas", tmp_path / name / "kept.pt", progress), own.state_hash, turns

    earned, learned, turns = reinforced("whole", quiet)
    assert turns == list(range(8))
    assert np.mean(earned[-3:]) > np.mean(earned[:3]) + 0.5
    with pytest.raises(Killed):
        reinforced("killed", killed_after(5))
    assert reinforced("killed", quiet) == (earned, learned, [5, 6, 7])


def test_queries_adapter_pays_only_if_it_beats_the_search_without_a_model(examples: Examples) -> None:
    cases = [Case(f"u{n}", (), (examples.snapshot.ids[n],)) for n in range(20)]
    found, nothing = [[n] for n in range(20)], [[30] for _ in range(20)]
    lists = {"queries": found, "untrained": nothing, "without model": nothing}

    def paid(lists: dict[str, Any]) -> bool:
        pairs = [("queries", "untrained"), ("queries", "without model")]
        decisive = [(*pair, "recall@50") for pair in pairs]
        return Verdict.of(cases, lists, examples.snapshot.ids, pairs, decisive).paid

    assert paid(lists)
    assert not paid(lists | {"without model": found})


def test_training_on_too_few_events_is_refused(examples: Examples, tmp_path: Path) -> None:
    cases = load_cases(FILMS, "valid")
    few = type(cases)(cases.dataset, "valid", cases.cases, cases.events[:100])
    with pytest.raises(EvalError, match=r"training needs 200; add events"):
        pairs(few, examples.snapshot, 100, seed=0)


@pytest.mark.slow
def test_commands_train_judge_and_save_an_adapter(films: Path) -> None:
    few = ("--store", films, "--samples", "16", "--cases", "1")
    row = read_json(evoke("train", "queries", FILMS, *few, "--anyway", "--json"))
    adapter = Adapters.load(films).adapters["queries"]
    assert row["adapter"] == adapter.name
    assert row["on"] and adapter.on  # by --anyway: one case shows no gain
    assert not row["evidence"]["verdict"]["paid"]
    arms = row["evidence"]["verdict"]["arms"]
    assert {"queries", "queries, untrained", "queries, without model", "dense", "base"} <= arms.keys()
    rewritten = row["rewritten"][0]
    with Catalog.open(films) as catalog:
        assert set(rewritten["history"]) <= set(catalog.snapshot().titles)
    assert not (films / "trained" / "queries.unfinished").exists()
    few = ("--store", films, "--samples", "4", "--cases", "1")
    table = evoke("train", "rank", FILMS, *few)
    assert "as fused" in table.stdout
    assert re.search(r"evoke-rank-\w+: it stays off", table.stdout)
    assert not Adapters.load(films).adapters["rank"].on
    assert read_json(evoke("train", "rank", FILMS, *few, "--anyway", "--json"))["stays"] is None
    on = Adapters.load(films).adapters["rank"]
    table = evoke("train", "rank", FILMS, *few)
    assert re.search(rf"evoke-rank-\w+: it stays off: no significant gain; {on.name} stays on", table.stdout)
    assert Adapters.load(films).adapters["rank"] == on
    parts = read_json(evoke("forget", "--store", films, "--user", "mara", "--json"))["trained"]
    assert {"queries adapter", "rank adapter"} <= set(parts)
    # An adapter that is on is used, and the trace says so.
    found = read_json(evoke("recommend", "--store", films, "--user", "tomasz", "--json"))
    stage = next(stage for stage in found["trace"]["stages"] if stage["name"] == "profile")
    assert stage["degraded"] is None
    assert "trained adapter" in stage["notes"]


def test_two_trainings_of_one_task_do_not_run_at_once(films: Path) -> None:
    with exclusive_lock(films, "queries", "training queries for"):
        done = evoke("train", "queries", FILMS, "--store", films)
    assert done.returncode == 1
    assert re.search(r"another process \(pid \d+\) is training queries for .*; wait until it is done", done.stderr)


def test_tuning_is_refused_while_the_retriever_is_trained(films: Path) -> None:
    with exclusive_lock(films, "tuning", "training the retriever of"):
        for words in (["tune", FILMS, "--no-model"], ["tune", FILMS, "--prompts"], ["train", "retriever", FILMS]):
            done = evoke(*words, "--store", films, EVOKE_BASE_URL="http://127.0.0.1:9/v1")
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1].endswith("wait until it is done")
            assert re.search(r"another process \(pid \d+\) is training the retriever of ", done.stderr)


def test_unfinished_training_is_discarded_when_a_user_is_deleted(tmp_path: Path) -> None:
    kept = tmp_path / "trained" / "queries.unfinished"
    with checkpoint.unfinished(kept) as check:
        check()
        (kept / "batches.pt").touch()
    assert not kept.exists()
    with pytest.raises(Killed), checkpoint.unfinished(kept):
        (kept / "batches.pt").touch()
        raise Killed
    with pytest.raises(Killed), checkpoint.unfinished(kept):
        assert (kept / "batches.pt").is_file()  # the next run continues from it
        raise Killed
    for ends_by_itself in (True, False):
        with pytest.raises(EvalError, match="a user was deleted during this run"), checkpoint.unfinished(kept) as check:
            drop_derived(tmp_path)
            if ends_by_itself:
                (kept / "adapter.json").write_text("the folder does not exist")
            kept.mkdir()
            (kept / "batches.pt").touch()
            check()
        assert not kept.exists()
    with pytest.raises(Killed), checkpoint.unfinished(kept):
        drop_derived(tmp_path)
        kept.mkdir()
        (kept / "batches.pt").touch()
        raise Killed
    with checkpoint.unfinished(kept):
        assert not (kept / "batches.pt").exists()


def test_former_adapter_stays_on_if_judged_on_the_same_data_and_no_user_was_deleted(films: Path) -> None:
    seen = hash_tuning_data(FILMS)
    assert adapters._former_adapter(films, "queries", seen) is None
    former = record_adapter("queries", films, evidence={"on": "valid", "seen": seen})
    stays = adapters._former_adapter(films, "queries", seen)
    assert stays and stays.name == former.name
    assert adapters._former_adapter(films, "queries", "other data") is None
    drop_derived(films)
    assert adapters._former_adapter(films, "queries", seen) is None
    assert Adapters.load(films).adapter("queries")  # used until another one replaces it


def test_model_that_is_not_a_gguf_file_is_refused_before_training(films: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(64))
    done = evoke("train", "queries", FILMS, "--store", films, EVOKE_MODEL=str(tmp_path / "model.safetensors"))
    assert done.returncode == 1
    assert "model.safetensors is not a GGUF file; set EVOKE_MODEL to one" in done.stderr
    assert "Traceback" not in done.stderr


def test_file_instead_of_a_dataset_folder_is_refused_in_one_line(films: Path) -> None:
    done = evoke("train", "queries", FILMS / "items.jsonl", "--store", films)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
