"""What forgetting a user removes besides their rows."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from store.cache import delete_cached

FORGOTTEN = "forgotten"
"""Marker file in an adapter's folder: a user was forgotten after the adapter was trained, and it may have learned from them."""


def drop_derived(store: Path | None) -> None:
    """Remove data derived from all users' histories, which a forgotten user is part of.

    Removed are the matrices that are only refitted with the catalog, cached model answers of `evoke compare` and `evoke tune`
    (`STORE/measured`), and unfinished training. A trained adapter stays, but is marked with `FORGOTTEN`, so that the next one
    takes its place.
    """
    if store is None:
        return
    for fitted in ("linear", "cooccurrence"):
        delete_cached(store, fitted)
    trained = store / "trained"
    for folder in (store / "measured", *trained.glob("*.unfinished")):
        shutil.rmtree(folder, ignore_errors=True)
    for record in trained.glob("*/adapter.json"):
        with suppress(OSError):  # a read-only adapter must not keep a user from being forgotten
            record.with_name(FORGOTTEN).touch()
