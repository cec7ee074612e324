"""Find themes that recur in a history, by counting. They are the draft in a prompt, which the model is asked to improve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from prompts.cleaning import listed

_STOP = frozenset(
    "and assorted black blue compatible count for from in into of original pack set the this to with your".split()
)


class Theme(NamedTuple):
    """A theme: its name, its weight from 0 to 1, and the labels of the history lines that show it."""

    name: str
    weight: float
    labels: list[Any]


def recurring(history: Iterable[Mapping[str, Any]], most: int = 4) -> list[Theme]:
    """Return up to `most` themes that at least two lines share, the most frequent and specific first.

    Themes are facts or words of titles. Facts are split at commas and semicolons; numbers and two-letter codes are left out. If
    nothing recurs, the newest lines are returned. Each line needs a title and a label.
    """
    lines = list(history)
    found: dict[str, tuple[str, float, list[Any]]] = {}
    for line in lines:
        for name, worth in _names(line).items():
            found.setdefault(name.casefold(), (name, worth, []))[2].append(line["label"])
    shared = [entry for entry in found.values() if len(entry[2]) > 1]
    kept: list[Theme] = []
    for name, _, labels in sorted(shared, key=lambda entry: -entry[1] * len(entry[2])):
        # "Cartridge" adds nothing to "Toner Cartridge".
        if not any(
            name.casefold() in other.name.casefold() or other.name.casefold() in name.casefold() for other in kept
        ):
            kept.append(Theme(name, round(len(labels) / len(lines), 2), labels[-5:]))
    return kept[:most] or [
        Theme(_title_start(line), round(1 / len(lines), 2), [line["label"]]) for line in lines[:-4:-1]
    ]


def held(interests: Iterable[Mapping[str, Any]]) -> list[Theme]:
    """Return the interests of an earlier profile as themes, without labels: their evidence is not among the present lines."""
    return [Theme(interest["name"], interest["weight"], []) for interest in interests]


def common(item: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the facts that the item shares with its first evidence, which is the item that the draft names.

    The list is empty if that item is not among the lines of the history.
    """
    evidence_facts = {fact for line in history if line["title"] in item["evidence"][:1] for fact in _facts(line)}
    return [fact for fact in _facts(item) if fact in evidence_facts]


def _title_start(line: Mapping[str, Any]) -> str:
    return " ".join(str(line["title"]).split()[:4])


def _names(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the possible themes of a line with their weights: 2 for a fact, 1.6 for two words of the title, 1 for one word."""
    words = [
        word if word.casefold() not in _STOP else "" for word in re.findall(r"[^\W\d_]{3,}|\S", str(line["title"]))
    ]
    pairs = (f"{a} {b}" for a, b in pairwise(words) if len(a) > 2 and len(b) > 2)
    return {word: 1.0 for word in words if len(word) > 3} | dict.fromkeys(pairs, 1.6) | dict.fromkeys(_facts(line), 2.0)


def _facts(line: Mapping[str, Any]) -> list[str]:
    parts = (part.strip() for part in re.split(r"[;,]", listed(line.get("facts") or "")))
    return [part for part in parts if len(part) > 2 and re.search(r"[^\W\d_]{2}", part)]
