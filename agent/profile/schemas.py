"""What a model writes of a history: the forms of its answers, bounded, the parts of them, and how long they may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from agent.profile.fallback import MIN_QUERIES

N_QUERIES = 8
MOST_QUERIES = 12
"""A trained model writes so many where they are short."""
N_NAMED = 10


def Line(most: int) -> Any:  # noqa: N802  reads as the type it returns
    """A one-line string of at most `most` characters."""
    return Annotated[str, StringConstraints(strip_whitespace=True, max_length=most)]


class Answer(BaseModel, extra="forbid", json_schema_serialization_defaults_required=True):
    """The base of what a model writes. A default serves an answer that broke off; the model is asked for every field."""


class WrittenInterest(Answer):
    """One interest as the model writes it; `evidence` are labels of history lines."""

    name: Line(60)  # type: ignore[valid-type]
    weight: float = Field(0.5, ge=0, le=1)
    evidence: list[int] = Field(default_factory=list, max_length=5)


class WrittenName(Answer):
    """One item the model believes fits."""

    title: Line(80)  # type: ignore[valid-type]
    year: int | None = None


def Lines(least: int, most: int, asked: int | None = None) -> Any:  # noqa: N802  reads as the type's own field
    """A list bounded in length. The least is asked of the model, but an answer that falls short is still used; no more than is
    `asked`, where that is less than the most."""
    return Field(
        default_factory=list, max_length=most, json_schema_extra={"minItems": least, "maxItems": asked or most}
    )


class WrittenProfile(Answer):
    """The part of the answer that describes the person."""

    summary: Line(300) = ""  # type: ignore[valid-type]
    interests: list[WrittenInterest] = Lines(1, 5)
    avoid: list[Line(60)] = Lines(0, 3)  # type: ignore[valid-type]


class WrittenQueries(Answer):
    """The part of the answer that searches the catalog."""

    queries: list[Line(100)] = Lines(MIN_QUERIES, MOST_QUERIES, N_QUERIES)  # type: ignore[valid-type]


class TrainedQueries(WrittenQueries):
    """The same of a trained model, which ends by itself."""

    queries: list[Line(100)] = Lines(MIN_QUERIES, MOST_QUERIES)  # type: ignore[valid-type]


class WrittenNamed(Answer):
    """The part of the answer that names items outright."""

    named: list[WrittenName] = Lines(0, N_NAMED)


class WrittenSearch(WrittenNamed, WrittenQueries):
    """Queries, then names."""


class Written(WrittenNamed, WrittenQueries, WrittenProfile):
    """The whole answer of the interests and refresh prompts: one stable schema, so that servers compile it once."""


PARTS = ("profile", "queries", "named")
FORMS: Mapping[tuple[str, ...], type[BaseModel]] = {
    PARTS: Written,
    ("profile",): WrittenProfile,
    ("queries",): WrittenQueries,
    ("named",): WrittenNamed,
    ("queries", "named"): WrittenSearch,
}
"""The parts that can be asked for together, and the form of the answer."""
TRAINED: Mapping[str, type[BaseModel]] = {"queries": TrainedQueries, "named": WrittenNamed}
"""What a trained model is asked for, one part at a time."""
