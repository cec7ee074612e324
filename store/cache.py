"""A cache on disk for data derived from the catalog and the histories: rebuilt when these, or Evoke's own code, have changed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FORMAT = 2
"""Raise this when any derived data is computed or saved in another way, so that what an older version saved is not loaded.
0.1.0 saved without such a number."""


def load_or_build(
    folder: Path | None,
    name: str,
    version: str,
    build: Callable[[], T],
    save: Callable[[T, Path], None],
    load: Callable[[Path], T],
) -> T:
    """Load the derived data `name` for this `version` of its sources, or build and save it.

    Args:
        folder: the store's folder; without one, or where it cannot be written, the data is only held in memory.
        name: what is derived; older versions of the same name are removed.
        version: the version of the sources, without a "-".
        build: computes the data.
        save: writes the data into a folder.
        load: reads it from that folder.
    """
    if folder is None:
        return build()
    home = folder / "derived" / f"{name}-{FORMAT}.{version}"
    if home.is_dir():
        # Data that cannot be read is built again.
        with suppress(Exception):
            return load(home)
        shutil.rmtree(home, ignore_errors=True)
    value = build()
    try:
        _save_atomically(value, home, save)
        return load(home)
    except OSError:
        return value


def delete_cached(folder: Path, name: str) -> None:
    """Delete the cached data of this name from a store, so that it is built again."""
    for home in (folder / "derived").glob(f"{name}-*"):
        shutil.rmtree(home, ignore_errors=True)


def _save_atomically(value: T, home: Path, save: Callable[[T, Path], None]) -> None:
    name = home.name.rpartition("-")[0]
    home.parent.mkdir(exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{name}-"))
    try:
        unfinished.chmod(0o755)
        save(value, unfinished)
        # If another process has saved the same data meanwhile, its copy stays.
        with suppress(OSError):
            unfinished.rename(home)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in [*home.parent.glob(f"{name}-*"), *home.parent.glob(f".{name}-*")]:
        if old != home:
            shutil.rmtree(old, ignore_errors=True)
