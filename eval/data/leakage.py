"""What tuning and training found may be used in a measurement only where it cannot have seen what is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.llm.adapters import Adapter, Trained
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.comparison.llm_cache import Progress
from eval.data.dataset import case_file, data_hash, file_hash
from store import Catalog
from store.embedder import Embedder
from store.load import find_dataset
from store.paths import judged, retriever
from store.reembed import embed_anew

EVIDENCE = "evidence.json"
"""Beside a trained retriever: how it was shown to pay."""
BEFORE = (
    "what reads vectors uses the trained retriever as it was judged, before it learned from these cases' period for use; that "
    "one is used at all was chosen on these very cases"
)


def measured_catalog(store: Path, on: str) -> Catalog:
    """The catalog to measure with, and to fit with, on cases of this part: the store's own; but on validation cases, where the
    retriever in force has learned from their period too, the same items with the vectors of the one that was judged.

    Nothing in this package opens a catalog in another way to look at validation cases.
    """
    before = judged(store) if on == "valid" else None
    if before is None:
        return Catalog.open(store, create=False, embedder=Settings.load().embedder())
    embed_anew(store, before)
    return Catalog.open(before, create=False, embedder=Embedder(str(before)))


def untrained(retriever: Path) -> str:
    """The encoder that a trained one began as: a folder or a name."""
    return str(json.loads((retriever / EVIDENCE).read_text(encoding="utf-8"))["untrained"])


@contextmanager
def before_retriever(folder: Path, catalog: Catalog, progress: Progress) -> Iterator[Catalog]:
    """The store's items by the encoder of before `evoke train retriever`: indexed at the first use, and kept in the store."""
    trained = retriever(folder)
    assert trained is not None  # noqa: S101  the callers ask first
    with Catalog.open(folder / "measured" / "before", embedder=Embedder(untrained(trained))) as former:
        with progress("items indexed by the encoder before") as advance:
            former.upsert(catalog.items(), progress=lambda done, _: advance(done, len(catalog)))
        former.delete(set(former.ids()) - set(catalog.ids()))
        yield former


def seen_hash(dataset: Path) -> str:
    """A hash of the files that tuning looks at: items, events and validation cases, never the test cases."""
    whole = hashlib.blake2b(digest_size=12)
    for path in (*find_dataset(dataset), case_file(dataset, "valid")):
        whole.update(b"-" if path is None else file_hash(path))
    return whole.hexdigest()


def trusted(store: Path, dataset: Path, on: str, how: str | None) -> tuple[Tuned, list[str]]:
    """What was tuned for this store, as far as it may be used to measure this part, and why not otherwise.

    It is left aside on the cases it was tuned on, for cases cut in another way than those, and where the data it saw have
    changed: any of these could hold what is asked for.
    """
    tuned, warnings = Tuned.load(store), _flattered(store, dataset, on, how)
    if not tuned.evidence:
        return Tuned(), [*warnings, "nothing was tuned for this store: defaults are used; run `evoke tune` first"]
    if reason := _doubt(tuned.evidence, dataset, on, how, "evoke tune"):
        return Tuned(), [*warnings, f"what was tuned for this store is not used here, defaults are: {reason}"]
    return tuned, warnings


def trusted_adapters(store: Path, dataset: Path, on: str, how: str | None) -> tuple[dict[str, Adapter], list[str]]:
    """The adapters that are on, by task, as far as they may be used to measure this part, and why not otherwise."""
    found, doubts = {}, []
    for adapter in Trained.load(store).on:
        if reason := _doubt(adapter.evidence, dataset, on, how, f"evoke train {adapter.task}"):
            doubts.append(f"the trained {adapter.task} adapter is not used here, the plain model is: {reason}")
        else:
            found[adapter.task] = adapter
    return found, doubts


def _flattered(store: Path, dataset: Path, on: str, how: str | None) -> list[str]:
    """A warning where the store's trained retriever may have seen what is asked for (its vectors cannot be left aside), and
    where it is not the one in force that is measured with."""
    trained = retriever(store)
    if trained is None:
        return []
    evidence = json.loads((trained / EVIDENCE).read_text(encoding="utf-8"))
    before = on == "valid" and judged(store) is not None
    reason = _doubt(evidence, dataset, None if before else on, how, "evoke train retriever")
    for_use = evidence.get("for use")
    if not reason and on == "test" and for_use and for_use["data"] != data_hash(dataset):
        reason = "it learned for use while other data than these were there; run `evoke train retriever` again"
    if reason:
        return [f"what reads vectors may look better here than it is, by the trained retriever: {reason}"]
    return [BEFORE] if before else []


def _doubt(evidence: Mapping[str, Any], dataset: Path, on: str | None, how: str | None, again: str) -> str | None:
    """Why what has this evidence may not be trusted on this part; None for `on`: one whose cases it may have been chosen on."""
    if outdated := evidence.get("outdated"):
        return str(outdated)
    if on == "valid":
        return "it was chosen on these very cases"
    if how is not None:
        return f"its cases were not cut the way these are ({how})"
    if evidence.get("on") != "valid" or evidence.get("seen") != seen_hash(dataset):
        return f"it saw other data than these; run `{again}` again"
    return None
