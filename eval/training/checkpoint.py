"""What every training shares: how its rate goes, and what it goes on from after a kill."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.llm import embedded
from eval.errors import EvalError

SAVED_EVERY = 60.0
"""Seconds between checkpoints."""
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait sleep: spinning, two that learn beside another busy process took over ten times as long as one."""


def settle() -> None:
    """Have PyTorch learn well on a CPU: keep few of the kernels that oneDNN makes for each length of a batch (a thousand, as by
    default, hold ten gigabytes), and its threads not spin where they wait for each other, so that another process that keeps a
    core busy does not hold up those on all the others. Has no effect once PyTorch is loaded."""
    if "torch" not in sys.modules:
        for name, value in {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", **PATIENT}.items():
            os.environ.setdefault(name, value)


def threads() -> int:
    """How many threads learn: one for each core where those that wait do not spin, else one less."""
    return embedded.cores() if PATIENT.items() <= os.environ.items() else embedded.threads()


def schedule(step: int, steps: int, warm: float) -> float:
    """The share of the full rate at a step: it rises over the share `warm` of the steps, and then falls to 0 in a line."""
    rising = max(round(steps * warm), 1)
    return min((step + 1) / rising, (steps - step) / max(steps - rising, 1))


@contextmanager
def unfinished(kept: Path) -> Iterator[Callable[[], None]]:
    """The folder of a training under way: what lies there from an earlier one that was killed is gone on from, and at the end it
    is removed.

    Forgetting somebody removes it, too (`agent.forgetting.drop_derived`), whatever is written there later. What is given raises
    EvalError where that has happened, and so does an OSError that came of it.
    """
    mark = kept / "under way"
    if not mark.is_file():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        mark.touch()

    def check() -> None:
        if not mark.is_file():
            shutil.rmtree(kept, ignore_errors=True)
            raise EvalError("somebody was forgotten meanwhile, and what had learned from them is gone; run it again")

    try:
        yield check
    except BaseException as error:
        if isinstance(error, OSError):
            check()
        if kept.is_dir() and list(kept.iterdir()) == [mark]:  # refused before there was anything to keep
            shutil.rmtree(kept)
            with suppress(OSError):
                kept.parent.rmdir()
        raise
    shutil.rmtree(kept)


@dataclass
class Checkpoint:
    """The state of one training in a file, of no use to a training with another `key`."""

    path: Path
    key: str
    _saved: float = field(default_factory=time.monotonic)

    def load(self, device: Any) -> dict[str, Any] | None:
        """What was saved last, its tensors on `device`; None where there is nothing for this key."""
        import torch

        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location=device)
        return state if state["key"] == self.key else None

    @property
    def due(self) -> bool:
        """Whether the last one is old enough for another."""
        return time.monotonic() - self._saved > SAVED_EVERY

    def save(self, **state: Any) -> None:
        """Replace what was saved."""
        import torch

        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".half")
        torch.save({"key": self.key, **state}, half)
        half.replace(self.path)
        self._saved = time.monotonic()
