"""Grounding: a title the model named becomes a catalog id, or it does not count as an item."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from rapidfuzz import fuzz, process

from agent.item_text import normalize_title, truncate_title
from agent.results import Named
from store.snapshot import Snapshot

CLOSE = 90
"""rapidfuzz ratio (0-100) from which two plain titles are the same."""


def ground(named: Named, snapshot: Snapshot) -> Named:
    """The name with the id of the catalog item it means, or with None.

    Titles match fuzzily; among equals the one with the named year wins, and a year that contradicts by more than one rules out.
    """
    title, year = named.title, named.year
    if normalize_title(title) not in _rows_by_title(snapshot):  # "Blade Runner 2049" is one, "Heat 1995" is none
        title, year = _split_year(title, year)
    wanted = normalize_title(title)
    if not wanted:
        return named
    matches = process.extract(wanted, _plain_titles(snapshot), scorer=fuzz.ratio, score_cutoff=CLOSE, limit=8)
    best: tuple[float, int] | None = None
    for _, score, row in matches:
        facet = re.search(r"\b(1[89]|20)\d\d\b", snapshot.facets[row])
        if year and facet:
            if abs(int(facet.group()) - year) > 1:
                continue
            score += 10
        if not snapshot.hidden[row] and (best is None or score > best[0]):
            best = (score, row)
    return replace(named, id=snapshot.ids[best[1]] if best else None)


def rows_of_title(query: str, snapshot: Snapshot) -> list[int]:
    """The rows of the items whose title the query is, whole or as prompts cut it, or begins with before a comma and words for
    their kind ("Heat, Crime"; of several such beginnings the longest)."""
    parts = query.split(",")
    beginnings = (normalize_title(",".join(parts[:end])) for end in range(len(parts), 0, -1))
    return next((rows for said in beginnings if (rows := _rows_by_title(snapshot).get(said))), [])


@lru_cache(maxsize=4)
def _plain_titles(snapshot: Snapshot) -> list[str]:
    return [normalize_title(title) for title in snapshot.titles]


@lru_cache(maxsize=4)
def _rows_by_title(snapshot: Snapshot) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, title in enumerate(snapshot.titles):
        for said in {normalize_title(title), normalize_title(truncate_title(title))}:
            found.setdefault(said, []).append(row)
    found.pop("", None)
    return found


def _split_year(title: str, year: int | None) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.+?)\s*\(?((?:1[89]|20)\d\d)\)?\s*", title)
    return (found.group(1), int(found.group(2))) if found else (title, year)
