"""Significance of the difference between two arms. Users, not cases, are the unit that is drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

ALPHA = 0.05
"""Level of significance: of 20 differences that are pure chance, about one passes."""
LEAST_USERS = 10
"""A decision needs at least this many users; fewer do not tell enough."""

_ROUNDS = 10_000
_ROUNDS_PER_PAIR = 400
_CHUNK = 1 << 21  # random numbers drawn at a time, 16 MB


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference between arm `a` and arm `b` in the mean of a measure.

    Args:
        a: name of the first arm.
        b: name of the second arm.
        measure: name of the measure.
        difference: mean of `a` minus mean of `b`.
        low: lower end of the difference's 95 % interval; None with fewer than two users.
        high: upper end of that interval.
        p: two-sided p value.
        p_holm: p value with Holm's correction, if it was made.
    """

    a: str
    b: str
    measure: str
    difference: float
    low: float | None
    high: float | None
    p: float
    p_holm: float | None = None

    @property
    def p_final(self) -> float:
        """The p value to report: with Holm's correction if it was made."""
        return self.p if self.p_holm is None else self.p_holm

    @property
    def significant(self) -> bool:
        """True if the p value to report is below 0.05."""
        return self.p_final < ALPHA

    def swapped(self) -> Comparison:
        """Return the same comparison with `a` and `b` exchanged."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return replace(self, a=self.b, b=self.a, difference=-self.difference, low=low, high=high)


def pays(gain: np.ndarray, users: Sequence[str], seed: int = 0) -> bool:
    """Return True if a gain is more than chance: at least 10 users, and `gain_p` below 0.05.

    This is the one rule by which tuning and training switch a stage on. `gain` (n_cases,) is a measure with the stage minus the
    same measure without it; `users` names the user of each case. To ask whether something got worse, pass the loss as the gain.
    """
    return len(set(users)) >= LEAST_USERS and gain_p(gain, users, seed) < ALPHA


def gain_p(gain: np.ndarray, users: Sequence[str], seed: int = 0) -> float:
    """Return the p value of a gain (n_cases,) in a one-sided paired randomisation test over users.

    In each of 10,000 random draws, each user's gain is kept or changes its sign, for all cases of the user together. The p value
    is the share of draws whose total is at least the observed one.
    """
    sums = _by_user(np.asarray(gain, dtype=np.float64)[:, None], users)[0][:, 0]
    sums = sums[sums != 0]  # a user without a gain adds nothing to any total
    as_large = sum(int((signs @ sums >= sums.sum() - 1e-9).sum()) for signs in _signs(len(sums), _ROUNDS, seed))
    return (1 + as_large) / (1 + _ROUNDS)


def compare_all(
    values: Mapping[str, np.ndarray],
    users: Sequence[str],
    *,
    measure: str,
    pairs: Iterable[tuple[str, str]] | None = None,
    seed: int = 0,
    rounds: int | None = None,
) -> list[Comparison]:
    """Compare pairs of arms on the same cases, with the same random draws for all pairs.

    The p value is that of a two-sided paired randomisation test: for each user the values of the two arms are swapped or not, for
    all cases of the user together. The interval is the 95 % percentile interval of a bootstrap over users. In both,
    cases weigh equally, so a user with more cases weighs more.

    Args:
        values: the measure of each arm on each case, (n_cases,) by arm.
        users: the user of each case.
        measure: name of the measure.
        pairs: pairs of arms to compare; all of them by default.
        seed: seed of the random draws.
        rounds: number of random draws. By default 10,000, and more for many pairs: no p value can be below one over the
            number of draws, and Holm's correction multiplies it by the number of tests.
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


def compare_measures(
    values: Mapping[str, Mapping[str, np.ndarray]],
    users: Sequence[str],
    measures: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> list[Comparison]:
    """Compare pairs of arms in several measures. See `compare_all`.

    Args:
        values: the measures of each arm on each case, (n_cases,) by arm and measure.
        users: the user of each case.
        measures: names of the measures to compare in.
        pairs: pairs of arms to compare.
    """
    found: list[Comparison] = []
    for measure in measures if pairs else ():
        found += compare_all({arm: own[measure] for arm, own in values.items()}, users, measure=measure, pairs=pairs)
    return found


def correct_by_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with `p_holm`: p values corrected for one family of tests (Holm, 1979)."""
    corrected = list(comparisons)
    worst = 0.0
    for tested, row in enumerate(sorted(range(len(corrected)), key=lambda row: corrected[row].p)):
        worst = max(worst, min(1.0, (len(corrected) - tested) * corrected[row].p))
        corrected[row] = replace(corrected[row], p_holm=worst)
    return corrected


def bootstrap_intervals(
    values: Mapping[str, np.ndarray], users: Sequence[str], seed: int = 0, rounds: int = _ROUNDS
) -> dict[str, tuple[float | None, float | None]]:
    """Return the 95 % interval (low, high) of the mean of each measure, by a bootstrap over users.

    Args:
        values: the value of each measure on each case, (n_cases,) by measure.
        users: the user of each case.
        seed: seed of the random draws, the same ones for all measures.
        rounds: number of random draws.

    With fewer than two users an interval is (None, None).
    """
    sums, sizes = _by_user(np.column_stack(list(values.values())), users)
    resampled = _resampled(sums, sizes, rounds, seed)
    return {name: _bounds(resampled[:, row], len(sizes)) for row, name in enumerate(values)}


def _by_user(values: np.ndarray, users: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums over each user's cases (n_users, n_columns), and the number of cases of each user (n_users,)."""
    if len(values) != len(users):
        raise ValueError(f"{len(values)} values for the cases of {len(users)}")
    _, codes = np.unique(np.asarray(users, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(codes)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, codes, values)
    return sums, sizes


def _signs(n: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Yield random signs, 1.0 or -1.0, for n users: (draws, n) each, `rounds` draws together."""
    random = np.random.default_rng(seed)
    for size in _chunks(n, rounds):
        yield random.integers(0, 2, (size, n), dtype=np.int8) * 2.0 - 1.0


def _resampled(sums: np.ndarray, sizes: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """Return the means over cases when users are drawn with replacement, (rounds, n_columns)."""
    n = len(sizes)
    random = np.random.default_rng([seed, 1])
    means = []
    for size in _chunks(n, rounds):
        drawn = random.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        means.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(means)


def _chunks(n: int, rounds: int) -> Iterator[int]:
    """Yield numbers of draws that add up to `rounds` and need little memory for n users."""
    step = max(_CHUNK // max(n, 1), 1)
    for start in range(0, rounds, step):
        yield min(step, rounds - start)


def _bounds(means: np.ndarray, users: int) -> tuple[float | None, float | None]:
    if users < 2:
        return None, None
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
