"""Training the retriever: determinism, resuming, the verdict, and a store that is complete at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import Recommender
from agent.ranking.features import candidates
from agent.ranking.tuned import Tuned
from agent.retrieval.signals import CHANNEL_OF
from eval import compare
from eval.comparison.bench import Bench
from eval.data.leakage import hash_tuning_data, open_measured_catalog
from eval.errors import EvalError
from eval.fitting.sequences import FOLDS, fold_of, pairs, sequences
from eval.fitting.signals import fit, turns_of
from eval.progress import quiet
from eval.training import checkpoint, compare_encoders, retriever
from eval.training.contrastive import Encoder, Material
from eval.training.verdict import Verdict
from eval.tuning.tune import validation_cases
from store import Catalog, History, paths
from store.content import Content
from store.embedder import Embedder
from store.errors import StoreError
from store.index import index
from store.reembed import index_with_encoder, switch_encoder
from tests.helpers.adapters import record_adapter
from tests.helpers.encoders import NOBODY, add_noise, encode_by_hash, few_steps, read_model_and_neighbours
from tests.helpers.recommending import FILMS, modelled


@pytest.fixture(autouse=True)
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(tmp_path, monkeypatch)


def make_material(store: Path, n: int = 60) -> Material:
    """Return training data with a few pairs of the films."""
    cases = validation_cases(FILMS)
    with Catalog.open(store, create=False) as catalog:
        snapshot = catalog.snapshot()
        drawn = [pair for pair in pairs(cases, snapshot, n, 0) if pair.chosen[0] not in pair.history]
        return Material(drawn, sequences(cases, snapshot), np.asarray(snapshot.vectors))


def train_encoder(given: Material, kept: Path, progress: Any = quiet) -> dict[str, np.ndarray]:
    """Train an encoder on this; return its weights."""
    made = Encoder(Embedder(), seed=3)
    made.learn(given, kept, progress)
    return {name: value.numpy() for name, value in made.model.state_dict().items()}


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace encoding by `encode_by_hash`."""
    monkeypatch.setattr(Embedder, "_encode", encode_by_hash)
    monkeypatch.setattr(Embedder, "truncated", lambda *_: 0)


def make_other_model(folder: Path) -> Path:
    """Return the folder of a model with other weights, as training writes it."""
    copy = shutil.copytree(Embedder().folder, folder / "retriever-0a1b2c3d")
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    return copy


def test_training_depends_on_the_seed_alone_also_after_a_kill(
    films_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SAVED_EVERY", 0.0)
    given = make_material(films_store)
    whole = train_encoder(given, tmp_path / "whole.pt")
    start = Encoder(Embedder(), seed=3).model.state_dict()
    assert any(not np.array_equal(whole[name], value.numpy()) for name, value in start.items())

    class Killed(Exception):
        pass

    steps: list[int] = []

    class Three:
        def __init__(self, _: str) -> None:
            pass

        def __enter__(self) -> Any:
            return self.advance

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, done: int, total: int) -> None:
            steps.append(done)
            if done == 3:
                raise Killed

    with pytest.raises(Killed):
        train_encoder(given, tmp_path / "cut.pt", Three)
    again = train_encoder(given, tmp_path / "cut.pt", Three)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert whole.keys() == again.keys()
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_each_fold_uses_vectors_trained_without_its_users(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = Verdict(10, 5, {"dense": {"recall@50": 0.1}}, [], paid=True)
    monkeypatch.setattr(Verdict, "of", lambda *_: paid)
    monkeypatch.setattr(retriever, "compare_title_search", lambda *_: ({"present": 0.8, "trained": 0.8}, False))
    cases = validation_cases(FILMS)
    with Catalog.open(films, create=False) as catalog:
        snapshot = catalog.snapshot()
        drawn = [pair for pair in pairs(cases, snapshot, 300, 0) if pair.chosen[0] not in pair.history]
        given = Material(drawn, sequences(cases, snapshot), np.asarray(snapshot.vectors))
    fold_encoder = Encoder(Embedder(), seed=0)
    others = replace(given, pairs=[pair for pair in drawn if fold_of(pair.user) != 1])
    fold_encoder.learn(others, tmp_path / "fold.pt", quiet, share=retriever.FOLD_STEPS)
    retriever.train(FILMS, store=films, samples=300)
    with Catalog.open(films, create=False) as catalog:
        check_untrained_vectors(catalog, given.vectors)
    with open_measured_catalog(films, "valid") as judged:
        check_untrained_vectors(judged, given.vectors)
        turns = turns_of(judged)
        assert turns is not None and len(turns) == FOLDS
        turned_back = fit(cases, judged, turns[1]).snapshot.vectors
        own = judged.snapshot().vectors
        again = Encoder(judged.embedder, seed=0)
    np.testing.assert_allclose(turned_back, fold_encoder.transform(given.vectors), atol=1e-4)
    assert not np.allclose(turned_back, own, atol=1e-3)
    # In a second training the encoder of a fold continues from the former encoder of that fold.
    again.learn(replace(others, vectors=turned_back), tmp_path / "again.pt", quiet, share=retriever.FOLD_STEPS)
    retriever.train(FILMS, store=films, samples=300)
    with open_measured_catalog(films, "valid") as judged:
        turns = turns_of(judged)
        assert turns is not None
        turned_twice = fit(cases, judged, turns[1]).snapshot.vectors
        check_untrained_vectors(judged, given.vectors)
    np.testing.assert_allclose(turned_twice, again.transform(turned_back), atol=1e-4)


def check_untrained_vectors(catalog: Catalog, before: np.ndarray) -> None:
    """Check that the vectors before any training are kept and used for item similarity, and that histories use the trained ones."""
    snapshot = catalog.snapshot()
    assert snapshot.untrained is not None
    np.testing.assert_allclose(snapshot.untrained, before, atol=1e-4)
    assert not np.allclose(snapshot.vectors, before, atol=1e-3)
    likeness = before @ before.T
    np.fill_diagonal(likeness, 0)
    near = Content.of(catalog, snapshot).near
    assert np.mean(likeness.argmax(axis=1) == near.argmax(axis=1).A1) > 0.98
    signals = fit(validation_cases(FILMS), catalog)
    read = signals.scores([np.array([3, 8])])
    assert list(read) == list(CHANNEL_OF)
    assert np.argmax(read["last_untrained"][0]) == np.argmax(
        np.where(np.isin(np.arange(len(before)), [3, 8]), 0, before @ before[8])
    )
    names = candidates(signals, [np.array([3, 8])], np.ones((1, len(before)), dtype=bool)).names
    assert {"last", "last_untrained", "cosine last", "cosine untrained last"} <= set(names)


def test_training_on_too_few_events_is_refused(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.fitting.sequences.LEAST", 1_000_000)
    with pytest.raises(EvalError, match=r"training needs 1000000; add events"):
        retriever.train(FILMS, store=films)
    assert not (films / "trained").exists()


def test_open_catalog_keeps_the_former_vectors(films: Path, tmp_path: Path, hashing: None) -> None:
    with Catalog.open(films) as catalog:
        vectors, ids = catalog.vectors(catalog.ids()[:1]), catalog.ids()
        before = catalog.query(vectors, 5)
        made = make_other_model(tmp_path)
        switch_encoder(films, made, index_with_encoder(films, made))
        assert catalog.query(vectors, 5) == before
        assert catalog.ids() == ids
        assert len(catalog.get(ids[:3])) == 3


def test_store_with_vectors_on_a_server_is_refused(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Catalog.open(films) as catalog:
        paths.update_store_json(films, {"chroma": "http://127.0.0.1:9"})
        with pytest.raises(EvalError, match="Chroma server"):
            retriever._check_replaceable(films, catalog)


def test_store_switches_to_the_new_model_at_once_and_can_be_moved(films: Path, tmp_path: Path, hashing: None) -> None:
    before = read_model_and_neighbours(films)
    made = make_other_model(tmp_path)
    facts = index_with_encoder(films, made)
    assert read_model_and_neighbours(films) == before
    switch_encoder(films, made, facts)
    assert not list(films.glob("chroma*"))
    moved = films.rename(tmp_path / "elsewhere")
    name, near = read_model_and_neighbours(moved)
    assert (name, near != before[1]) == ("retriever-0a1b2c3d", True)
    done = index(FILMS, moved)
    assert (done.items.added, done.items.updated, done.items.unchanged) == (0, 0, 343)
    assert read_model_and_neighbours(moved) == (name, near)
    with pytest.raises(
        StoreError, match=r"made with the embedding model retriever-0a1b2c3d.*remove the setting embedding_model"
    ):
        Catalog.open(moved, embedder=Embedder())
    with Catalog.open(moved) as catalog, History.open(moved) as history:
        rec: Any = Recommender(catalog, history, base_url=NOBODY, explain=False)
        assert rec._core.trained == ["retriever"]
        assert len(rec.recommend(history=catalog.ids()[:2], n=5).items) == 5
        rec.close()


KILLED = """
import os, sys
from pathlib import Path
from store import paths, reembed
from store.content import Content
from store.embedder import Embedder
from tests.helpers.encoders import encode_by_hash
Embedder._encode, Embedder.truncated = encode_by_hash, lambda *_: 0
store, made, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
die = lambda *_: os._exit(9)
facts = reembed.index_with_encoder(store, made, (lambda done, _: done > 256 and die()) if moment == "embedding" else None)
if moment == "before the switch":
    paths.update_store_json = die
if moment == "after the switch":
    sweep = reembed.remove_unused_encoders
    reembed.remove_unused_encoders = lambda store: die() if paths.trained_encoder(store) else sweep(store)
reembed.switch_encoder(store, made, facts)
"""


@pytest.mark.parametrize("moment", ["embedding", "before the switch", "after the switch"])
def test_store_killed_at_any_moment_is_unchanged_or_complete(
    films: Path, tmp_path: Path, hashing: None, moment: str
) -> None:
    before = read_model_and_neighbours(films)
    made = make_other_model(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, films, made, moment], capture_output=True, text=True, check=False
    )
    assert killed.returncode == 9, killed.stderr
    if moment == "after the switch":
        assert read_model_and_neighbours(films)[0] == made.name
        assert list(films.glob("chroma*"))
        index(FILMS, films)
        assert not list(films.glob("chroma*"))
        return
    assert read_model_and_neighbours(films) == before
    if moment == "before the switch":
        assert index(FILMS, films).items.unchanged == 343
        assert read_model_and_neighbours(films) == before
        made = make_other_model(tmp_path)
    counts: list[int] = []
    switch_encoder(films, made, index_with_encoder(films, made, lambda done, _: counts.append(done)))
    assert read_model_and_neighbours(films)[0] == made.name
    assert counts[0] == (256 if moment == "embedding" else 128)  # items embedded before the kill are not embedded again


@pytest.mark.parametrize("base_gains", [True, False])
def test_encoder_pays_only_if_everything_fused_finds_more(
    films_store: Path, monkeypatch: pytest.MonkeyPatch, base_gains: bool
) -> None:
    known = validation_cases(FILMS)
    with Catalog.open(films_store, create=False) as catalog:
        right = [list(case.targets) for case in known.cases]
        nothing: list[list[str]] = [[] for _ in right]
        found = iter([(right, right if base_gains else nothing), (nothing, nothing)])  # trained, then present
        monkeypatch.setattr(Bench, "rank", lambda *_: dict(zip(("dense", "base"), next(found), strict=True)))
        verdict = compare_encoders.compare_encoders(known, catalog, catalog, films_store, 0, lambda _: None, quiet)
    assert verdict.paid == base_gains
    assert verdict.arms["dense, trained"]["recall@50"] == 1
    assert {(test["a"], test["b"]) for test in verdict.comparisons} == {
        ("dense, trained", "dense"),
        ("base, trained", "base"),
    }


def test_encoder_that_pays_stays_off_if_title_search_is_worse(
    films: Path, hashing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "learn", add_noise)
    monkeypatch.setattr(Verdict, "of", lambda *_: Verdict(10, 5, {"dense": {"recall@50": 0.1}}, [], paid=True))
    monkeypatch.setattr(retriever, "compare_title_search", lambda *_: ({"present": 0.8, "trained": 0.2}, True))
    before = read_model_and_neighbours(films)
    done = retriever.train(FILMS, store=films, samples=300)
    outcome = done.pays, done.on, done.evidence["title search is worse"], read_model_and_neighbours(films)
    assert outcome == (
        False,
        False,
        True,
        before,
    )


@pytest.mark.parametrize(("paid", "anyway"), [(True, False), (False, False), (False, True)])
def test_encoder_is_put_into_use_only_if_it_pays_or_by_anyway(
    films: Path,
    hashing: None,
    monkeypatch: pytest.MonkeyPatch,
    model_server: Callable[..., Any],
    paid: bool,
    anyway: bool,
) -> None:
    monkeypatch.setattr(Encoder, "learn", add_noise)
    verdict = Verdict(10, 5, {"dense": {"recall@50": 0.1}}, [], paid)
    monkeypatch.setattr(Verdict, "of", lambda *_: verdict)
    monkeypatch.setattr(retriever, "compare_title_search", lambda *_: ({"present": 0.8, "trained": 0.8}, False))
    Tuned({"diversity": 0.1}, {}, True, {"on": "valid", "seen": "before"}).save(films)
    before = read_model_and_neighbours(films)
    done = retriever.train(FILMS, store=films, samples=300, anyway=anyway)
    assert (done.pays, done.on, done.as_json()["on"]) == (paid, paid or anyway, paid or anyway)
    assert not (films / "trained" / retriever.UNFINISHED).exists()
    tuned = Tuned.load(films)
    if not done.on:
        assert read_model_and_neighbours(films) == before
        assert tuned.learned
        assert not (films / "trained" / "retriever").exists()
        with pytest.raises(EvalError, match="no trained retriever in use to leave out; run `evoke train retriever`"):
            compare(FILMS, ["dense-retriever"], store=films, cases=5)
        return
    assert read_model_and_neighbours(films)[0] == done.name
    evidence = json.loads((paths.trained_encoder(films) / "evidence.json").read_text())  # type: ignore[operator]
    assert (evidence["pairs"], evidence["from"]) == (done.evidence["pairs"], "all-MiniLM-L6-v2")
    assert (tuned.learned, tuned.settings) == (False, {"diversity": 0.1})
    run = compare(FILMS, ["dense"], store=films, on="valid", cases=5)
    assert any(
        "the trained retriever may be optimistic: it was chosen on these very cases" in line for line in run.warnings
    )
    assert any("before the retriever was trained" in line for line in run.warnings)
    run = compare(FILMS, ["dense", "dense-retriever"], store=films, on="test")
    assert not any("the trained retriever" in line for line in run.warnings)
    assert run.arms["dense"]["mrr"] != run.arms["dense-retriever"]["mrr"]
    with Catalog.open(films / "measured" / "before", create=False) as former:
        assert former.embedder.fingerprint == Embedder().fingerprint
    server = model_server(modelled())
    with pytest.raises(EvalError, match="no trained adapter in use to leave out; run `evoke train queries`"):
        compare(FILMS, ["queries-training"], store=films, base_url=server.base_url, cases=5)
    adapter = record_adapter("queries", films, evidence={"on": "valid", "seen": hash_tuning_data(FILMS)})
    server.models.append(adapter.name)
    arms = ["queries", "queries-adapter", "queries-training"]
    run = compare(FILMS, arms, store=films, base_url=server.base_url, model=server.models[0], cases=5)
    assert [request["model"] for request in server.requests].count(adapter.name) == 2 * run.cases
    assert run.arms["queries-adapter"]["mrr"] != run.arms["queries-training"]["mrr"]


SMALL = """
from eval.training import contrastive, checkpoint
contrastive.BATCH, contrastive.STEPS, checkpoint.SAVED_EVERY = 32, 60, 0.0
from eval.cli import main
main()
"""


@pytest.mark.slow
def test_command_continues_after_a_kill_and_prints_the_result(films: Path) -> None:
    arguments = [sys.executable, "-c", SMALL, "train", "retriever", str(FILMS), "--store", str(films), "--json"]
    killed = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    assert killed.stderr is not None
    kept = films / "trained" / retriever.UNFINISHED / "encoder.pt"
    while killed.poll() is None and not kept.exists():
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert kept.exists()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["on"] == (paths.trained_encoder(films) is not None)
    assert set(row["evidence"]["verdict"]["arms"]) == {"dense, trained", "dense", "base, trained", "base"}
    assert set(row["evidence"]["title search"]) == {"present", "trained"}
    assert read_model_and_neighbours(films)[0] == (row["retriever"] if row["on"] else "all-MiniLM-L6-v2")
    assert not kept.parent.exists()
