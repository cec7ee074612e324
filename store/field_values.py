"""All values of a catalog's metadata fields, for reading the words of a conversation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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
    quantiles: dict[str, list[float]]

    @classmethod
    def of(cls, catalog: Catalog) -> Values:
        """Return the values of the present catalog, from the cache if they are there."""
        return load_or_build(catalog.cache_folder, "values", catalog.version, cls, lambda: _build(catalog))


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
        {name: np.quantile(found, (1 / 3, 1 / 2, 2 / 3), method="nearest").tolist() for name, found in numbers.items()},
    )
