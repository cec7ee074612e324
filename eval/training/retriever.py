"""`evoke train retriever`: teach the store's encoder on the events before the cut, index with it, judge it on validation cases; and
where it paid, teach it once more on all events that may be known in use, and put that in force.

What was judged is kept beside it. It has seen no event of the validation period: whatever is fitted on validation cases
reads its vectors (`eval.data.leakage.measured_catalog`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.llm.adapters import Trained
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.comparison.llm_cache import Progress, quiet
from eval.data.cases import Cases
from eval.data.dataset import indexed
from eval.data.leakage import EVIDENCE, measured_catalog, seen_hash, untrained
from eval.data.read_cases import data_hash, known_in_use
from eval.errors import EvalError
from eval.fitting.ablation import MOST_CASES
from eval.fitting.sequences import FOLDS, fold_of, pairs, sequences
from eval.fitting.signals import TURNS, turns_of
from eval.metrics import per_case
from eval.training.checkpoint import unfinished
from eval.training.compare_encoders import SEARCHES, compared, searched
from eval.training.contrastive import Encoder, Material
from eval.training.verdict import Verdict
from eval.tuning.grid_search import Say
from eval.tuning.tune import validation_cases
from store import Catalog, History, locks, paths
from store.embedder import UNTRAINED, Embedder, turned
from store.index import refresh
from store.reembed import embed_anew, put_in_force
from store.snapshot import Snapshot

PAIRS = 20_000
"""Steps from one item to the next to learn from."""
UNFINISHED = "retriever.unfinished"
APART = 0.5
"""Share of the steps that each of those encoders takes which learn without some of the people: there are FOLDS of them."""


@dataclass(frozen=True, slots=True)
class Retrained:
    """What a training came to: how recall and title search changed, whether it `pays`, and whether the encoder is `on`. `name` is
    that of the model in force, or of the one that is not."""

    name: str
    pays: bool
    on: bool
    verdict: Verdict
    searches: dict[str, float]
    evidence: dict[str, Any]

    def __rich__(self) -> Any:
        from rich.console import Group

        found = ", ".join(f"{name} {share:.3f}" for name, share in self.searches.items())
        lines = [f"title search, own item first of {SEARCHES} at most: {found}"]
        if for_use := self.evidence["for use"]:
            lines.append(
                f"judged: learned from {self.evidence['pairs']:,} steps before the validation cases; "
                f"for use: from {for_use['pairs']:,}, later ones too"
            )
        return Group(self.verdict, *lines)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
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
) -> Retrained:
    """Train the store's encoder, and use it from now on where validation shows that it finds more, alone and with everything fused,
    and title search no less; or `anyway`.

    Learns from at most `samples` steps before the cut; and where that paid once more, for use, from as many of all those that may
    be known in use. Run again after a kill it goes on where it stopped; until all is done the store is as before. Deterministic
    by seed on one machine's CPU; uses a GPU where there is one. Raises EvalError where there is too little to learn from, or
    the store's vectors come from a server.
    """
    dataset = Path(dataset)
    known, in_use = validation_cases(dataset).sample(MOST_CASES, seed), known_in_use(dataset)
    per_case([], [])  # says what is missing for measuring before the work, not after it
    say("indexing")
    folder, present = indexed(dataset, store), Settings.load().embedder()
    kept = folder / "trained" / UNFINISHED
    with locks.alone(folder, "tuning", "training the retriever of"), unfinished(kept) as check:
        with measured_catalog(folder, known.on) as catalog:
            _check(folder, catalog)
            snapshot, documents = _texts(folder, catalog)
            before = _material(known, snapshot, samples or PAIRS, seed)
            made, loss, vectors = _taught(catalog, before, documents, seed, kept / "encoder.pt", say, progress)
            check()
            facts = _indexed(folder, made, vectors, present, say, progress)
            # As the store will read it: in its precision, and whole documents.
            with Catalog.open(made, create=False, embedder=Embedder(str(made))) as anew:
                verdict = compared(known, catalog, anew, folder, seed, say, progress)
                check()
                after = anew.vectors(snapshot.ids)
                searches, worse = searched(snapshot, after, catalog.embedder, anew.embedder, seed)
        trained = paths.retriever(folder)
        first = untrained(trained) if trained else catalog.embedder.found_at
        evidence = {
            "on": "valid", "seen": seen_hash(dataset), "seed": seed, "pairs": len(before.pairs), "loss": loss,
            "from": catalog.embedder.name, "untrained": first,
            "verdict": verdict.as_json(), "title search": searches, "for use": None,
        }  # fmt: skip
        pays = verdict.paid and not worse
        evidence |= {"title search is worse": worse, "pays": pays}
        if pays or anyway:
            judged = made
            with Catalog.open(folder, create=False, embedder=present) as catalog:
                snapshot, documents = _texts(folder, catalog)
                for_use = _material(in_use, snapshot, samples or PAIRS, seed)
                if not for_use.same(before):
                    say("learning once more, for use")
                    made, loss, vectors = _taught(catalog, for_use, documents, seed, kept / "for use.pt", say, progress)
                    check()
                    facts = _indexed(folder, made, vectors, present, say, progress)
                    evidence["for use"] = {"pairs": len(for_use.pairs), "loss": loss, "data": data_hash(dataset)}
            (made / EVIDENCE).write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(made / "derived", ignore_errors=True)  # judging left it; the store keeps its own
            check()
            put_in_force(folder, made, facts, judged if judged != made else None, present, lambda: _outdate(folder))
            with Catalog.open(folder, create=False) as catalog, History.open(folder) as history:
                refresh(catalog, history)
        return Retrained(made.name, pays, pays or anyway, verdict, searches, evidence)


def _check(folder: Path, catalog: Catalog) -> None:
    """Raises EvalError where the store's vectors cannot be replaced by those of a model trained here."""
    again = "index into a store whose vectors are in its folder, by a sentence-transformers model"
    if paths.about(folder).get("chroma"):
        raise EvalError(f"{folder} has its vectors on a Chroma server, which are not replaced; {again}")
    if catalog.embedder.remote:
        raise EvalError(f"{folder} has its vectors from an embeddings URL, whose model cannot be trained here; {again}")


def _texts(folder: Path, catalog: Catalog) -> tuple[Snapshot, list[str]]:
    """The items as they are, and their texts: what is written meanwhile would give a text the vector of another."""
    with locks.writing(folder):
        snapshot = catalog.snapshot()
        return snapshot, [item.document for item in catalog.get(snapshot.ids).values()]


def _material(cases: Cases, snapshot: Snapshot, n: int, seed: int) -> Material:
    """What is learned from: `n` steps at most to something new, of the events that may be fitted on with these cases."""
    drawn = [pair for pair in pairs(cases, snapshot, n, seed) if pair.chosen[0] not in pair.history]
    if not drawn:
        raise EvalError(f"{cases.dataset}: nobody chose anything new before the cut; add events")
    return Material(drawn, sequences(cases, snapshot), np.asarray(snapshot.vectors))


def _taught(
    catalog: Catalog,
    material: Material,
    documents: Sequence[str],
    seed: int,
    checkpoint: Path,
    say: Say,
    progress: Progress,
) -> tuple[Path, float, dict[str, np.ndarray]]:
    """The folder of the encoder that learned from this, beside the checkpoint; its loss; what it makes of the texts."""
    say(f"{len(material.pairs)} steps to learn from; loading {catalog.embedder.name}")
    encoder = Encoder(catalog.embedder, seed)
    loss = encoder.learn(material, checkpoint, progress)
    made = _saved(encoder, checkpoint.parent)
    np.save(made / TURNS, _turns(encoder, catalog, material, seed, checkpoint, progress))
    back, former = np.linalg.inv(encoder.matrix.astype(np.float64)), catalog.embedder.turn_back
    np.save(made / UNTRAINED, (back if former is None else former @ back).astype(np.float32))
    return made, loss, dict(zip(documents, encoder.through(material.vectors), strict=True))


def _turns(
    encoder: Encoder, catalog: Catalog, material: Material, seed: int, checkpoint: Path, progress: Progress
) -> np.ndarray:
    """See `eval.fitting.signals.turns_of`: for each part of the people an encoder learns from the others alone, and goes on, where
    the one before was trained, too, from what had learned from these alone."""
    back = np.linalg.inv(encoder.matrix.astype(np.float64))
    former = turns_of(catalog)
    turns = []
    for fold in range(FOLDS):
        others = [pair for pair in material.pairs if fold_of(pair.user) != fold]
        apart = Encoder(catalog.embedder, seed)
        if others:
            kept = checkpoint.with_name(f"{checkpoint.stem}, part {fold}.pt")
            what = f"steps learned without part {fold + 1} of {FOLDS} of the people"
            vectors = material.vectors if former is None else turned(material.vectors, former[fold])
            apart.learn(replace(material, pairs=others, vectors=vectors), kept, progress, what, APART)
        turns.append((apart.matrix if former is None else apart.matrix @ former[fold]) @ back)
    return np.stack(turns).astype(np.float32)


def _indexed(
    folder: Path, made: Path, vectors: dict[str, np.ndarray], present: Embedder | None, say: Say, progress: Progress
) -> dict[str, Any]:
    say("indexing with what was learned")
    with progress("items indexed") as advance:
        return embed_anew(folder, made, advance, vectors, present)


def _saved(encoder: Encoder, kept: Path) -> Path:
    """The folder that the encoder was saved in, named after its weights, as stores know their model by name."""
    half = kept / "half"
    shutil.rmtree(half, ignore_errors=True)
    encoder.save(half)
    made = kept / f"retriever-{Embedder(str(half)).fingerprint[:8]}"
    return made if made.is_dir() else half.rename(made)


def _outdate(folder: Path) -> None:
    """What was tuned was tuned for other vectors: learned fusion is off until `evoke tune` has seen the new ones."""
    tuned = Tuned.load(folder)
    if tuned.evidence:
        reason = "it was tuned before the retriever was trained; run `evoke tune` again"
        replace(tuned, learned=False, evidence=tuned.evidence | {"outdated": reason}).save(folder)
    for steps in (folder / "measured").glob("unfinished*.json"):
        steps.unlink()


def to_do_next(folder: Path) -> list[str]:
    """What should be run again after the vectors have changed, a line each."""
    told = ["run `evoke tune` again: what it found was for the vectors before", "restart a running `evoke serve`"]
    if Settings.load().embedding_model:
        told.append("take the setting embedding_model away: the store has a model of its own now")
    if "queries" in Trained.load(folder).adapters:
        told.append("the queries adapter was taught with the vectors before: run `evoke train queries` again")
    return told
