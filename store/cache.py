"""What is worked out from the catalog and the histories, kept beside them and rebuilt when they have changed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def kept(
    folder: Path | None,
    name: str,
    version: str,
    build: Callable[[], T],
    save: Callable[[T, Path], None],
    load: Callable[[Path], T],
) -> T:
    """The thing `name` at this `version` of its sources: loaded where it is kept, else built, and kept.

    Without a folder, or where the folder cannot be written, it is built and held in memory only.
    """
    if folder is None:
        return build()
    home = folder / "derived" / f"{name}-{version}"
    if home.is_dir():
        # What cannot be read back is worth no more than what is not there: build it again.
        with suppress(Exception):
            return load(home)
        shutil.rmtree(home, ignore_errors=True)
    value = build()
    try:
        _keep(value, home, save)
        return load(home)
    except OSError:
        return value


def drop(folder: Path, name: str) -> None:
    """Forget what is kept under this name, so that it is built anew."""
    for home in (folder / "derived").glob(f"{name}-*"):
        shutil.rmtree(home, ignore_errors=True)


def _keep(value: T, home: Path, save: Callable[[T, Path], None]) -> None:
    name = home.name.rpartition("-")[0]
    home.parent.mkdir(exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{name}-"))
    try:
        unfinished.chmod(0o755)
        save(value, unfinished)
        # Another process may have kept the same thing meanwhile: then theirs stays.
        with suppress(OSError):
            unfinished.rename(home)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in [*home.parent.glob(f"{name}-*"), *home.parent.glob(f".{name}-*")]:
        if old != home:
            shutil.rmtree(old, ignore_errors=True)
