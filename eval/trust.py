"""What tuning found may be used in a measurement only where it cannot have seen what is measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.tuned import Tuned
from eval.data import case_file, file_hash
from store.load import find_dataset


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
    tuned = Tuned.load(store)
    if not tuned.evidence:
        return Tuned(), ["nothing was tuned for this store: defaults are used; run `evoke tune` first"]
    if on == "valid":
        reason = "it was chosen on these very cases"
    elif how is not None:
        reason = f"its cases were not cut the way these are ({how})"
    elif tuned.evidence.get("on") != "valid" or tuned.evidence.get("seen") != seen_hash(dataset):
        reason = "it saw other data than these; run `evoke tune` again"
    else:
        return tuned, []
    return Tuned(), [f"what was tuned for this store is not used here, defaults are: {reason}"]
