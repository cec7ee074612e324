"""The paired test, the intervals and the correction: against exact values, and against what they promise on noise."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from eval.significance import Comparison, compare, compare_all, holm, intervals


def test_p_is_that_of_all_sign_flips_of_whole_users() -> None:
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


def test_cases_of_one_user_are_not_taken_for_independent() -> None:
    random = np.random.default_rng(2)
    of_user = np.repeat(random.normal(0, 1, 40), 25)
    noise = random.normal(0, 0.1, 1000)
    users = [str(n // 25) for n in range(1000)]
    together = intervals({"m": of_user + noise}, users)["m"]
    alone = intervals({"m": of_user + noise}, [str(n) for n in range(1000)])["m"]
    assert (together[1] or 0) - (together[0] or 0) > 3 * ((alone[1] or 0) - (alone[0] or 0))


def test_on_noise_one_in_twenty_is_significant_and_the_interval_holds_the_truth() -> None:
    random = np.random.default_rng(3)
    tests = 300
    low, inside = 0, 0
    for seed in range(tests):
        a, b = random.random(60), random.random(60)
        found = compare(a, b, [str(n % 30) for n in range(60)], measure="m", rounds=400, seed=seed)
        low += found.p < 0.05
        inside += (found.low or 0) <= 0 <= (found.high or 0)
    assert low / tests == pytest.approx(0.05, abs=0.035)
    assert inside / tests == pytest.approx(0.94, abs=0.04)


def test_a_clear_difference_is_found_and_none_is_not() -> None:
    random = np.random.default_rng(4)
    b = random.random(300)
    users = [str(n) for n in range(300)]
    assert compare(b + 0.2, b, users, measure="m").p < 0.001
    same = compare(b, b, users, measure="m")
    assert (same.p, same.difference, same.low, same.high) == (1.0, 0.0, 0.0, 0.0)


def test_one_user_has_no_interval() -> None:
    found = compare(np.array([1.0, 0.5]), np.array([0.0, 0.0]), ["u", "u"], measure="m", rounds=100)
    assert found.p == 1.0 and (found.low, found.high) == (None, None)


def test_all_pairs_share_their_draws_and_agree_with_single_ones() -> None:
    random = np.random.default_rng(5)
    values = {name: random.random(90) for name in "abc"}
    users = [str(n % 40) for n in range(90)]
    every = compare_all(values, users, measure="m", seed=7, rounds=3000)
    assert [(each.a, each.b) for each in every] == [("a", "b"), ("a", "c"), ("b", "c")]
    single = compare(values["a"], values["c"], users, measure="m", a="a", b="c", seed=7, rounds=3000)
    assert single.p == every[1].p and single.low == pytest.approx(every[1].low)
    chosen = compare_all(values, users, measure="m", pairs=[("c", "a")], seed=7, rounds=3000)[0]
    assert chosen.difference == pytest.approx(-single.difference) and chosen.p == single.p
    one = intervals({"b": values["b"]}, users, seed=7, rounds=500)
    assert intervals(values, users, seed=7, rounds=500)["b"] == pytest.approx(one["b"])


def test_many_pairs_can_still_be_significant_after_the_correction() -> None:
    random = np.random.default_rng(6)
    base = random.random(200)
    values = {f"arm{n}": base + n * 0.1 for n in range(12)}
    users = [str(n) for n in range(200)]
    assert all((each.p_holm or 1) < 0.05 for each in holm(compare_all(values, users, measure="m")))


def test_holm() -> None:
    def comparison(p: float) -> Comparison:
        return Comparison("a", "b", "m", 0.1, 0.0, 0.2, p)

    corrected = holm([comparison(p) for p in (0.04, 0.01, 0.03, 0.5)])
    assert [each.p_holm for each in corrected] == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert [each.p for each in corrected] == [0.04, 0.01, 0.03, 0.5]
    assert holm([]) == []


def test_values_and_users_must_match() -> None:
    with pytest.raises(ValueError, match="3 values for the cases of 2"):
        intervals({"m": np.zeros(3)}, ["u", "v"])
