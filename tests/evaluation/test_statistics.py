"""Intervals against published numbers, arithmetic by hand, and coverage in simulations."""

from __future__ import annotations

from statistics import NormalDist

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


def test_bootstrap_of_any_statistic_of_units() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    got = st.bootstrap(lambda drawn: values[drawn].mean(axis=1), 400, seed=1)
    error = values.std() / 20
    assert got["value"] == pytest.approx(values.mean())
    assert (got["low"], got["high"]) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=error / 5
    )
    assert got["n"] == 400
    assert st.bootstrap(lambda drawn: values[drawn].mean(axis=1), 400, seed=1, n=800)["n"] == 800


def test_bootstrap_is_paired_by_units_and_seed() -> None:
    values = np.random.default_rng(0).normal(size=50)
    seen: list[list[tuple[int, ...]]] = [[], []]
    for found in seen:
        st.bootstrap(lambda drawn, found=found: found.extend(map(tuple, drawn)) or values[drawn].mean(axis=1), 50, 7)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == st.RESAMPLES + 1, "the units themselves, then as many draws"


def test_bootstrap_does_not_hold_all_draws_at_once() -> None:
    sizes = []
    st.bootstrap(lambda drawn: sizes.append(drawn.size) or drawn[:, 0] * 1.0, 5000, 0)
    assert max(sizes) <= st.DRAWN_AT_ONCE
    assert sum(sizes) == (st.RESAMPLES + 1) * 5000


def test_bootstrap_where_a_statistic_is_not_defined() -> None:
    def nan(drawn: st.Indices) -> st.Cells:
        return np.full(len(drawn), np.nan)

    def one(drawn: st.Indices) -> st.Cells:
        return np.ones(len(drawn))

    def often(drawn: st.Indices) -> st.Cells:
        whole = (np.diff(drawn) == 1).all(axis=1)
        return np.where(whole, 2.0, np.where((drawn == 0).any(axis=1), np.nan, 3.0))

    nothing = {"value": None, "n": 0, "low": None, "high": None}
    assert st.bootstrap(nan, 4, 0) == nothing
    assert st.bootstrap(one, 0, 0) == nothing
    assert st.bootstrap(one, 4, 0) == {"value": 1.0, "n": 4, "low": 1.0, "high": 1.0}
    assert st.bootstrap(one, 1, 0) == {"value": 1.0, "n": 1, "low": None, "high": None}
    assert st.bootstrap(often, 4, 0) == {"value": 2.0, "n": 4, "low": None, "high": None}, "two draws in three are NaN"


def test_spearman_is_the_correlation_of_ranks_with_ties() -> None:
    first = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 9.0], [1.0, 1.0, 1.0]])
    second = np.array([[9.0, 5.0, 8.0], [0.1, 0.2, 50.0], [1.0, 2.0, 3.0]])
    by_row = st.spearman(first, second)
    assert by_row[:2] == pytest.approx([-0.5, 1.5 / (1.5 * 2) ** 0.5]), "ranks 1.5, 1.5, 3 against 1, 2, 3"
    assert np.isnan(by_row[2])


def test_auroc_counts_pairs_and_its_bounds_solve_the_score_equation() -> None:
    got = st.auroc(np.array([3.0, 2.0]), np.array([1.0, 2.0]))
    assert got["value"] == 3.5 / 4
    assert got["n"] == 4
    rng = np.random.default_rng(0)
    got = st.auroc(rng.normal(1, 1, 30), rng.normal(0, 1, 50))
    for bound in (got["low"], got["high"]):
        spread = bound * (1 - bound) * (1 + 39 * ((1 - bound) / (2 - bound) + bound / (1 + bound))) / 1500
        assert abs(bound - got["value"]) == pytest.approx(st.Z * spread**0.5)
    assert got["low"] < got["value"] < got["high"]


def test_auroc_is_not_certain_where_nothing_overlaps() -> None:
    apart = st.auroc(np.arange(10.0, 20), np.arange(10.0))
    assert (apart["value"], apart["high"]) == (1.0, 1.0)
    assert 0.7 < apart["low"] < 0.95
    below = st.auroc(np.arange(10.0), np.arange(10.0, 20))
    assert below == {"value": 0.0, "n": 20, "low": 0.0, "high": pytest.approx(1 - apart["low"])}
    more = st.auroc(np.arange(100.0, 200), np.arange(100.0))
    assert apart["low"] < more["low"] < 1
    assert st.auroc(np.array([]), np.arange(3.0))["value"] is None


def test_auroc_interval_covers_the_truth_at_its_rate() -> None:
    rng = np.random.default_rng(3)
    truth = NormalDist().cdf(1.5 / 2**0.5)
    hits = 0
    for _ in range(300):
        got = st.auroc(rng.normal(1.5, 1, 25), rng.normal(0, 1, 25))
        hits += got["low"] <= truth <= got["high"]
    assert 0.92 <= hits / 300 <= 0.99


def test_ratios_over_different_prompts_are_compared_on_all_that_either_counts() -> None:
    first = np.array([[1.0, 1], [1, 1], [0, 0], [0, 0], [0, 0]])
    second = np.array([[0.0, 0], [1, 1], [0, 1], [0, 1], [0, 0]])
    found = st.ratio_difference(first, second, 0)
    assert found["value"] == pytest.approx(1 - 1 / 3)
    assert found["n"] == 4, "the prompt that neither counts is none of theirs"
    assert found["low"] < found["value"] <= found["high"]  # type: ignore[operator]
    backwards = st.ratio_difference(second, first, 0)
    assert backwards["value"] == -found["value"]  # type: ignore[operator]
    assert backwards["low"] == pytest.approx(-found["high"])  # type: ignore[operator]
    assert st.ratio_difference(first, np.zeros((5, 2)), 0) == st.NOTHING


def test_equal_ratios_leave_a_doubt() -> None:
    both = np.array([[1.0, 1.0]] * 20)
    found = st.ratio_difference(both, both, 0)
    assert found["value"] == 0 and -0.17 < found["low"] < -0.15  # type: ignore[operator]
    assert found == st.difference(both, both, 0, is_rate=True)
