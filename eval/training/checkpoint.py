"""Shared parts of every training: PyTorch settings, the learning rate's schedule, checkpoints, and continuing after a kill."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agent.llm import embedded
from eval.errors import EvalError
from eval.progress import Progress

SAVED_EVERY = 60.0
"""Seconds between checkpoints."""
PASSIVE_WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Waiting threads sleep. If they spin, two threads beside another busy process take over ten times as long as one thread."""


def configure_torch() -> None:
    """Set the environment variables that make PyTorch train well on a CPU. It has no effect once PyTorch is loaded.

    oneDNN caches few of the kernels that it makes for each batch length (a thousand, its default, take ten gigabytes), and
    threads that wait for each other do not spin, so that another process that uses one core does not slow down all of them.
    """
    if "torch" not in sys.modules:
        for name, value in {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", **PASSIVE_WAIT}.items():
            os.environ.setdefault(name, value)


def count_threads() -> int:
    """Return the number of threads to train with: one for each core, or one less if waiting threads spin."""
    return embedded.cores() if PASSIVE_WAIT.items() <= os.environ.items() else embedded.threads()


def schedule(step: int, steps: int, warm_up: float) -> float:
    """Return the share of the full learning rate at a step: it rises over the share `warm_up` of the steps, then falls to 0."""
    rising = max(round(steps * warm_up), 1)
    return min((step + 1) / rising, (steps - step) / max(steps - rising, 1))


@contextmanager
def unfinished(folder: Path) -> Iterator[Callable[[], None]]:
    """Keep the files of a training in `folder` while it runs, and remove the folder when it is complete.

    Files of an earlier training that was killed are found there and used. Deleting a user removes the folder, too
    (`agent.forgetting.drop_derived`). The value is a function that raises EvalError if that has happened; an OSError that
    follows from it becomes this EvalError.
    """
    mark = folder / "under way"
    if not mark.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.touch()

    def check() -> None:
        if not mark.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            raise EvalError("a user was deleted during this run, so its results were discarded; run the command again")

    try:
        yield check
    except BaseException as error:
        if isinstance(error, OSError):
            check()
        if folder.is_dir() and list(folder.iterdir()) == [mark]:  # it failed before there was anything to keep
            shutil.rmtree(folder)
            with suppress(OSError):
                folder.parent.rmdir()
        raise
    shutil.rmtree(folder)


class Trainable(Protocol):
    """Weights in training, with their optimizer."""

    device: Any

    def state(self) -> dict[str, Any]:
        """Return the weights and the state of the optimizer."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""


@dataclass
class Checkpoint:
    """The state of one training in a file. A training with another `key` does not use it."""

    path: Path
    key: str
    _saved: float = field(default_factory=time.monotonic)

    def run(
        self,
        steps: int,
        take: Callable[[int], float],
        trained: Trainable,
        label: str,
        progress: Progress,
    ) -> list[float]:
        """Run the steps of a training, from the last checkpoint on; return the value of each step, earlier ones included.

        Args:
            steps: how many steps the whole training has.
            take: takes the step of this number, and returns its loss or reward.
            trained: what is saved and restored.
            label: the name of the steps in the progress display.
            progress: the progress display.
        """
        saved = self.load(trained.device) or {"step": 0, "losses": []}
        if saved["step"]:
            trained.restore(saved)
        values: list[float] = saved["losses"]
        with progress(label) as advance:
            for step in range(saved["step"], steps):
                values.append(take(step))
                if time.monotonic() - self._saved > SAVED_EVERY or step + 1 == steps:
                    self.save(step=step + 1, losses=values, **trained.state())
                advance(step + 1, steps)
        return values

    def load(self, device: Any) -> dict[str, Any] | None:
        """Return what was saved last, with its tensors on `device`; None if nothing was saved with this key."""
        import torch

        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location=device)
        return state if state["key"] == self.key else None

    def save(self, **state: Any) -> None:
        """Replace what was saved."""
        import torch

        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".half")
        torch.save({"key": self.key, **state}, half)
        half.replace(self.path)
        self._saved = time.monotonic()


def mean_of_last_tenth(values: list[float]) -> float:
    """Return the mean of the last tenth of these values, of one at least."""
    return float(np.mean(values[-max(len(values) // 10, 1) :]))
