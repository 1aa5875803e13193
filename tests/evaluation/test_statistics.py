"""Intervals against published numbers, arithmetic by hand, and coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import statistics as st


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    got = st.wilson(successes, n)
    assert got["value"] == pytest.approx(successes / n)
    assert got["n"] == n
    assert got["low"] == pytest.approx(low, abs=5e-5)
    assert got["high"] == pytest.approx(high, abs=5e-5)


def test_wilson_is_symmetric_and_stays_in_bounds() -> None:
    some, rest = st.wilson(3, 40), st.wilson(37, 40)
    assert some["low"] == pytest.approx(1 - rest["high"])
    assert st.wilson(40, 40)["high"] == 1.0
    assert st.wilson(0, 40)["low"] == 0.0


def test_nothing_measured_is_null_everywhere() -> None:
    none = st.cells([[], [None]])
    filled = st.cells([[1.0], [0.0]])
    nothing = {"value": None, "n": 0, "low": None, "high": None}
    assert st.wilson(0, 0) == nothing
    assert st.rate(none, 1) == nothing
    assert st.mean(none, 1) == nothing
    assert st.difference(none, filled, 1) == nothing
    assert st.distinct_share([[], []]) == nothing
    assert st.distinct_difference([[], ["a"]], [["a"], []]) == nothing


def test_cells_leave_out_what_is_not_applicable() -> None:
    assert st.cells([[1.0, None, 0.5], [None], [True, False]]).tolist() == [[1.5, 2.0], [0.0, 0.0], [1.0, 2.0]]


def test_rate_with_one_value_a_prompt_is_wilsons() -> None:
    assert st.rate(st.cells([[1.0]] * 3 + [[0.0]] * 7 + [[None]]), 1) == st.wilson(3, 10)


def test_rate_of_agreeing_prompts_counts_prompts_not_samples() -> None:
    got = st.rate(st.cells([[1.0] * 10] * 20), 1)
    assert got["n"] == 200
    assert got["low"] == st.wilson(20, 20)["low"]
    assert got["high"] == 1.0


def test_clustered_rate_is_wider_than_if_samples_were_independent() -> None:
    rows = [[1.0] * 8] * 20 + [[0.0] * 8] * 20
    clustered, independent = st.rate(st.cells(rows), 1), st.wilson(160, 320)
    width = [float(x["high"] or 0) - float(x["low"] or 0) for x in (clustered, independent)]
    assert clustered["value"] == 0.5
    assert clustered["n"] == 320
    assert width[0] == pytest.approx(width[1] * 8**0.5, rel=0.1)


def test_mean_weighs_values_not_prompts() -> None:
    got = st.mean(st.cells([[4.0], [1.0, 1.0, 1.0], [None]]), 1)
    assert got["value"] == pytest.approx(7 / 4)
    assert got["n"] == 4


def test_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    got = st.mean(st.cells([[v] for v in values]), 1)
    half = 1.96 * values.std(ddof=1) / 20
    assert got["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert got["high"] == pytest.approx(values.mean() + half, abs=0.03)


def test_one_prompt_tells_no_interval() -> None:
    assert st.mean(st.cells([[1.0, 2.0]]), 1) == {"value": 1.5, "n": 2, "low": None, "high": None}


def test_seed_decides_the_draws() -> None:
    of_prompts = st.cells([[float(v)] for v in np.random.default_rng(0).normal(size=30)])
    assert st.mean(of_prompts, 1) == st.mean(of_prompts, 1)
    assert st.mean(of_prompts, 1) != st.mean(of_prompts, 2)


def test_bootstrap_covers_the_truth_when_samples_are_clustered() -> None:
    rng, covered, runs = np.random.default_rng(7), 0, 200
    for _ in range(runs):
        prompt_effect = rng.normal(0, 1, (60, 1))
        values = 3.0 + prompt_effect + rng.normal(0, 0.3, (60, 6))
        got = st.mean(st.cells(values.tolist()), 1)
        covered += float(got["low"] or 0) <= 3.0 <= float(got["high"] or 0)
    assert 0.90 <= covered / runs <= 0.985


def test_pairing_removes_what_prompts_share() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, 50)
    first = st.cells([[v] for v in hard + 1.0 + rng.normal(0, 0.1, 50)])
    second = st.cells([[v] for v in hard])
    got = st.difference(first, second, 1)
    assert got["value"] == pytest.approx(1.0, abs=0.06)
    assert got["n"] == 50
    assert 0.9 < float(got["low"] or 0) < float(got["high"] or 0) < 1.1


def test_difference_takes_the_prompts_that_both_have() -> None:
    got = st.difference(st.cells([[1.0], [2.0], [None]]), st.cells([[0.0], [None], [5.0]]), 1)
    assert (got["value"], got["n"]) == (1.0, 1)


@pytest.mark.parametrize(("first", "second", "value"), [(1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 1.0, -1.0)])
def test_unanimous_difference_of_rates_is_no_certainty(first: float, second: float, value: float) -> None:
    got = st.difference(st.cells([[first]] * 100), st.cells([[second]] * 100), 1, is_rate=True)
    doubt = 1 - float(st.wilson(100, 100)["low"] or 0)
    assert got["value"] == value
    assert got["low"] == pytest.approx(max(-1, value - doubt))
    assert got["high"] == pytest.approx(min(1, value + doubt))


def test_distinct_share_by_hand() -> None:
    got = st.distinct_share([["a"], ["b"], ["a"], []])
    # without each: {b, a} of 2 = 1, {a} of 2 = 0.5, {a, b} of 2 = 1; mean 5/6; sum of squares 1/6; times 2/3 = 1/9
    assert got["value"] == pytest.approx(2 / 3)
    assert got["n"] == 3
    assert got["low"] == pytest.approx(2 / 3 - st.Z / 3)
    assert got["high"] == 1.0


def test_distinct_share_covers_repeated_experiments() -> None:
    rng, covered = np.random.default_rng(5), 0
    expected = 60 * (1 - (1 - 1 / 60) ** 100) / 100
    for _ in range(200):
        got = st.distinct_share([[int(v)] for v in rng.integers(60, size=100)])
        covered += float(got["low"] or 0) <= expected <= float(got["high"] or 0)
    assert covered >= 0.93 * 200


def test_distinct_difference_is_paired() -> None:
    same = [["a"], ["b"], ["c"], ["a"]]
    got = st.distinct_difference(same, same)
    assert (got["value"], got["n"], got["low"], got["high"]) == (0.0, 4, 0.0, 0.0)
    repeated = st.distinct_difference(same, [["a"]] * 4)
    assert repeated["value"] == 0.5
