from __future__ import annotations

import pytest

from utils.interval_bars import (
    IntervalBar,
    bar_in_category,
    bar_in_column,
    bar_in_row,
    bar_of_difference,
    interval_bar,
    scale_of,
)
from utils.tables import Cell, Table


def cell(value: float, low: float | None, high: float | None) -> Cell:
    return Cell(value, 10, low, high)


def test_a_rate_stands_between_0_and_1_and_is_seen_against_the_base() -> None:
    cells = [cell(0.25, 0.125, 0.5), cell(0.75, 0.5, 1.0), None]
    assert bar_in_row("leak_rate", cells, 1, ["base", "adapter", "other"]) == IntervalBar(75.0, 50.0, 100.0, 25.0)
    assert bar_in_row("leak_rate", cells, 0, ["base", "adapter", "other"]) == IntervalBar(25.0, 12.5, 50.0, None)
    assert bar_in_row("leak_rate", cells, 2, ["base", "adapter", "other"]) is None
    assert bar_in_row("leak_rate", cells[1:2], 0, ["adapter"]) == IntervalBar(75.0, 50.0, 100.0, None)


def test_a_mean_has_the_scale_of_all_its_intervals_and_0() -> None:
    cells = [cell(2.0, 1.0, 3.0), cell(4.0, 3.5, 5.0)]
    assert scale_of("mean_reward", cells) == (0.0, 5.0)
    assert scale_of("mean_reward", [cell(-1.0, -2.0, 0.5)]) == (-2.0, 0.5)
    assert bar_in_row("mean_reward", cells, 0, ["a", "b"]) == IntervalBar(40.0, 20.0, 60.0, None)


def test_a_difference_has_0_in_its_middle() -> None:
    cells = [cell(1.0, 0.5, 2.0), cell(-1.0, -1.5, 0.0)]
    assert bar_of_difference(cells, 0) == IntervalBar(75.0, 62.5, 100.0, 50.0)
    assert bar_of_difference(cells, 1) == IntervalBar(25.0, 12.5, 50.0, 50.0)


@pytest.mark.parametrize(("low", "high"), [(None, 1.0), (0.0, None)])
def test_without_an_interval_there_is_no_bar(low: float | None, high: float | None) -> None:
    assert interval_bar(cell(0.5, low, high), (0.0, 1.0), None) is None
    assert interval_bar(cell(0.0, 0.0, 0.0), (0.0, 0.0), None) is None


def test_a_column_of_a_grid_is_seen_against_the_row_of_the_base() -> None:
    rows: list[tuple[str, list[tuple[str, Cell] | str | None]]] = [
        ("base", [("reward", cell(1.0, 0.0, 2.0)), "text"]),
        ("m", [("reward", cell(3.0, 2.0, 4.0)), None]),
    ]
    assert bar_in_column(rows, "m", 0) == IntervalBar(75.0, 50.0, 100.0, 25.0)
    assert bar_in_column(rows, "base", 1) is None and bar_in_column(rows, "m", 1) is None


def test_a_category_is_seen_against_the_base_in_the_same_category() -> None:
    tables = [
        ("base", Table(["reward"], [("music", [cell(1.0, 0.0, 2.0)]), ("sports", [cell(2.0, 2.0, 2.0)])])),
        ("adapter", Table(["other", "reward"], [("music", [None, cell(3.0, 2.0, 4.0)]), ("new", [None, None])])),
    ]
    assert bar_in_category(tables, "adapter", "music", "reward") == IntervalBar(75.0, 50.0, 100.0, 25.0)
    assert bar_in_category(tables, "adapter", "new", "reward") is None
    assert bar_in_category(tables, "base", "sports", "reward") == IntervalBar(50.0, 50.0, 50.0, None)
