"""What `evoke tune` found for a store: settings that stand in for our defaults, learned fusion, and the evidence for both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import EvokeError
from agent.ranking.learned_fusion import Learned
from agent.ranking.stacking import Joined
from agent.settings import Settings, without_removed
from store.paths import write_atomically

FILE = "tuned.json"
JOINED = "joined"
"""The folder of learned joining, beside the file."""
JUDGED = "judged"
"""That of learned fusion as it was judged: it has learned from nothing of the validation period, and ranks validation cases."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """`settings` (some of Settings' fields), `baselines` (parameters of comparison arms), `evidence` (how all were chosen).

    `learned` says whether learned fusion was switched on; its models lie beside the file. `joined` are the model's channels that
    are joined to it by a second one, none where they join by weight. The setting `prompts` is a folder inside the store, so that
    a store can be moved.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    learned: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, store: Path | None) -> Tuned:
        """What was tuned for this store; nothing where it never was. Raises EvokeError for a file that cannot be read."""
        if store is None or not (store / "tuned" / FILE).is_file():
            return cls()
        try:
            return cls(**json.loads((store / "tuned" / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise EvokeError(f"{store / 'tuned' / FILE} cannot be read ({error}); run `evoke tune` again") from None

    def save(self, store: Path) -> None:
        """Write it into the store, so that `recommend` uses it."""
        folder = store / "tuned"
        folder.mkdir(parents=True, exist_ok=True)
        row = {name: getattr(self, name) for name in self.__slots__}
        write_atomically(folder / FILE, (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode())

    def fusion(self, store: Path | None) -> Learned | None:
        """Learned fusion, where it is switched on. Raises MissingExtra without LightGBM."""
        return Learned.load(store / "tuned") if self.learned and store else None

    def judged_fusion(self, store: Path) -> Learned | None:
        """Learned fusion as it was judged, where it is switched on. Raises MissingExtra without LightGBM."""
        return Learned.load(store / "tuned" / JUDGED) if self.learned else None

    def joining(self, store: Path | None) -> Joined | None:
        """Learned joining, where it and learned fusion are switched on. Raises MissingExtra without LightGBM."""
        return Joined.load(store / "tuned" / JOINED, self.joined) if self.learned and self.joined and store else None

    def applied(self, settings: Settings, store: Path | None) -> Settings:
        """The settings with what was tuned for this store wherever nobody set anything."""
        kept = without_removed(self.settings, f" in {store}/tuned/{FILE}", "the next `evoke tune` removes it")
        found = {name: value for name, value in kept.items() if name not in settings.model_fields_set}
        if store and "prompts" in found:
            found["prompts"] = store / found["prompts"]
        return settings.model_copy(update=found)
