"""Finished steps of a long run, kept so that one that was killed goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from store.paths import write_atomically


class Steps:
    """The results of steps by name, in a file beside the store; those of another `key` do not count."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._kept = bool(kept)
        self._done: dict[str, Any] = kept.get("steps", {}) if kept.get("key") == key else {}

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """The step's result: kept from an earlier run of the same key, or worked out and kept. Raises EvalError where somebody was
        forgotten meanwhile."""
        if name not in self._done:
            self._done[name] = work()
            self.check()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({"key": self._key, "steps": self._done}).encode())
            self._kept = True
        return self._done[name]

    def check(self) -> None:
        """Raises EvalError where the file is gone: forgetting somebody removes it, and what is at hand may be about them."""
        if self._kept and not self._file.is_file():
            raise EvalError("somebody was forgotten meanwhile, and what was found is about them, too; run it again")

    def finish(self) -> None:
        """All is done: nothing is left to resume."""
        self._file.unlink(missing_ok=True)
