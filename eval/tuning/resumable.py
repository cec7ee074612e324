"""Resumable work: the finished steps of a long run, kept so that a run that was killed continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from store.paths import write_atomically


class Steps:
    """The results of steps by name, in a file of the store; results of another `key` do not count."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._kept = bool(kept)
        self._done: dict[str, Any] = kept.get("steps", {}) if kept.get("key") == key else {}

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the step's result: kept from an earlier run of the same key, or worked out and kept. Raises EvalError where a user
        was deleted during the run."""
        if name not in self._done:
            self._done[name] = work()
            self.check()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({"key": self._key, "steps": self._done}).encode())
            self._kept = True
        return self._done[name]

    def check(self) -> None:
        """Raise EvalError where the file is gone: deleting a user removes it, and the results may be about that user."""
        if self._kept and not self._file.is_file():
            raise EvalError("a user was deleted during this run, so its results were discarded; run the command again")

    def finish(self) -> None:
        """Remove the file: nothing is left to resume."""
        self._file.unlink(missing_ok=True)
