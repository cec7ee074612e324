"""`evoke train retriever`: train the store's encoder on the events before the cut, index with it, and judge it on validation cases.
If it paid, train it again for production, with the events of the validation period too, and put it into use.

The judged encoder is kept. It has seen no event of the validation period, so everything that is fitted on validation cases uses
its vectors (`eval.data.leakage.open_measured_catalog`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.llm.adapters import Adapters
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.data.cases import Cases
from eval.data.dataset import index_dataset
from eval.data.leakage import EVIDENCE, hash_tuning_data, open_measured_catalog, untrained_encoder
from eval.data.read_cases import data_hash, load_production_cases
from eval.errors import EvalError
from eval.fitting.ablation import MOST_CASES
from eval.fitting.sequences import FOLDS, fold_of, pairs, sequences
from eval.fitting.signals import TURNS, turns_of
from eval.metrics import check_extra
from eval.progress import Progress, quiet
from eval.training.checkpoint import unfinished
from eval.training.compare_encoders import SEARCHES, compare_encoders, compare_title_search
from eval.training.contrastive import Encoder, Material
from eval.training.verdict import Verdict
from eval.tuning.grid_search import Say
from eval.tuning.tune import validation_cases
from store import Catalog, History, locks, paths
from store.embedder import UNTRAINED, Embedder, transform
from store.index import refresh
from store.reembed import index_with_encoder, switch_encoder
from store.snapshot import Snapshot

PAIRS = 20_000
"""The most pairs of a history and the item chosen next to learn from."""
UNFINISHED = "retriever.unfinished"
FOLD_STEPS = 0.5
"""The share of the steps that an encoder for one fold takes; there are FOLDS of them (see `_train_fold_encoders`)."""


@dataclass(frozen=True, slots=True)
class TrainedRetriever:
    """The result of a training.

    Args:
        name: the name of the new encoder.
        pays: whether it is significantly better.
        on: whether the store uses it now.
        verdict: the comparison of recall.
        evidence: the record that is saved with the encoder.
    """

    name: str
    pays: bool
    on: bool
    verdict: Verdict
    evidence: dict[str, Any]

    def __rich__(self) -> Any:
        from rich.console import Group

        found = ", ".join(f"{name} {share:.3f}" for name, share in self.evidence["title search"].items())
        lines = [f"title search, share of up to {SEARCHES} titles that find their own item first: {found}"]
        if for_use := self.evidence["for use"]:
            lines.append(
                f"judged: trained on {self.evidence['pairs']:,} pairs before the validation cases; "
                f"for production: on {for_use['pairs']:,} pairs, later ones too"
            )
        return Group(self.verdict, *lines)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {"retriever": self.name, "pays": self.pays, "on": self.on, "evidence": self.evidence}


def train(
    dataset: str | Path,
    *,
    store: str | Path | None = None,
    seed: int = 0,
    samples: int | None = None,
    anyway: bool = False,
    say: Say = lambda _: None,
    progress: Progress = quiet,
) -> TrainedRetriever:
    """Train the store's encoder. It is put into use if it pays: recall grows alone and with everything fused, and title search is
    not worse; or with `anyway`.

    If it pays, it is trained again for production, on all events that a model in production may learn from. A training that was
    killed continues where it stopped when it is run again, and the store does not change until all is done. The result depends
    on the seed alone, on the CPU of one machine; a GPU is used if there is one.

    Args:
        dataset: the dataset's folder.
        store: the store's folder, by default the dataset's own store.
        seed: the seed.
        samples: the most pairs to learn from, by default PAIRS.
        anyway: put the encoder into use even if it does not pay.
        say: prints a line about what is done.
        progress: the progress display.

    Raises EvalError if there are too few events, or if the store's vectors come from a server.
    """
    check_extra()
    dataset = Path(dataset)
    known, in_use = validation_cases(dataset).sample(MOST_CASES, seed), load_production_cases(dataset)
    say("indexing")
    folder, present = index_dataset(dataset, store), Settings.load().embedder()
    kept = folder / "trained" / UNFINISHED
    with locks.exclusive_lock(folder, "tuning", "training the retriever of"), unfinished(kept) as check:
        with open_measured_catalog(folder, known.on) as catalog:
            _check_replaceable(folder, catalog)
            snapshot, documents = _read_documents(folder, catalog)
            data = _make_material(known, snapshot, samples or PAIRS, seed)
            made, loss, vectors = _train_encoder(catalog, data, documents, seed, kept / "encoder.pt", say, progress)
            check()
            facts = _index(folder, made, vectors, present, say, progress)
            # Opened as the store will open it: in its precision, and with whole documents.
            with Catalog.open(made, create=False, embedder=Embedder(str(made))) as anew:
                verdict = compare_encoders(known, catalog, anew, folder, seed, say, progress)
                check()
                after = anew.vectors(snapshot.ids)
                searches, worse = compare_title_search(snapshot, after, catalog.embedder, anew.embedder, seed)
        trained = paths.trained_encoder(folder)
        original = untrained_encoder(trained) if trained else catalog.embedder.source_path
        evidence = {
            "on": "valid", "seen": hash_tuning_data(dataset), "seed": seed, "pairs": len(data.pairs), "loss": loss,
            "from": catalog.embedder.name, "untrained": original,
            "verdict": asdict(verdict), "title search": searches, "for use": None,
        }  # fmt: skip
        pays = verdict.paid and not worse
        evidence |= {"title search is worse": worse, "pays": pays}
        if pays or anyway:
            judged = made
            with Catalog.open(folder, create=False, embedder=present) as catalog:
                snapshot, documents = _read_documents(folder, catalog)
                for_use = _make_material(in_use, snapshot, samples or PAIRS, seed)
                if not for_use.same(data):
                    say("training again, for production")
                    made, loss, vectors = _train_encoder(
                        catalog, for_use, documents, seed, kept / "for use.pt", say, progress
                    )
                    check()
                    facts = _index(folder, made, vectors, present, say, progress)
                    evidence["for use"] = {"pairs": len(for_use.pairs), "loss": loss, "data": data_hash(dataset)}
            (made / EVIDENCE).write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(made / "derived", ignore_errors=True)  # made when it was judged; the store has its own
            check()
            switch_encoder(folder, made, facts, judged if judged != made else None, present, lambda: _outdate(folder))
            with Catalog.open(folder, create=False) as catalog, History.open(folder) as history:
                refresh(catalog, history)
        return TrainedRetriever(made.name, pays, pays or anyway, verdict, evidence)


def _check_replaceable(folder: Path, catalog: Catalog) -> None:
    """Raise EvalError if the store's vectors cannot be replaced by those of an encoder trained here."""
    remedy = "index into a store that has its vectors in its folder, made by a sentence-transformers model"
    if paths.read_store_json(folder).get("chroma"):
        raise EvalError(f"{folder} has its vectors on a Chroma server, which cannot be replaced; {remedy}")
    if catalog.embedder.remote:
        raise EvalError(
            f"{folder} has its vectors from an embeddings URL, whose model cannot be trained here; {remedy}"
        )


def _read_documents(folder: Path, catalog: Catalog) -> tuple[Snapshot, list[str]]:
    """Return the snapshot and the text of each of its items. A lock keeps other writers out, so that both fit together."""
    with locks.write_lock(folder):
        snapshot = catalog.snapshot()
        return snapshot, [item.document for item in catalog.get(snapshot.ids).values()]


def _make_material(cases: Cases, snapshot: Snapshot, n: int, seed: int) -> Material:
    """Return at most `n` pairs in which the next item is new, from the events that may be fitted on with these cases."""
    drawn = [pair for pair in pairs(cases, snapshot, n, seed) if pair.chosen[0] not in pair.history]
    if not drawn:
        raise EvalError(f"{cases.dataset}: no user chose a new item before the cut; add events")
    return Material(drawn, sequences(cases, snapshot), np.asarray(snapshot.vectors))


def _train_encoder(
    catalog: Catalog,
    material: Material,
    documents: Sequence[str],
    seed: int,
    checkpoint: Path,
    say: Say,
    progress: Progress,
) -> tuple[Path, float, dict[str, np.ndarray]]:
    """Train an encoder, and save it next to the checkpoint; return its folder, its loss, and the vectors of the documents."""
    say(f"{len(material.pairs)} pairs to learn from; loading {catalog.embedder.name}")
    encoder = Encoder(catalog.embedder, seed)
    loss = encoder.learn(material, checkpoint, progress)
    made = _save_encoder(encoder, checkpoint.parent)
    np.save(made / TURNS, _train_fold_encoders(encoder, catalog, material, seed, checkpoint, progress))
    back, former = np.linalg.inv(encoder.matrix.astype(np.float64)), catalog.embedder.inverse_transform
    np.save(made / UNTRAINED, (back if former is None else former @ back).astype(np.float32))
    return made, loss, dict(zip(documents, encoder.transform(material.vectors), strict=True))


def _train_fold_encoders(
    encoder: Encoder, catalog: Catalog, material: Material, seed: int, checkpoint: Path, progress: Progress
) -> np.ndarray:
    """Train an encoder for each fold of users on the pairs of all other users. Return, (FOLDS, dim, dim), the matrices that turn
    the vectors of `encoder` into those of each fold's encoder: see `eval.fitting.signals.turns_of`.

    If the store's encoder was trained before, each fold's encoder continues from the former encoder of that fold.
    """
    back = np.linalg.inv(encoder.matrix.astype(np.float64))
    former = turns_of(catalog)
    turns = []
    for fold in range(FOLDS):
        others = [pair for pair in material.pairs if fold_of(pair.user) != fold]
        fold_encoder = Encoder(catalog.embedder, seed)
        if others:
            kept = checkpoint.with_name(f"{checkpoint.stem}, part {fold}.pt")
            what = f"steps learned without fold {fold + 1} of {FOLDS}"
            vectors = material.vectors if former is None else transform(material.vectors, former[fold])
            fold_encoder.learn(replace(material, pairs=others, vectors=vectors), kept, progress, what, FOLD_STEPS)
        matrix = fold_encoder.matrix
        turns.append((matrix if former is None else matrix @ former[fold]) @ back)
    return np.stack(turns).astype(np.float32)


def _index(
    folder: Path, made: Path, vectors: dict[str, np.ndarray], present: Embedder | None, say: Say, progress: Progress
) -> dict[str, Any]:
    say("indexing with the trained encoder")
    with progress("items indexed") as advance:
        return index_with_encoder(folder, made, advance, vectors, present)


def _save_encoder(encoder: Encoder, kept: Path) -> Path:
    """Save the encoder; return its folder, which is named after the weights because stores identify their model by name."""
    half = kept / "half"
    shutil.rmtree(half, ignore_errors=True)
    encoder.save(half)
    made = kept / f"retriever-{Embedder(str(half)).fingerprint[:8]}"
    return made if made.is_dir() else half.rename(made)


def _outdate(folder: Path) -> None:
    """Switch learned fusion off until `evoke tune` runs again, because it was tuned for other vectors."""
    tuned = Tuned.load(folder)
    if tuned.evidence:
        reason = "it was tuned before the retriever was trained; run `evoke tune` again"
        replace(tuned, learned=False, evidence=tuned.evidence | {"outdated": reason}).save(folder)
    for steps in (folder / "measured").glob("unfinished*.json"):
        steps.unlink()


def list_next_steps(folder: Path) -> list[str]:
    """Return what should be run again after the vectors have changed, one line for each."""
    lines = [
        "run `evoke tune` again: its results were for the former vectors",
        "restart `evoke serve` if it is running",
    ]
    if Settings.load().embedding_model:
        lines.append("remove the setting embedding_model: the store has a model of its own now")
    if "queries" in Adapters.load(folder).adapters:
        lines.append("run `evoke train queries` again: the queries adapter was trained with the former vectors")
    return lines
