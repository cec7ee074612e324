"""All values of a catalog's metadata fields, for reading the words of a conversation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.cache import load_or_build

if TYPE_CHECKING:
    from store.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Values:
    """The values of the items that are not hidden.

    `strings[field]` maps each text to the number of items that have it; `quantiles[field]` holds the numbers at 1/3, 1/2 and 2/3.
    """

    strings: dict[str, dict[str, int]]
    quantiles: dict[str, tuple[float, float, float]]

    @classmethod
    def of(cls, catalog: Catalog) -> Values:
        """Return the values of the present catalog, from the cache if they are there."""
        return load_or_build(catalog.cache_folder, "values", catalog.version, lambda: _build(catalog), _save, _load)


def _build(catalog: Catalog) -> Values:
    strings: dict[str, Counter[str]] = {}
    numbers: dict[str, list[float]] = {}
    for item in catalog.items():
        if item.hidden:
            continue
        for name, value in item.metadata.items():
            one: Any
            for one in set(value) if isinstance(value, list) else {value}:
                if isinstance(one, str):
                    strings.setdefault(name, Counter())[one] += 1
                elif not isinstance(one, bool):
                    numbers.setdefault(name, []).append(float(one))
    return Values(
        {name: dict(counts.most_common()) for name, counts in strings.items()},
        {name: _quantiles(found) for name, found in numbers.items()},
    )


def _quantiles(numbers: list[float]) -> tuple[float, float, float]:
    low, middle, high = (float(q) for q in np.quantile(numbers, (1 / 3, 1 / 2, 2 / 3), method="nearest"))
    return low, middle, high


def _save(values: Values, folder: Path) -> None:
    row = {"strings": values.strings, "quantiles": values.quantiles}
    (folder / "values.json").write_text(json.dumps(row), encoding="utf-8")


def _load(folder: Path) -> Values:
    row = json.loads((folder / "values.json").read_text(encoding="utf-8"))
    return Values(row["strings"], {name: (q[0], q[1], q[2]) for name, q in row["quantiles"].items()})
