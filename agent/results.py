"""Results of a request: items with scores, channels, explanations and evidence, and the trace of all stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from store.records import Item


@dataclass(frozen=True, slots=True)
class Interest:
    """An interest of a user: its name, its weight (0..1), and the ids of history items as evidence."""

    name: str
    weight: float
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """A description of a user's taste, made from the history."""

    summary: str
    interests: tuple[Interest, ...]
    avoid: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the profile as dicts and lists. `from_json` is the inverse."""
        return {
            "summary": self.summary,
            "interests": [{"name": i.name, "weight": i.weight, "evidence": [*i.evidence]} for i in self.interests],
            "avoid": [*self.avoid],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Profile:
        """Return the profile from the result of `as_json`."""
        interests = (Interest(i["name"], i["weight"], tuple(i["evidence"])) for i in row["interests"])
        return cls(row["summary"], tuple(interests), tuple(row["avoid"]))


@dataclass(frozen=True, slots=True)
class Named:
    """A title that the model named, and the id of the catalog item that it means (None: not in the catalog)."""

    title: str
    year: int | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Interests:
    """The input of retrieval. `queries` and `named` are ordered, best first.

    The first `latest` queries describe the latest items of the history. The others describe what the user may choose next.
    """

    profile: Profile | None = None
    queries: tuple[str, ...] = ()
    named: tuple[Named, ...] = ()
    latest: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the interests as stored in the profile cache. `from_json` is the inverse."""
        return {
            "profile": self.profile.as_json() if self.profile else None,
            "queries": [*self.queries],
            "named": [{"title": n.title, "year": n.year} for n in self.named],
            "latest": self.latest,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Interests:
        """Return the interests from the result of `as_json`."""
        profile = Profile.from_json(row["profile"]) if row["profile"] else None
        return cls(profile, tuple(row["queries"]), tuple(Named(**n) for n in row["named"]), row.get("latest", 0))


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One shown item.

    `score` is in 0..1 (see `agent.ranking.fusion`). `channels` maps each channel that had a part in its place to its rank there,
    `contributions` to the size of that part: a share of the score, or with learned fusion log-odds. `evidence` holds ids of
    history items that speak for it.
    """

    rank: int
    item: Item
    score: float
    channels: Mapping[str, int]
    explanation: str = ""
    evidence: tuple[str, ...] = ()
    contributions: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return an entry of `items` in the recommendation JSON."""
        return {
            "rank": self.rank,
            "id": self.item.id,
            "title": self.item.title,
            "score": round(self.score, 4),
            "channels": dict(self.channels),
            "contributions": {channel: round(part, 4) for channel, part in self.contributions.items()},
            "explanation": self.explanation,
            "evidence": [*self.evidence],
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """The finished explanation of the item with this rank."""

    rank: int
    text: str


@dataclass(slots=True)
class Stage:
    """The record of one stage: milliseconds, tokens, the reason if it was degraded, and notes.

    `began` is Unix time, `prompt` the fingerprint of the prompt templates.
    """

    name: str
    ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    cached: bool = False
    degraded: str | None = None
    notes: list[str] = field(default_factory=list)
    model: str | None = None
    prompt: str | None = None
    began: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        """Return an entry of `trace.stages` in the recommendation JSON."""
        return {
            "name": self.name,
            "ms": round(self.ms, 1),
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cached": self.cached,
            "degraded": self.degraded,
            "notes": self.notes,
            "model": self.model,
            "prompt": self.prompt,
        }


@dataclass(slots=True)
class Trace:
    """The stages of one request, in the order they ran."""

    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage. Yields its `Stage`, which the code of the stage fills."""
        stage = Stage(name)
        self.stages.append(stage)
        started = time.perf_counter()
        try:
            yield stage
        finally:
            stage.ms = (time.perf_counter() - started) * 1000

    @property
    def degraded(self) -> list[dict[str, str]]:
        """The degraded stages, each with the reason."""
        return [{"stage": stage.name, "reason": stage.degraded} for stage in self.stages if stage.degraded]

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def as_json(self) -> dict[str, Any]:
        """Return `trace` of the recommendation JSON."""
        return {"stages": [stage.as_json() for stage in self.stages], "degraded": self.degraded}


@dataclass(frozen=True, slots=True)
class Result:
    """The recommendations of a request. Iterate over it for each `Recommendation`, best first."""

    user: str | None
    text: str | None
    profile: Profile | None
    queries: tuple[str, ...]
    named: tuple[Named, ...]
    items: tuple[Recommendation, ...]
    trace: Trace

    @property
    def personalised(self) -> float:
        """Share of items (0..1) that have evidence or were found by a channel other than `popular`."""
        backed = sum(bool(r.evidence or set(r.channels) - {"popular"}) for r in self.items)
        return backed / len(self.items) if self.items else 0.0

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def as_json(self) -> dict[str, Any]:
        """Return the recommendation JSON, as `evoke recommend --json` prints it."""
        return {
            "user": self.user,
            "text": self.text,
            "profile": self.profile.as_json() if self.profile else None,
            "queries": [*self.queries],
            "named": [{"title": named.title, "id": named.id} for named in self.named],
            "items": [r.as_json() for r in self.items],
            "personalised": round(self.personalised, 4),
            "trace": self.trace.as_json(),
        }
