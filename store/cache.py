"""A cache on disk for data derived from the catalog and the histories: rebuilt when these, or Evoke's own code, have changed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

FORMAT = 3
"""Raise this when any derived data is computed or saved in another way, so that what an older version saved is not loaded.
0.1.0 saved without such a number."""


def load_or_build(folder: Path | None, name: str, version: str, kind: type[T], build: Callable[[], T]) -> T:
    """Load the derived data `name` for this `version` of its sources, or build and save it.

    Args:
        folder: the store's folder; without one, or where it cannot be written, the data is only held in memory.
        name: what is derived; older versions of the same name are removed.
        version: the version of the sources, without a "-".
        kind: the dataclass of the data. Its fields hold arrays, which are mapped from disk, sparse matrices, or JSON values.
        build: computes the data.
    """
    if folder is None:
        return build()
    home = folder / "derived" / f"{name}-{FORMAT}.{version}"
    if home.is_dir():
        # Data that cannot be read is built again.
        with suppress(Exception):
            return _load(kind, home)
        shutil.rmtree(home, ignore_errors=True)
    value = build()
    try:
        _save_atomically(value, home)
        return _load(kind, home)
    except OSError:
        return value


def delete_cached(folder: Path, name: str) -> None:
    """Delete the cached data of this name from a store, so that it is built again."""
    for home in (folder / "derived").glob(f"{name}-*"):
        shutil.rmtree(home, ignore_errors=True)


def _save(value: Any, folder: Path) -> None:
    from scipy import sparse

    for field in fields(value):
        part, file = getattr(value, field.name), folder / field.name
        if isinstance(part, np.ndarray):
            np.save(file.with_suffix(".npy"), part)
        elif sparse.issparse(part):
            sparse.save_npz(file.with_suffix(".npz"), part, compressed=False)
        elif field.init:
            file.with_suffix(".json").write_text(json.dumps(part, default=asdict), encoding="utf-8")


def _load(kind: type[T], folder: Path) -> T:
    from scipy import sparse

    read: dict[str, Callable[[Path], Any]] = {
        ".npy": lambda file: np.load(file, mmap_mode="r"),
        ".npz": sparse.load_npz,
        ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
    }
    return kind(**{file.stem: read[file.suffix](file) for file in folder.iterdir()})


def _save_atomically(value: Any, home: Path) -> None:
    name = home.name.rpartition("-")[0]
    home.parent.mkdir(exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{name}-"))
    try:
        unfinished.chmod(0o755)
        _save(value, unfinished)
        # If another process has saved the same data meanwhile, its copy stays.
        with suppress(OSError):
            unfinished.rename(home)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in [*home.parent.glob(f"{name}-*"), *home.parent.glob(f".{name}-*")]:
        if old != home:
            shutil.rmtree(old, ignore_errors=True)
