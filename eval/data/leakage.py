"""Guards against leakage: results of tuning and training are used in a measurement only if they cannot have seen its cases."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.llm.adapters import Adapter, Adapters
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.data.dataset import data_hash
from eval.progress import Progress
from store import Catalog
from store.embedder import Embedder
from store.paths import trained_encoder, validation_encoder
from store.reembed import index_with_encoder

EVIDENCE = "evidence.json"
"""The file next to a trained retriever with the results of its validation."""
JUDGED = (
    "vectors come from the trained retriever as it was judged, before it learned from the period of these cases for production; "
    "results may still be optimistic, because the decision to use it was made on these very cases"
)


def open_measured_catalog(store: Path, on: str) -> Catalog:
    """Open the catalog to fit and measure with on cases of this part.

    This is the store's own catalog, with one exception: a trained retriever that is in use may have learned from the period of
    the validation cases. For these cases the result has the same items, with vectors of the encoder that was trained without
    that period and judged on them. Code in this package must open catalogs for validation cases only by this function.
    """
    encoder = validation_encoder(store) if on == "valid" else None
    if encoder is None:
        return Catalog.open(store, create=False, embedder=Settings.load().embedder())
    index_with_encoder(store, encoder)
    return Catalog.open(encoder, create=False, embedder=Embedder(str(encoder)))


def untrained_encoder(retriever: Path) -> str:
    """Return the folder or name of the encoder that the training of this one began with."""
    return str(json.loads((retriever / EVIDENCE).read_text(encoding="utf-8"))["untrained"])


@contextmanager
def open_untrained_catalog(folder: Path, catalog: Catalog, progress: Progress) -> Iterator[Catalog]:
    """Open the store's items with the vectors of the encoder before any training. They are indexed on first use, and then kept."""
    trained = trained_encoder(folder)
    assert trained is not None  # noqa: S101  callers check this first
    with Catalog.open(folder / "measured" / "before", embedder=Embedder(untrained_encoder(trained))) as former:
        with progress("items indexed with the untrained encoder") as advance:
            former.upsert(catalog.items(), progress=lambda done, _: advance(done, len(catalog)))
        former.delete(set(former.ids()) - set(catalog.ids()))
        yield former


def hash_tuning_data(dataset: Path) -> str:
    """Return a hash of the files that tuning reads: items, events and validation cases, never the test cases."""
    return data_hash(dataset, ("valid",))


def load_trusted_tuning(store: Path, dataset: Path, on: str, how: str | None) -> tuple[Tuned, list[str]]:
    """Return the tuning results of this store if they may be used to measure this part, else the defaults; and warnings.

    They may not be used on the cases they were tuned on, on cases of another split, or after the data changed: in each of these
    cases they may have seen the targets.

    Args:
        store: the store's folder.
        dataset: the dataset's folder.
        on: the part that is measured.
        how: the split that was asked for (see `make_cases`), None for the default.
    """
    tuned, warnings = Tuned.load(store), _warn_of_retriever(store, dataset, on, how)
    if not tuned.evidence:
        return Tuned(), [*warnings, "nothing was tuned for this store: defaults are used; run `evoke tune` first"]
    if reason := _reason_not_to_trust(tuned.evidence, dataset, on, how, "evoke tune"):
        return Tuned(), [*warnings, f"the tuning results of this store are not used here, defaults are: {reason}"]
    return tuned, warnings


def load_trusted_adapters(store: Path, dataset: Path, on: str, how: str | None) -> tuple[dict[str, Adapter], list[str]]:
    """Return the adapters by task that are on and may be used to measure this part; a warning for each other. See `trusted`."""
    found, doubts = {}, []
    for adapter in Adapters.load(store).on:
        if reason := _reason_not_to_trust(adapter.evidence, dataset, on, how, f"evoke train {adapter.task}"):
            doubts.append(f"the trained {adapter.task} adapter is not used here, the plain model is: {reason}")
        else:
            found[adapter.task] = adapter
    return found, doubts


def _warn_of_retriever(store: Path, dataset: Path, on: str, how: str | None) -> list[str]:
    """Return a warning if the store's trained retriever may have seen the targets (its vectors cannot be left out), or if the
    judged encoder is used instead of the one in production."""
    trained = trained_encoder(store)
    if trained is None:
        return []
    evidence = json.loads((trained / EVIDENCE).read_text(encoding="utf-8"))
    uses_judged = on == "valid" and validation_encoder(store) is not None
    reason = _reason_not_to_trust(evidence, dataset, None if uses_judged else on, how, "evoke train retriever")
    for_use = evidence.get("for use")
    if not reason and on == "test" and for_use and for_use["data"] != data_hash(dataset):
        reason = "it learned from other data than these for production; run `evoke train retriever` again"
    if reason:
        return [f"results that use the trained retriever may be optimistic: {reason}"]
    return [JUDGED] if uses_judged else []


def _reason_not_to_trust(
    evidence: Mapping[str, Any], dataset: Path, on: str | None, how: str | None, again: str
) -> str | None:
    """Return why a result with this evidence must not be used on this part, None if it may be used.

    Args:
        evidence: the record of how the result was found.
        dataset: the dataset's folder.
        on: the part that is measured; None if it does not matter that the result was chosen on these cases.
        how: the split that was asked for, None for the default.
        again: the command that makes the result again.
    """
    if outdated := evidence.get("outdated"):
        return str(outdated)
    if on == "valid":
        return "it was chosen on these very cases"
    if how is not None:
        return f"its cases were split in another way than these ({how})"
    if evidence.get("on") != "valid" or evidence.get("seen") != hash_tuning_data(dataset):
        return f"it saw other data than these; run `{again}` again"
    return None
