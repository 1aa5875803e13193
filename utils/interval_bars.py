"""Intervals as small error bars: where a cell's value, interval and reference stand on a scale that cells share.

Cells that are read against each other share a scale: those of a metric in a row of models, of a column in a grid, of a
category over all models. A rate's scale is 0 to 1, a difference's has 0 in its middle. The reference is the base
model's value, or 0 for a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils.panels import is_rate
from utils.tables import Cell, Table

BASE = "base"


@dataclass(frozen=True)
class IntervalBar:
    """Places in per cent of the bar's width; `reference` is None where there is none."""

    value: float
    low: float
    high: float
    reference: float | None


def interval_bar(cell: Cell | None, scale: tuple[float, float], reference: float | None) -> IntervalBar | None:
    """None where the cell has no interval, or the scale no width."""
    first, last = scale
    if cell is None or cell.low is None or cell.high is None or last <= first:
        return None

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - first) / (last - first))), 1)

    return IntervalBar(
        place(cell.value), place(cell.low), place(cell.high), None if reference is None else place(reference)
    )


def scale_of(metric: str, cells: Sequence[Cell | None]) -> tuple[float, float]:
    """0 to 1 for a rate; otherwise all that the cells and their intervals cover, and 0."""
    if is_rate(metric):
        return 0.0, 1.0
    ends = [end for cell in cells if cell for end in (cell.value, cell.low, cell.high) if end is not None]
    return min([0.0, *ends]), max([0.0, *ends])


def bar_in_row(metric: str, cells: Sequence[Cell | None], at: int, models: Sequence[str]) -> IntervalBar | None:
    """Of a table with models across: every other model is seen against the base."""
    return interval_bar(cells[at], scale_of(metric, cells), reference_among(models, cells, at))


def reference_among(models: Sequence[str], cells: Sequence[Cell | None], at: int) -> float | None:
    base = cells[models.index(BASE)] if BASE in models and models[at] != BASE else None
    return None if base is None else base.value


def bar_of_difference(cells: Sequence[Cell | None], at: int) -> IntervalBar | None:
    ends = [abs(end) for cell in cells if cell for end in (cell.value, cell.low, cell.high) if end is not None]
    largest = max(ends, default=0.0)
    return interval_bar(cells[at], (-largest, largest), 0.0)


def bar_in_column(
    rows: Sequence[tuple[str, Sequence[tuple[str, Cell] | str | None]]], row: str, at: int
) -> IntervalBar | None:
    """Of a grid with models down: the column's cells share a scale, and the row of the base is the reference."""
    cells = {name: entry for name, entries in rows if isinstance(entry := entries[at], tuple)}
    if row not in cells:
        return None
    metric, cell = cells[row]
    base = cells[BASE][1].value if BASE in cells and row != BASE else None
    return interval_bar(cell, scale_of(metric, [found for _, found in cells.values()]), base)


def bar_in_category(tables: Sequence[tuple[str, Table]], model: str, category: str, metric: str) -> IntervalBar | None:
    """Of the tables by category, one a model: a metric has one scale over all models and categories."""
    cells = {
        (name, row): cells[table.columns.index(metric)]
        for name, table in tables
        if metric in table.columns
        for row, cells in table.rows
    }
    base = cells.get((BASE, category)) if model != BASE else None
    scale = scale_of(metric, list(cells.values()))
    return interval_bar(cells[model, category], scale, base.value if base else None)
