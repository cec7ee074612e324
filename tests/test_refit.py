"""The retriever in force has learned from all that may be known in use; what was judged, and validation reads, has seen no event of
the validation period."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import Recommender
from agent.forgetting import drop_derived
from agent.ranking.tuned import Tuned
from eval import compare
from eval.data.dataset import read_data
from eval.data.leakage import load_trusted_tuning, open_measured_catalog
from eval.data.read_cases import Cases, load_cases
from eval.data.splits import label_events
from eval.errors import EvalError
from eval.fitting import cross_fitting
from eval.fitting.ablation import refitted
from eval.fitting.sequences import FOLDS
from eval.fitting.signals import fit
from eval.training import checkpoint, retriever
from eval.training.contrastive import Encoder, Material
from eval.training.verdict import Verdict
from eval.tuning import grid_search
from eval.tuning.tune import tune
from store import Catalog, History, Item, StoreError, paths
from store.embedder import Embedder
from store.index import index
from tests.helpers.encoders import NOBODY, add_noise, encode_by_hash, few_steps, read_model_and_neighbours
from tests.helpers.recommending import FILMS
from tests.test_tune import TINY


@pytest.fixture(autouse=True)
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of steps that always pay, no model is run, and no settings from outside."""
    few_steps(tmp_path, monkeypatch)
    monkeypatch.setattr(checkpoint, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(Embedder, "_encode", encode_by_hash)
    monkeypatch.setattr(Embedder, "truncated", lambda *_: 0)
    monkeypatch.setattr(Verdict, "of", lambda *_: Verdict(10, 5, {"dense": {"recall@50": 0.1}}, [], paid=True))
    monkeypatch.setattr(retriever, "compare_title_search", lambda *_: ({"present": 0.8, "trained": 0.8}, False))


@pytest.fixture
def trained(films: Path) -> Path:
    """A store after training on the films."""
    retriever.train(FILMS, store=films, samples=300)
    return films


def another_store(films_store: Path, to: Path) -> Path:
    return shutil.copytree(films_store, to)


def shifted(to: Path, part: str) -> Path:
    """The films' dataset, in which those who chose something in this part chose something else instead."""
    data = read_data(FILMS)
    there = [row for row, label in enumerate(label_events(data, "temporal")) if label == part]
    items = [event.item for event in data.events]
    for row, other in zip(there, [*there[7:], *there[:7]], strict=True):
        items[row] = data.events[other].item
    to.mkdir()
    shutil.copy(FILMS / "items.jsonl", to)
    with (to / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "rating", "timestamp"])
        rows.writerows([e.user, item, e.rating, e.timestamp] for e, item in zip(data.events, items, strict=True))
    return to


def given(to: Path, *parts: str) -> Path:
    """The films' cases of these parts as files, and the events before the last of them."""
    to.mkdir()
    shutil.copy(FILMS / "items.jsonl", to)
    for part in parts:
        cases = load_cases(FILMS, part)
        lines = [{"user": c.user, "history": c.history, "targets": c.targets} for c in cases.cases]
        (to / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (to / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "rating", "timestamp", "split"])
        rows.writerows([e.user, e.item, e.rating, e.timestamp, e.split] for e in cases.events)
    return to


def vectors(catalog: Catalog) -> np.ndarray:
    """All vectors, and the catalog closed."""
    with catalog:
        return catalog.vectors(catalog.ids())


@pytest.mark.slow
def test_validation_uses_an_encoder_trained_without_its_period_and_serving_one_trained_with_it(
    films_store: Path, tmp_path: Path
) -> None:
    read: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in ("as it is", "valid", "test"):
        store = another_store(films_store, tmp_path / f"store {name}")
        dataset = FILMS if name == "as it is" else shifted(tmp_path / name, name)
        done = retriever.train(dataset, store=store, samples=300)
        assert done.name == read_model_and_neighbours(store)[0]
        assert done.evidence["for use"]["pairs"] <= 300
        read[name] = vectors(open_measured_catalog(store, "valid")), vectors(open_measured_catalog(store, "test"))
        assert np.array_equal(read[name][1], vectors(Catalog.open(store)))
    judged, in_force = read["as it is"]
    assert not np.array_equal(judged, in_force)
    assert np.array_equal(read["valid"][0], judged)
    assert not np.array_equal(read["valid"][1], in_force)
    assert np.array_equal(read["test"][0], judged)
    assert np.array_equal(read["test"][1], in_force)


def test_everything_fitted_on_validation_cases_reads_the_vectors_of_the_judged_encoder(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, in_force = paths.validation_encoder(trained), paths.trained_encoder(trained)
    assert before is not None
    assert in_force is not None
    read: list[tuple[str, str]] = []

    def noted(cases: Cases, catalog: Catalog, *turn: Any) -> Any:
        read.append((cases.on, catalog.embedder.name))
        return fit(cases, catalog, *turn)

    monkeypatch.setattr("eval.fitting.signals.fit", noted)  # what `fit_sources` calls
    monkeypatch.setattr("eval.fitting.cross_fitting.fit", noted)
    monkeypatch.setattr(grid_search, "TREES", TINY)
    first = {arm: {name: values[:1] for name, values in own.items()} for arm, own in grid_search.PARAMETERS.items()}
    monkeypatch.setattr(grid_search, "PARAMETERS", first)
    monkeypatch.setattr(cross_fitting, "LESSONS", 100)
    monkeypatch.setattr(
        "eval.tuning.tune.channel_weights", lambda *_: ({}, {"ndcg@10": 0.0, "recall@100": 0.0})
    )  # so that fusion pays
    tune(FILMS, store=trained, minutes=0)
    # Fusion is judged by what saw nothing of the validation period, and learns once more, for use, by what is in force.
    assert read == [("valid", before.name)] * (1 + FOLDS) + [("test", in_force.name)] * FOLDS
    refitted(FILMS, Tuned.load(trained), trained, "dense")
    assert read[1 + 2 * FOLDS :] == [("test", in_force.name)] * FOLDS
    run = compare(FILMS, ["dense"], store=trained, on="valid", cases=5)
    assert any("as it was judged" in line for line in run.warnings)
    assert read[-1] == ("valid", before.name)
    run = compare(FILMS, ["dense"], store=trained, on="test", cases=5)
    assert not any("retriever" in line for line in run.warnings)
    assert read[-1] == ("test", in_force.name)
    assert not list(
        (before / "derived").glob("linear-*")
    )  # what is worked out of people's histories is the store's alone


def test_items_indexed_later_are_encoded_by_both_encoders(trained: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "more"
    shutil.copytree(FILMS, dataset)
    lines = (dataset / "items.jsonl").read_text().splitlines()
    gone = json.loads(lines[0])["id"]
    new = {"id": "new-2026", "title": "New", "text": "A film that is new."}
    (dataset / "items.jsonl").write_text("\n".join([*lines[1:], json.dumps(new)]) + "\n")
    index(dataset, trained, prune=True, on_error="skip")
    with Catalog.open(trained) as catalog, open_measured_catalog(trained, "valid") as before:
        assert catalog.ids() == before.ids() == before.snapshot().ids
        assert "new-2026" in before
        assert gone not in before
        assert not np.array_equal(catalog.vectors(["new-2026"]), before.vectors(["new-2026"]))


@pytest.mark.slow
def test_a_training_killed_in_its_second_part_continues_there(films_store: Path, films: Path, tmp_path: Path) -> None:
    whole = another_store(films_store, tmp_path / "whole")
    retriever.train(FILMS, store=whole, samples=300)
    steps: list[int] = []
    before = read_model_and_neighbours(films)
    with pytest.raises(Killed):
        retriever.train(FILMS, store=films, samples=300, progress=killing(steps, 9))
    assert (read_model_and_neighbours(films), steps) == (before, [1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert not (films / "trained" / "retriever").exists()
    retriever.train(FILMS, store=films, samples=300, progress=killing(steps, 99))
    assert steps[9:] == [4, 5, 6]
    assert read_model_and_neighbours(films) == read_model_and_neighbours(whole)
    assert paths.read_store_json(films)["judged"] == paths.read_store_json(whole)["judged"]


class Killed(Exception):
    pass


def killing(steps: list[int], last: int) -> Any:
    """Progress that notes the steps learned, and ends the work at the `last` of them."""

    class Advancing:
        def __init__(self, what: str) -> None:
            self.what = what

        def __enter__(self) -> Callable[[int, int], None]:
            return self.advance

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, done: int, _: int) -> None:
            if self.what == "steps learned":
                steps.append(done)
                if len(steps) == last:
                    raise Killed

    return Advancing


@pytest.mark.slow
def test_a_crash_before_the_switch_leaves_the_store_as_it_was_and_the_next_run_completes_it(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_model_and_neighbours(films)
    describe = paths.update_store_json

    def crashing(store: Path, facts: dict[str, Any]) -> None:
        if "judged" in facts:
            raise Killed
        describe(store, facts)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "update_store_json", crashing)
        with pytest.raises(Killed):
            retriever.train(FILMS, store=films, samples=300)
    assert read_model_and_neighbours(films) == before
    assert paths.validation_encoder(films) is None
    done = retriever.train(FILMS, store=films, samples=300)
    assert read_model_and_neighbours(films)[0] == done.name
    assert set(kept(films)) == {done.name, paths.read_store_json(films)["judged"]}


def test_items_written_during_training_get_vectors_of_their_own_texts(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Item] = []

    def learned(self: Encoder, *_: Any, **__: Any) -> float:
        if not written:
            with Catalog.open(films, create=False) as catalog:
                (first, *_) = catalog.items()
                written.extend([replace(first, text="a film about lamps"), replace(first, id="new", title="New")])
                catalog.upsert(written)
        return add_noise(self)

    monkeypatch.setattr(Encoder, "learn", learned)
    done = retriever.train(FILMS, store=films, samples=300)
    for store in filter(None, (films, paths.validation_encoder(films))):
        with Catalog.open(store, create=False) as catalog:
            own = catalog.embedder.encode_documents([item.document for item in written])
            np.testing.assert_allclose(catalog.vectors([item.id for item in written]), own, atol=1e-5)
    assert read_model_and_neighbours(films)[0] == done.name


def test_a_refused_switch_leaves_learned_fusion_on(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuned({"diversity": 0.1}, {}, True, {"on": "valid", "seen": "before"})
    tuned.save(films)
    before = read_model_and_neighbours(films)

    def meanwhile(*_: Any) -> tuple[dict[str, float], bool]:
        with Catalog.open(films, create=False) as catalog:
            (first, *_) = catalog.items()
            catalog.upsert([replace(first, id="new")])
        return {"present": 0.8, "trained": 0.8}, False

    # Learned for use from what is there by then, so that only what is written after that can be refused.
    monkeypatch.setattr(retriever, "compare_title_search", meanwhile)
    monkeypatch.setattr(Material, "same", lambda *_: True)
    with pytest.raises(
        StoreError, match="items were changed while the model was evaluated; run the same command again"
    ):
        retriever.train(FILMS, store=films, samples=300)
    assert Tuned.load(films) == tuned
    assert read_model_and_neighbours(films) == before


@pytest.mark.parametrize("at", [1, 3, 1 + FOLDS + 1, 1 + FOLDS + 3])
def test_a_user_forgotten_during_training_is_in_no_model_in_use(
    films: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before, learning = read_model_and_neighbours(films), Encoder.learn
    calls: list[int] = []

    def forgetting(self: Encoder, *given: Any, **more: Any) -> float:
        calls.append(1)
        if len(calls) == at:
            drop_derived(films)
        return learning(self, *given, **more)

    monkeypatch.setattr(Encoder, "learn", forgetting)
    with pytest.raises(EvalError, match="a user was deleted during this run"):
        retriever.train(FILMS, store=films, samples=300)
    assert len(calls) >= at
    assert read_model_and_neighbours(films) == before
    assert not (films / "trained" / retriever.UNFINISHED).exists()


def test_an_encoder_in_a_folder_is_named_by_the_setting_and_found_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = shutil.copytree(Embedder().folder, tmp_path / "our-encoder")
    monkeypatch.setenv("EVOKE_EMBEDDING_MODEL", str(encoder))
    store = tmp_path / "store"
    run = compare(FILMS, ["dense"], store=store, cases=5)
    assert paths.read_store_json(store)["model"] == "our-encoder"
    done = retriever.train(FILMS, store=store, samples=300)
    assert read_model_and_neighbours(store)[0] == done.name
    monkeypatch.delenv("EVOKE_EMBEDDING_MODEL")
    after = compare(FILMS, ["dense", "dense-retriever"], store=store, cases=5)
    before, without, trained = run.arms["dense"], after.arms["dense-retriever"], after.arms["dense"]
    assert before["mrr"] == without["mrr"] != trained["mrr"]


def kept(store: Path) -> Iterator[str]:
    """The names of the models in a store."""
    return (model.name for model in (store / paths.RETRIEVERS).iterdir())


def test_a_second_training_continues_from_the_judged_encoder(trained: Path) -> None:
    judged, in_force = (
        place.name for place in (paths.validation_encoder(trained), paths.trained_encoder(trained)) if place
    )
    done = retriever.train(FILMS, store=trained, samples=300)
    assert done.evidence["from"] == judged
    assert not {judged, in_force} & set(kept(trained))
    assert len(list(kept(trained))) == 2


def test_without_later_events_the_judged_encoder_is_used(films: Path, tmp_path: Path) -> None:
    done = retriever.train(given(tmp_path / "data", "valid"), store=films, samples=300)
    assert done.evidence["for use"] is None
    assert (paths.validation_encoder(films), list(kept(films))) == (None, [done.name])
    with open_measured_catalog(films, "valid") as catalog:
        assert catalog.embedder.name == done.name


def test_test_cases_that_changed_after_training_are_named_in_a_warning(films: Path, tmp_path: Path) -> None:
    dataset = given(tmp_path / "data", "valid", "test")
    done = retriever.train(dataset, store=films, samples=300)
    assert done.evidence["for use"]["pairs"] > 0
    assert not any("retriever" in line for line in load_trusted_tuning(films, dataset, "test", None)[1])
    lines = (dataset / "test.jsonl").read_text().splitlines()
    (dataset / "test.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert any("other data than these" in line for line in load_trusted_tuning(films, dataset, "test", None)[1])
    assert any("as it was judged" in line for line in load_trusted_tuning(films, dataset, "valid", None)[1])
    assert any("split in another way" in line for line in load_trusted_tuning(films, dataset, "valid", "per-user")[1])


def test_forgetting_names_the_retriever_and_no_models_folder_holds_the_user(films: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(FILMS, tmp_path / "data")
    events = dataset / "events.csv"
    events.write_text(events.read_text().replace("zoe,", "zoe-7f3a,"))
    retriever.train(dataset, store=films, samples=300)
    compare(dataset, ["dense", "lexical"], store=films, on="valid", cases=5)
    (films / "trained" / retriever.UNFINISHED).mkdir()
    with Catalog.open(films) as catalog, History.open(films) as history:
        rec: Any = Recommender(catalog, history, base_url=NOBODY, explain=False)
        rec.forget("zoe-7f3a")
        assert "retriever" in rec._core.trained
        rec.close()
    files = [path for path in films.rglob("*") if path.is_file()]
    assert not any(b"zoe-7f3a" in path.read_bytes() for path in files)
    assert not (films / "trained" / retriever.UNFINISHED).exists()
    assert paths.validation_encoder(films) is not None
