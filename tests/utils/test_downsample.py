from __future__ import annotations

import math

import numpy as np
import pytest

from utils.downsample import extremes


def test_a_short_series_stays_whole() -> None:
    kept = extremes(np.array([1.0, math.nan, 3.0, 2.0]), most=4)
    assert kept.indices.tolist() == [0, 1, 2, 3]
    assert np.array_equal(kept.means, [1.0, math.nan, 3.0, 2.0], equal_nan=True)


def test_by_hand() -> None:
    values = np.array([5.0, 1.0, 9.0, 5.0, 2.0, 2.0, 8.0, 4.0, 4.0, 4.0])
    kept = extremes(values, most=6)  # two buckets of five
    assert kept.indices.tolist() == [0, 1, 2, 5, 6, 9]
    assert kept.means.tolist() == pytest.approx([4.4, 4.4, 4.4, 4.4, 4.4, 4.4])


@pytest.mark.parametrize(("count", "most"), [(5, 4), (1000, 4), (1000, 7), (1001, 100), (99_999, 4000)])
def test_lone_spikes_and_both_ends_survive(count: int, most: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    values[count // 3], values[count // 2] = 1e6, -1e6
    kept = extremes(values, most)
    assert len(kept.indices) <= most and np.all(np.diff(kept.indices) > 0)
    assert {0, count // 3, count // 2, count - 1} <= set(kept.indices.tolist())


def test_means_are_those_of_all_points_not_of_the_extremes() -> None:
    values = np.zeros(1000)
    values[::100] = 100.0  # one in a hundred: the extremes alone would average to 50
    kept = extremes(values, most=22)
    assert set(kept.means.tolist()) == {1.0} and set(values[kept.indices].tolist()) == {0.0, 100.0}


def test_a_gap_stays_only_where_a_bucket_holds_nothing_else() -> None:
    values = np.ones(100)
    values[40:60], values[5] = math.nan, math.nan
    kept = extremes(values, most=22)
    gaps = kept.indices[np.isnan(values[kept.indices])].tolist()
    assert gaps and all(40 <= place < 60 for place in gaps)
    assert np.array_equal(np.isnan(kept.means), np.isnan(values[kept.indices]))


def test_a_series_of_gaps_alone() -> None:
    kept = extremes(np.full(50, math.nan), most=10)
    assert len(kept.indices) <= 10 and np.isnan(kept.means).all()
