"""What a request returns: items with scores, channels, explanations and evidence, and the trace of how they came about."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from store.records import Item


@dataclass(frozen=True, slots=True)
class Interest:
    """A named taste with its weight (0..1) and the ids of the history items that show it."""

    name: str
    weight: float
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a history says of its owner, in words."""

    summary: str
    interests: tuple[Interest, ...]
    avoid: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The profile as plain dicts and lists; `from_json` reads it back."""
        return {
            "summary": self.summary,
            "interests": [{"name": i.name, "weight": i.weight, "evidence": [*i.evidence]} for i in self.interests],
            "avoid": [*self.avoid],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Profile:
        """The profile that `as_json` wrote."""
        interests = (Interest(i["name"], i["weight"], tuple(i["evidence"])) for i in row["interests"])
        return cls(row["summary"], tuple(interests), tuple(row["avoid"]))


@dataclass(frozen=True, slots=True)
class Named:
    """A title the model named, and the catalog id it was grounded to (None: not in the catalog)."""

    title: str
    year: int | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Interests:
    """What a history says: the profile, queries and named titles, best first. The first `latest` queries are for the latest
    history items themselves, the others guess what comes next."""

    profile: Profile | None = None
    queries: tuple[str, ...] = ()
    named: tuple[Named, ...] = ()
    latest: int = 0

    def as_json(self) -> dict[str, Any]:
        """As kept in the profile cache."""
        return {
            "profile": self.profile.as_json() if self.profile else None,
            "queries": [*self.queries],
            "named": [{"title": n.title, "year": n.year} for n in self.named],
            "latest": self.latest,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Interests:
        """What `as_json` wrote."""
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
        """One entry of `items` in the recommendation JSON."""
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
    """The explanation of the shown item of this rank, when it has been written."""

    rank: int
    text: str


@dataclass(slots=True)
class Stage:
    """What one stage of a request did: milliseconds, tokens, and in words what degraded and what else is worth knowing."""

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
        """One entry of `trace.stages` in the recommendation JSON."""
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
        """Time a stage; what it learns is written on the yielded `Stage`."""
        stage = Stage(name)
        self.stages.append(stage)
        started = time.perf_counter()
        try:
            yield stage
        finally:
            stage.ms = (time.perf_counter() - started) * 1000

    @property
    def degraded(self) -> list[dict[str, str]]:
        """The stages that could not do their work as meant, each with the reason."""
        return [{"stage": stage.name, "reason": stage.degraded} for stage in self.stages if stage.degraded]

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def as_json(self) -> dict[str, Any]:
        """`trace` of the recommendation JSON."""
        return {"stages": [stage.as_json() for stage in self.stages], "degraded": self.degraded}


@dataclass(frozen=True, slots=True)
class Result:
    """A ranked list with its reasons. Iterating gives the `Recommendation`s, best first.

    `personalised` is the share of shown items backed by evidence or by a channel other than `popular`.
    """

    user: str | None
    text: str | None
    profile: Profile | None
    queries: tuple[str, ...]
    named: tuple[Named, ...]
    items: tuple[Recommendation, ...]
    trace: Trace

    @property
    def personalised(self) -> float:
        """Share of shown items (0..1) backed by evidence or by a channel other than `popular`."""
        backed = sum(bool(r.evidence or set(r.channels) - {"popular"}) for r in self.items)
        return backed / len(self.items) if self.items else 0.0

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def as_json(self) -> dict[str, Any]:
        """The JSON of one recommendation, as `evoke recommend --json` prints it."""
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
