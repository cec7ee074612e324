"""Training the language model: resumable, the same by seed, rewarded for what it finds, refused where there is too little."""

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
from agent.llm.adapters import WEIGHTS, Trained
from agent.llm.weights import file_hash, find_weights
from agent.profile.fallback import Mix
from agent.profile.interests import SEEN
from eval.comparison.llm_cache import quiet
from eval.data.cases import Case
from eval.data.leakage import seen_hash
from eval.data.read_cases import load_cases
from eval.errors import EvalError
from eval.fitting.sequences import Pair, pairs
from eval.training import adapters, checkpoint, queries, reranker, reward
from eval.training import lora as lora_module
from eval.training.chunked_loss import compared
from eval.training.examples import SPELLED, Examples, chosen_next, near
from eval.training.lora import Lora, Sample
from eval.training.verdict import Verdict, spread
from eval.tuning.tune import validation_cases
from prompts import Prompts
from store import Catalog
from store.paths import alone
from tests.helpers.recommending import FILMS
from tests.test_adapters import recorded
from tests.test_cli import printed


def evoke(*words: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """The whole command, on the embedded model."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EVOKE_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "eval.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment | {"EVOKE_DEADLINE": "400"} | variables,
        timeout=900,
    )


class Killed(Exception):
    pass


def dying(after: int) -> Callable[[str], Any]:
    """Progress that ends the process's work after so many steps."""

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
    return [examples.example(pair, brought, "queries") for pair, brought in brought_to(examples, n, seed=0)]


def brought_to(examples: Examples, n: int, seed: int) -> list[tuple[Pair, list[int]]]:
    """Pairs, each with what others chose next."""
    cases = load_cases(FILMS, "valid")
    drawn = pairs(cases, examples.snapshot, n, seed)
    return list(zip(drawn, chosen_next(cases, examples.catalog, drawn), strict=True))


def test_the_loss_a_few_rows_at_a_time_is_the_loss_of_all() -> None:
    torch.manual_seed(0)
    hidden, words = torch.randn(300, 8, requires_grad=True), torch.randn(50, 8)
    right, counts = torch.randint(0, 50, (300,)), torch.rand(300)
    loss, gradient = compared(hidden.detach(), words, right, counts)
    whole = (cross_entropy(hidden @ words.T, right, reduction="none") * counts).sum()
    whole.backward()
    assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
    assert torch.allclose(gradient, hidden.grad, atol=1e-5)


@pytest.mark.slow
def test_what_is_learned_is_the_same_by_seed_and_after_a_kill(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "BATCH", 2)
    monkeypatch.setattr(checkpoint, "SAVED_EVERY", 0.0)
    some = samples(examples, 8)
    hashes, losses, learned = [], [], []
    for name, killed in (("whole", False), ("killed", True)):
        if killed:
            with pytest.raises(Killed):
                Lora(find_weights(), 0).learn(some, 1, tmp_path / name / "kept.pt", "steps", dying(2))
        own = Lora(find_weights(), 0)
        fresh = own.learned
        losses.append(own.learn(some, 1, tmp_path / name / "kept.pt", "steps", quiet))
        own.save(tmp_path / name)
        hashes.append(file_hash(tmp_path / name / WEIGHTS))
        learned.append(own.learned)
    assert hashes[0] == hashes[1]
    assert losses[0] == losses[1]
    assert fresh != learned[0] == learned[1]
    kept = own.learn(some, 1, tmp_path / "killed" / "kept.pt", "steps", dying(0))  # all is done: not a step more
    assert kept == losses[1]
    monkeypatch.setattr(lora_module, "HELD", 1)  # a row at a time
    apart = Lora(find_weights(), 0).learn(some, 1, tmp_path / "apart" / "kept.pt", "steps", quiet)
    assert apart == pytest.approx(losses[0], rel=0.02)


def test_pairs_come_from_before_the_cut_and_from_all_users_alike(examples: Examples) -> None:
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


def test_a_training_is_judged_by_as_many_users_as_can_be() -> None:
    cases = validation_cases(FILMS)
    users = cases.users
    few = spread(cases, users - 3, 0)
    assert len({cases.cases[row].user for row in few}) == len(few) == users - 3
    assert sorted(spread(cases, 10_000, 0)) == list(range(len(cases)))
    assert spread(cases, 5, 0) == few[:5] != spread(cases, 5, 1)


def test_examples_are_told_in_the_catalogs_words_and_never_repeat_the_history(examples: Examples) -> None:
    for pair, brought in brought_to(examples, 30, seed=1):
        told = json.loads(examples.example(pair, brought, "queries").answer)["queries"]
        named = json.loads(examples.example(pair, brought, "named").answer)["named"]
        old = {examples.described(row) for row in pair.history}
        assert not old & set(told)
        assert all(len(query) <= TITLE for query in told)
        assert sum(map(len, told)) <= SPELLED
        assert {title["title"] for title in named} <= set(examples.snapshot.titles)
        lines = examples.asked(pair, brought, "queries")[1]["content"].splitlines()
        shown = [json.loads(line) for line in lines if line.startswith('"')]
        known = [examples.described(row) for row in dict.fromkeys(reversed(pair.history))][:SEEN]
        assert shown == known + [examples.described(row) for row in brought]
        assert not brought or set(told) <= set(shown[len(known) :])


def test_what_this_person_chose_comes_first_of_what_others_chose(examples: Examples) -> None:
    pair = Pair("u", (0, 1), (1, 50, 7))
    assert examples.first_chosen(pair, [3, 7, 50, 9]) == [50, 7, 3, 9]
    assert examples.first_chosen(pair, []) == [50, 7]


@pytest.mark.parametrize("brings", [near, chosen_next])
def test_what_is_brought_for_a_pair_was_fitted_on_other_people(examples: Examples, brings: Any) -> None:
    cases = load_cases(FILMS, "valid")
    drawn = pairs(cases, examples.snapshot, 40, seed=0)
    brought = brings(cases, examples.catalog, drawn)
    own = drawn[0].user
    others = [event for event in cases.events if event.user != own]
    changed = [
        replace(event, item=others[at % len(others)].item) for at, event in enumerate(cases.events) if event.user == own
    ]
    again = brings(replace(cases, events=(*others, *changed)), examples.catalog, drawn)
    assert [own for own, pair in zip(brought, drawn, strict=True) if pair.user == own] == [
        own for own, pair in zip(again, drawn, strict=True) if pair.user == own
    ]
    assert brought != again


def test_searches_copy_the_history_where_that_finds_more(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    most = rng.random(300)
    said = {mix: most - 0.1 * rng.random(300) for mix in queries.MIXES}
    said |= {
        Mix(0, 0): most,
        Mix(4, 0): most - 0.002 + np.tile([0.1, -0.1], 150),
        Mix(4, 3): said[Mix(4, 3)] - 0.1,
    }
    monkeypatch.setattr(queries, "_recall", lambda *_: said)
    assert queries.best_mix(examples, [], [], True)[0] == Mix(4, 0)


def test_what_joins_the_models_searches_is_found_by_the_retriever(examples: Examples) -> None:
    drawn = brought_to(examples, 12, seed=0)
    mix, recall = queries.best_mix(examples, *map(list, zip(*drawn, strict=True)), repeats=False)
    assert mix in queries.MIXES and len(recall) == len(queries.MIXES)
    assert max(recall.values()) > min(recall.values()) >= 0


def test_what_may_be_chosen_again_is_ranked_with_the_rest(examples: Examples) -> None:
    pair = Pair("u", (0, 1, 2), (1, 50))
    brought = list(range(40))
    new, again = (reranker.samples(examples, [pair], [brought], repeats, seed=0)[0] for repeats in (False, True))
    titles = [examples.item(row).title for row in range(51)]
    for sample, right in ((new, 50), (again, 1)):
        window = sample.messages[-1]["content"].partition("Task:")[2]
        assert f'\n{sample.answer}. "{titles[right]}' in window
    shown = new.messages[-1]["content"].partition("Task:")[2]
    assert not any(f'"{titles[row]}' in shown for row in pair.history)


class Scripted:
    """Stands in for a model that writes the same two searches for everyone."""

    seed, learned = 0, ""

    def __init__(self, found: str) -> None:
        self.found = found

    def write(self, asked: Sequence[Any], *_: Any) -> list[str]:
        return [json.dumps({"queries": ["a film about nothing at all", self.found]}) for _ in asked]


def test_a_search_that_finds_what_was_chosen_is_what_is_learned(examples: Examples, tmp_path: Path) -> None:
    rows = examples.snapshot.rows
    history, chosen = rows["heat-1995"], rows["spirited-away-2001"]
    pair = Pair("u", (history,), (chosen,))
    query = f"{examples.item(chosen).title}, animation by Hayao Miyazaki"
    won, told = reward.winners(examples, [(pair, [5])], Scripted(query), tmp_path, quiet)  # type: ignore[arg-type]
    assert json.loads(won[0].answer)["queries"][0] == query
    assert won[0].weight == 2.0  # the history's own vector does not find it
    assert told["reward"]["mean"] == 2.0
    assert won[0].messages == examples.asked(pair, [5], "queries")


class Drawing:
    """Stands in for a model on a GPU that draws, of every four lists, one that finds, one that does not, one that broke off and one
    that is none; it keeps what it is to learn from."""

    seed, learned, on_gpu = 0, "", True

    def __init__(self, found: str) -> None:
        self.lists = ["a film about nothing at all", found]
        self.taught: list[Sample] = []

    def learn(self, *_: Any) -> float:
        return 0.0

    def write(self, asked: Sequence[Any], *_: Any) -> list[str]:
        whole = [json.dumps({"queries": [query]}) for query in self.lists]
        return [[*whole, whole[1][:-2], reward.BEGUN][at % 4] for at in range(len(asked))]

    def reinforce(self, rounds: int, drawn: Callable[[int], tuple[list[Sample], float]], *_: Any) -> list[float]:
        samples, mean = drawn(0)
        self.taught += samples
        return [mean] * rounds


def test_a_list_becomes_likelier_by_what_it_finds_more_than_others(examples: Examples, tmp_path: Path) -> None:
    rows = examples.snapshot.rows
    heat, chosen, other = rows["heat-1995"], rows["spirited-away-2001"], rows["ronin-1998"]
    model: Any = Drawing(f"{examples.item(chosen).title}, animation by Hayao Miyazaki")
    shown: Any = [
        (Pair("u", (heat,), (chosen, heat)), [5]),
        (Pair("v", (3,), (other,)), []),
        (Pair("w", (3,), (3,)), []),
    ]
    example = Sample([], "an example")
    told = reward.by_policy(examples, shown, [example], model, tmp_path, quiet)
    assert told["scored"] == 2  # the last chose nothing new
    assert model.taught.pop() == replace(example, weight=reward.EXAMPLE)
    finds, nothing = (json.dumps({"queries": [query]})[len(reward.BEGUN) :] for query in model.lists[::-1])
    for pair, others in shown[:2]:
        asked = examples.asked(pair, others, "queries")
        group = [sample for sample in model.taught if sample.messages == asked]
        assert len(group) == reward.GROUP
        assert sum(sample.weight for sample in group) == pytest.approx(0)
        assert {(s.answer, s.begun, s.ended) for s in group} == {
            (answer, reward.BEGUN, answer.endswith("}")) for answer in (finds, nothing, finds[:-2], "")
        }
        weight = {sample.answer: sample.weight for sample in group}
        assert weight[finds] == weight[finds[:-2]] >= weight[nothing] >= weight[""] <= 0
        if pair.user == "u":
            assert weight[finds] - weight[""] == 2.0  # found first, and by the history's own vectors not at all
    assert reward.by_policy(examples, shown[2:], [example], model, tmp_path, quiet) == {"scored": 0}


def test_only_a_gpu_draws_enough_for_a_policy(examples: Examples, tmp_path: Path) -> None:
    drawn = brought_to(examples, 40, seed=0)
    model: Any = Drawing("a heist film")
    told = queries.teach(examples, *map(list, zip(*drawn, strict=True)), False, model, tmp_path, quiet)
    assert told["rounds"] == reward.ROUNDS and "winners" not in told
    model.on_gpu = False
    told = queries.teach(examples, *map(list, zip(*drawn, strict=True)), False, model, tmp_path, quiet)
    assert "rounds" not in told and told["winners"] <= told["scored"]


@pytest.mark.slow
def test_what_is_rewarded_is_written_more_often_the_same_by_seed_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "POLICY_RATE", 1e-3)
    monkeypatch.setattr(checkpoint, "SAVED_EVERY", 0.0)
    asked = [[{"role": "user", "content": "Name kinds of films."}]] * 8

    def reinforced(name: str, progress: Any) -> tuple[list[float], str, list[int]]:
        own, turns = Lora(find_weights(), 0), []

        def drawn(turn: int) -> tuple[list[Sample], float]:
            turns.append(turn)
            texts = own.write(asked, reward.BEGUN, 20, 1.0, "", quiet, 1 + turn, 1.0)
            commas = np.array([text.count(",") for text in texts], dtype=np.float64)
            ahead = commas - commas.mean()
            learned = [
                Sample(m, text.removeprefix(reward.BEGUN), float(a), reward.BEGUN, False)
                for m, text, a in zip(asked, texts, ahead, strict=True)
            ]
            return learned, commas.mean()

        return own.reinforce(8, drawn, "commas", tmp_path / name / "kept.pt", progress), own.learned, turns

    earned, learned, turns = reinforced("whole", quiet)
    assert turns == list(range(8))
    assert np.mean(earned[-3:]) > np.mean(earned[:3]) + 0.5
    with pytest.raises(Killed):
        reinforced("killed", dying(5))
    assert reinforced("killed", quiet) == (earned, learned, [5, 6, 7])


def test_searches_pay_only_where_counting_alone_finds_less(examples: Examples) -> None:
    cases = [Case(f"u{n}", (), (examples.snapshot.ids[n],)) for n in range(20)]
    found, nothing = [[n] for n in range(20)], [[30] for _ in range(20)]
    lists = {"queries": found, "untrained": nothing, "unsaid": nothing}

    def paid(lists: dict[str, Any]) -> bool:
        pairs = [("queries", "untrained"), ("queries", "unsaid")]
        decisive = [(*pair, "recall@50") for pair in pairs]
        return Verdict.of(cases, lists, examples.snapshot.ids, pairs, decisive).paid

    assert paid(lists)
    assert not paid(lists | {"unsaid": found})


def test_too_little_to_learn_from_is_refused(examples: Examples, tmp_path: Path) -> None:
    cases = load_cases(FILMS, "valid")
    few = type(cases)(cases.dataset, "valid", cases.cases, cases.events[:100])
    with pytest.raises(EvalError, match=r"training needs 200; add events"):
        pairs(few, examples.snapshot, 100, seed=0)


@pytest.mark.slow
def test_the_commands_teach_judge_and_keep_an_adapter(films: Path) -> None:
    few = ("--store", films, "--samples", "16", "--cases", "1")
    row = printed(evoke("train", "queries", FILMS, *few, "--anyway", "--json"))
    adapter = Trained.load(films).adapters["queries"]
    assert row["adapter"] == adapter.name
    assert row["on"] and adapter.on  # as was asked for: one case shows no gain
    assert not row["evidence"]["verdict"]["paid"]
    arms = row["evidence"]["verdict"]["arms"]
    assert {"queries", "queries, untrained", "queries, unsaid", "dense", "base"} <= arms.keys()
    rewritten = row["rewritten"][0]
    with Catalog.open(films) as catalog:
        assert set(rewritten["history"]) <= set(catalog.snapshot().titles)
    assert not (films / "trained" / "queries.unfinished").exists()
    few = ("--store", films, "--samples", "4", "--cases", "1")
    table = evoke("train", "rank", FILMS, *few)
    assert "as fused" in table.stdout
    assert re.search(r"evoke-rank-\w+: it stays off", table.stdout)
    assert not Trained.load(films).adapters["rank"].on
    assert printed(evoke("train", "rank", FILMS, *few, "--anyway", "--json"))["stays"] is None
    on = Trained.load(films).adapters["rank"]
    table = evoke("train", "rank", FILMS, *few)
    assert re.search(rf"evoke-rank-\w+: it stays off: no significant gain; {on.name} stays on", table.stdout)
    assert Trained.load(films).adapters["rank"] == on
    told = printed(evoke("forget", "--store", films, "--user", "mara", "--json"))["trained"]
    assert {"queries adapter", "rank adapter"} <= set(told)
    # One that is on is used: what its searches found says so in the trace.
    found = printed(evoke("recommend", "--store", films, "--user", "tomasz", "--json"))
    stage = next(stage for stage in found["trace"]["stages"] if stage["name"] == "interests")
    assert stage["degraded"] is None
    assert "trained adapter" in stage["notes"]


def test_two_trainings_of_one_task_are_kept_apart(films: Path) -> None:
    with alone(films, "queries", "training queries for"):
        told = evoke("train", "queries", FILMS, "--store", films)
    assert told.returncode == 1
    assert re.search(r"another process \(pid \d+\) is training queries for .*; wait until it is done", told.stderr)


def test_nothing_is_tuned_while_the_retriever_is_trained(films: Path) -> None:
    with alone(films, "tuning", "training the retriever of"):
        for words in (["tune", FILMS, "--no-model"], ["tune", FILMS, "--prompts"], ["train", "retriever", FILMS]):
            told = evoke(*words, "--store", films, EVOKE_BASE_URL="http://127.0.0.1:9/v1")
            assert told.returncode == 1
            assert told.stderr.splitlines()[-1].endswith("wait until it is done")
            assert re.search(r"another process \(pid \d+\) is training the retriever of ", told.stderr)


def test_what_is_learned_from_somebody_who_is_forgotten_meanwhile_is_gone(tmp_path: Path) -> None:
    kept = tmp_path / "trained" / "queries.unfinished"
    with checkpoint.unfinished(kept) as check:
        check()
        (kept / "batches.pt").touch()
    assert not kept.exists()
    with pytest.raises(Killed), checkpoint.unfinished(kept):
        (kept / "batches.pt").touch()
        raise Killed
    with pytest.raises(Killed), checkpoint.unfinished(kept):
        assert (kept / "batches.pt").is_file()  # gone on from
        raise Killed
    for ends_by_itself in (True, False):
        with pytest.raises(EvalError, match="somebody was forgotten meanwhile"), checkpoint.unfinished(kept) as check:
            drop_derived(tmp_path)
            if ends_by_itself:
                (kept / "adapter.json").write_text("the folder is not there")
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


def test_an_adapter_stays_on_while_what_judged_it_holds(films: Path) -> None:
    seen = seen_hash(FILMS)
    assert adapters._good_still(films, "queries", seen) is None
    former = recorded("queries", films, evidence={"on": "valid", "seen": seen})
    stays = adapters._good_still(films, "queries", seen)
    assert stays and stays.name == former.name
    assert adapters._good_still(films, "queries", "other data") is None
    drop_derived(films)
    assert adapters._good_still(films, "queries", seen) is None
    assert Trained.load(films).adapter("queries")  # used until another takes its place


def test_what_is_no_gguf_file_is_refused_before_anything_is_learned(films: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(64))
    told = evoke("train", "queries", FILMS, "--store", films, EVOKE_MODEL=str(tmp_path / "model.safetensors"))
    assert told.returncode == 1
    assert "model.safetensors is no GGUF file; set EVOKE_MODEL to one" in told.stderr
    assert "Traceback" not in told.stderr


def test_wrong_usage_is_refused_in_one_line(films: Path) -> None:
    done = evoke("train", "queries", FILMS / "items.jsonl", "--store", films)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
