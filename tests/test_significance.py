"""Significance: p values, intervals and Holm's correction equal exact values, and hold their error rate on noise."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from eval.significance import (
    LEAST_USERS,
    Comparison,
    bootstrap_intervals,
    compare_all,
    correct_by_holm,
    gain_p,
    pays,
)


def compare(a: np.ndarray, b: np.ndarray, users: list[str], measure: str = "m", **given: int) -> Comparison:
    """Compare two arms."""
    return compare_all({"a": a, "b": b}, users, measure=measure, **given)[0]


def test_p_value_equals_exact_test_over_all_sign_flips_of_users() -> None:
    random = np.random.default_rng(1)
    users = [f"u{n}" for n in (0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 6, 7)]
    a, b = random.random(12), random.random(12) * 0.6
    sums = np.array([(a - b)[[u == user for u in users]].sum() for user in sorted(set(users))])
    flips = np.array([sum(s * x for s, x in zip(signs, sums, strict=True)) for signs in product((-1, 1), repeat=8)])
    exact = np.mean(np.abs(flips) >= abs(sums.sum()) - 1e-9)
    found = compare(a, b, users, measure="ndcg@10", rounds=40_000)
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.low is not None and found.high is not None and found.low < found.difference < found.high


def test_interval_is_wider_if_cases_belong_to_few_users() -> None:
    random = np.random.default_rng(2)
    of_user = np.repeat(random.normal(0, 1, 40), 25)
    noise = random.normal(0, 0.1, 1000)
    users = [str(n // 25) for n in range(1000)]
    together = bootstrap_intervals({"m": of_user + noise}, users)["m"]
    alone = bootstrap_intervals({"m": of_user + noise}, [str(n) for n in range(1000)])["m"]
    assert (together[1] or 0) - (together[0] or 0) > 3 * ((alone[1] or 0) - (alone[0] or 0))


def test_on_noise_5_percent_are_significant_and_intervals_contain_zero() -> None:
    random = np.random.default_rng(3)
    tests = 300
    low, inside = 0, 0
    for seed in range(tests):
        a, b = random.random(60), random.random(60)
        found = compare(a, b, [str(n % 30) for n in range(60)], rounds=400, seed=seed)
        low += found.p < 0.05
        inside += (found.low or 0) <= 0 <= (found.high or 0)
    assert low / tests == pytest.approx(0.05, abs=0.035)
    assert inside / tests == pytest.approx(0.94, abs=0.04)


def test_clear_difference_is_significant_and_equal_arms_are_not() -> None:
    random = np.random.default_rng(4)
    b = random.random(300)
    users = [str(n) for n in range(300)]
    assert compare(b + 0.2, b, users).p < 0.001
    same = compare(b, b, users)
    assert (same.p, same.difference, same.low, same.high) == (1.0, 0.0, 0.0, 0.0)


def test_gain_p_equals_exact_one_sided_test_over_all_sign_flips_of_users() -> None:
    random = np.random.default_rng(7)
    users = [f"u{n}" for n in (0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8)]
    gain = random.random(13) - 0.3
    gain[-1] = 0.0  # a user without a gain changes nothing
    sums = np.array([gain[[u == user for u in users]].sum() for user in sorted(set(users))])
    flips = np.array([np.dot(signs, sums) for signs in product((-1, 1), repeat=len(sums))])
    assert gain_p(gain, users) == pytest.approx(np.mean(flips >= sums.sum() - 1e-9), abs=0.01)
    assert gain_p(-gain, users) == pytest.approx(np.mean(-flips >= -sums.sum() - 1e-9), abs=0.01)
    assert gain_p(gain, users) == gain_p(gain, users)


def test_gain_p_is_half_of_two_sided_p_for_a_gain() -> None:
    random = np.random.default_rng(8)
    a, b, users = random.random(200) + 0.04, random.random(200), [str(n // 2) for n in range(200)]
    assert gain_p(a - b, users) == pytest.approx(compare(a, b, users).p / 2, abs=0.01)


def test_pays_accepts_5_percent_of_useless_stages() -> None:
    random = np.random.default_rng(9)
    users = [str(n // 2) for n in range(120)]
    accepted = [pays(np.repeat(random.normal(0, 1, 60), 2), users, seed) for seed in range(200)]
    assert np.mean(accepted) == pytest.approx(0.05, abs=0.03)


def test_pays_needs_a_gain_and_enough_users() -> None:
    users = [str(n) for n in range(LEAST_USERS)]
    gain = np.full(LEAST_USERS, 0.1)
    assert pays(gain, users)
    assert not pays(gain[1:], users[1:])
    assert not pays(np.repeat(gain, 3), users[1:] * 3 + users[1:4])
    assert not pays(-gain, users)
    assert not pays(np.zeros(LEAST_USERS), users)


def test_one_gain_of_many_users_does_not_pay() -> None:
    # A normal approximation with few changed users would be too sure; the randomisation test is not.
    gain = np.zeros(100)
    gain[:4] = 0.5
    users = [str(n) for n in range(100)]
    assert gain_p(gain, users) == pytest.approx(1 / 16, abs=0.01) and not pays(gain, users)
    gain[4] = 0.5
    assert pays(gain, users)


def test_one_user_has_no_interval() -> None:
    found = compare(np.array([1.0, 0.5]), np.array([0.0, 0.0]), ["u", "u"], rounds=100)
    assert found.p == 1.0 and (found.low, found.high) == (None, None)


def test_comparing_all_pairs_equals_comparing_single_pairs() -> None:
    random = np.random.default_rng(5)
    values = {name: random.random(90) for name in "abc"}
    users = [str(n % 40) for n in range(90)]
    every = compare_all(values, users, measure="m", seed=7, rounds=3000)
    assert [(each.a, each.b) for each in every] == [("a", "b"), ("a", "c"), ("b", "c")]
    (single,) = compare_all({name: values[name] for name in "ac"}, users, measure="m", seed=7, rounds=3000)
    assert single.p == every[1].p and single.low == pytest.approx(every[1].low)
    chosen = compare_all(values, users, measure="m", pairs=[("c", "a")], seed=7, rounds=3000)[0]
    assert chosen.difference == pytest.approx(-single.difference) and chosen.p == single.p
    one = bootstrap_intervals({"b": values["b"]}, users, seed=7, rounds=500)
    assert bootstrap_intervals(values, users, seed=7, rounds=500)["b"] == pytest.approx(one["b"])


def test_many_pairs_can_be_significant_after_holm_correction() -> None:
    random = np.random.default_rng(6)
    base = random.random(200)
    values = {f"arm{n}": base + n * 0.1 for n in range(12)}
    users = [str(n) for n in range(200)]
    assert all((each.p_holm or 1) < 0.05 for each in correct_by_holm(compare_all(values, users, measure="m")))


def test_holm_correction_equals_values_worked_out_by_hand() -> None:
    def comparison(p: float) -> Comparison:
        return Comparison("a", "b", "m", 0.1, 0.0, 0.2, p)

    corrected = correct_by_holm([comparison(p) for p in (0.04, 0.01, 0.03, 0.5)])
    assert [each.p_holm for each in corrected] == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert [each.p for each in corrected] == [0.04, 0.01, 0.03, 0.5]
    assert correct_by_holm([]) == []


def test_values_without_a_user_each_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values for the cases of 2"):
        bootstrap_intervals({"m": np.zeros(3)}, ["u", "v"])
