"""The result of `evoke tune` for a store: settings in place of our defaults, learned fusion, and the evidence for both."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from agent.errors import EvokeError
from agent.ranking.learned_fusion import Learned
from agent.settings import REMOVED, Settings, without_removed
from store.paths import write_atomically

FILE = "tuned.json"
JUDGED = "judged"
"""The folder of learned fusion as it was judged: it learned from nothing of the validation period, and ranks validation cases."""

log = logging.getLogger("evoke")


@cache
def _warn_unknown(file: Path, names: str) -> None:
    log.warning("%s holds %s, which this version does not know and leaves out; run `evoke tune` again", file, names)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning found for a store.

    Args:
        settings: some of the fields of `Settings`. The setting `prompts` is a folder inside the store, so that a store can move.
        baselines: parameters of comparison arms.
        learned: whether learned fusion is on; its models are in the same folder.
        evidence: how all of it was chosen.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    learned: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, store: Path | None) -> Tuned:
        """Read what was tuned for this store; nothing where it never was. Keys of other versions are left out.

        Raises EvokeError for a file that cannot be read.
        """
        if store is None or not (store / "tuned" / FILE).is_file():
            return cls()
        try:
            row = json.loads((store / "tuned" / FILE).read_text(encoding="utf-8"))
            tuned = cls(**{name: row[name] for name in cls.__slots__ if name in row})
            known = {
                name: value for name, value in tuned.settings.items() if name in {*Settings.model_fields, *REMOVED}
            }
            if unknown := sorted({*row, *tuned.settings} - {*cls.__slots__, *known}):
                _warn_unknown(store / "tuned" / FILE, ", ".join(unknown))
            return cls(known, dict(tuned.baselines), tuned.learned, dict(tuned.evidence))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise EvokeError(f"{store / 'tuned' / FILE} cannot be read ({error}); run `evoke tune` again") from None

    def save(self, store: Path) -> None:
        """Write it into the store, so that `recommend` uses it."""
        folder = store / "tuned"
        folder.mkdir(parents=True, exist_ok=True)
        row = {name: getattr(self, name) for name in self.__slots__}
        write_atomically(folder / FILE, (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode())

    def fusion(self, store: Path | None) -> Learned | None:
        """Learned fusion, where it is on. Raises MissingExtra without LightGBM."""
        return Learned.load(store / "tuned") if self.learned and store else None

    def judged_fusion(self, store: Path) -> Learned | None:
        """Learned fusion as it was judged, where it is on. Raises MissingExtra without LightGBM."""
        return Learned.load(store / "tuned" / JUDGED) if self.learned else None

    def applied(self, settings: Settings, store: Path | None) -> Settings:
        """Return the settings with what was tuned for this store, except where a user set something else."""
        kept = without_removed(self.settings, f" in {store}/tuned/{FILE}", "the next `evoke tune` removes it")
        found = {name: value for name, value in kept.items() if self.decides(name, settings)}
        if store and "prompts" in found:
            found["prompts"] = store / found["prompts"]
        return settings.model_copy(update=found)

    def decides(self, name: str, settings: Settings) -> bool:
        """Whether this setting was tuned, and `settings` (as loaded) do not set it."""
        return name in self.settings and name not in settings.model_fields_set
