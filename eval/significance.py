"""Whether a difference between two arms is more than luck: users, not cases, are what is drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

_ROUNDS = 10_000
_ROUNDS_PER_PAIR = 400
_CHUNK = 1 << 21  # random numbers at a time: 16 MB of them


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm `a` less arm `b` in the mean of a measure: the difference, its 95 % interval (None with fewer than two users), the
    probability of one as large by chance, and that with Holm's correction."""

    a: str
    b: str
    measure: str
    difference: float
    low: float | None
    high: float | None
    p: float
    p_holm: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def compare(
    values_a: np.ndarray,
    values_b: np.ndarray,
    users: Sequence[str],
    *,
    measure: str,
    a: str = "a",
    b: str = "b",
    seed: int = 0,
    rounds: int = _ROUNDS,
) -> Comparison:
    """Compare two arms on the same cases, (n_cases,) each; `users` says whose each case is. See `compare_all`."""
    return compare_all({a: values_a, b: values_b}, users, measure=measure, seed=seed, rounds=rounds)[0]


def compare_all(
    values: Mapping[str, np.ndarray],
    users: Sequence[str],
    *,
    measure: str,
    pairs: Iterable[tuple[str, str]] | None = None,
    seed: int = 0,
    rounds: int | None = None,
) -> list[Comparison]:
    """Compare pairs of arms (all of them by default) on the same cases, with the same random draws for all pairs.

    The p value is that of a paired randomisation test (two-sided): for each user the two arms' values are swapped or not, all
    cases of a user together. The interval is the 95 % percentile interval of a bootstrap that draws users. In both,
    cases weigh equally, so a user with more cases weighs more. `rounds` of the test: 10,000, and more for many pairs, since
    no p value can be less than one over the rounds, and Holm's correction multiplies it by the number of tests.
    """
    sums, sizes = _by_user(np.column_stack(list(values.values())), users)
    rows = {arm: row for row, arm in enumerate(values)}
    wanted = list(combinations(values, 2)) if pairs is None else list(pairs)
    left = np.array([rows[a] for a, _ in wanted], dtype=np.intp)
    right = np.array([rows[b] for _, b in wanted], dtype=np.intp)
    totals = sums.sum(axis=0)
    observed = totals[left] - totals[right]
    flips = max(_ROUNDS, _ROUNDS_PER_PAIR * len(wanted)) if rounds is None else rounds
    as_large = np.zeros(len(wanted))
    for signs in _signs(len(sizes), flips, seed):
        flipped = signs @ sums
        as_large += (np.abs(flipped[:, left] - flipped[:, right]) >= np.abs(observed) - 1e-9).sum(axis=0)
    resampled = _resampled(sums, sizes, rounds or _ROUNDS, seed)
    compared = []
    for row, (a, b) in enumerate(wanted):
        low, high = _bounds(resampled[:, left[row]] - resampled[:, right[row]], len(sizes))
        p = (1 + as_large[row]) / (1 + flips)
        compared.append(Comparison(a, b, measure, float(observed[row] / sizes.sum()), low, high, float(p)))
    return compared


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with `p_holm`: their p values corrected for being one family of tests (Holm, 1979)."""
    corrected = list(comparisons)
    worst = 0.0
    for tested, row in enumerate(sorted(range(len(corrected)), key=lambda row: corrected[row].p)):
        worst = max(worst, min(1.0, (len(corrected) - tested) * corrected[row].p))
        corrected[row] = replace(corrected[row], p_holm=worst)
    return corrected


def intervals(
    values: Mapping[str, np.ndarray], users: Sequence[str], seed: int = 0, rounds: int = _ROUNDS
) -> dict[str, tuple[float | None, float | None]]:
    """The 95 % bootstrap intervals over users of the means of these measures, (n_cases,) each, from the same draws; None with fewer
    than two users."""
    sums, sizes = _by_user(np.column_stack(list(values.values())), users)
    resampled = _resampled(sums, sizes, rounds, seed)
    return {name: _bounds(resampled[:, row], len(sizes)) for row, name in enumerate(values)}


def _by_user(values: np.ndarray, users: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums over each user's cases (n_users, n_columns), and how many cases each has (n_users,)."""
    if len(values) != len(users):
        raise ValueError(f"{len(values)} values for the cases of {len(users)}")
    _, codes = np.unique(np.asarray(users, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(codes)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, codes, values)
    return sums, sizes


def _signs(n: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    for size in _chunks(n, rounds):
        yield random.integers(0, 2, (size, n), dtype=np.int8) * 2.0 - 1.0


def _resampled(sums: np.ndarray, sizes: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """The mean over cases when users are drawn with replacement, (rounds, n_columns)."""
    n = len(sizes)
    random = np.random.default_rng([seed, 1])
    means = []
    for size in _chunks(n, rounds):
        drawn = random.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        means.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(means)


def _chunks(n: int, rounds: int) -> Iterator[int]:
    step = max(_CHUNK // max(n, 1), 1)
    for start in range(0, rounds, step):
        yield min(step, rounds - start)


def _bounds(means: np.ndarray, users: int) -> tuple[float | None, float | None]:
    if users < 2:
        return None, None
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
