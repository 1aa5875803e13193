"""The geometry of charts: ranges, ticks, and small SVG charts for the page. Nothing here is heavy to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from utils.formatting import NBSP, number, scientific
from utils.panels import Panel, ends, is_bounded, trace
from utils.series import Series


def y_range(panel: Panel, values: list[float]) -> tuple[float, float]:
    """0 to 1 for what is bounded; else from 0, unless a high level would hide its own movement. An accuracy is seen
    against 50 %, which a coin has."""
    low, high = min(values), max(values)
    if panel.key == "accuracy":
        return min(0.5, low) - 0.04, max(0.7, high) + 0.04
    if is_bounded(panel):
        return 0.0, 1.04
    if panel.key in ("reward", "loss/train") and low > 0.3 * high:
        margin = 0.08 * (high - low or abs(high))
        return low - margin, high + margin
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high + 0.06 * (high - low)) if high > low else (low, low + 1.0)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """The finest multiples of 1, 2, 2.5 or 5 times a power of ten between `low` and `high`, at most `most` of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (factor * power for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: list[float], unit: str) -> list[str]:
    if unit == "share":
        return [f"{100 * value:.0f}{NBSP}%" for value in values]
    largest = max((abs(value) for value in values), default=0.0)
    exponent = math.floor(math.log10(largest) + 1e-9) if largest else 0
    if unit == "rate" or exponent < -3 or exponent > 5:
        return ["0" if value == 0 else scientific(value) for value in values]
    step = min((abs(b - a) for a, b in pairwise(values)), default=largest or 1.0)
    decimals = next((places for places in range(6) if abs(step * 10**places - round(step * 10**places)) < 1e-6), 6)
    return [f"{value:,.{decimals}f}".replace("-", "\u2212") for value in values]


def step_ticks(first: int, last: int) -> list[int]:
    return [round(value) for value in ticks(first, last, 6) if value == round(value)] if last > first else [first]


@dataclass(frozen=True)
class Chart:
    """One small SVG chart: paths and ticks in the units of its view box."""

    title: str
    note: str
    latest: str
    latest_held_out: str
    width: int
    height: int
    left: float
    bottom: float
    right: float
    top: float
    points: str
    line: str
    band: str
    held_out: str
    held_out_dots: str
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    boundaries: list[tuple[float, str]]


def chart(panel: Panel, width: int = 340, height: int = 176) -> Chart:
    drawn = trace(panel)
    held_out = panel.held_out or Series((), ())
    values = [value for part in (drawn.points, drawn.low, drawn.high, held_out) for value in part.numbers()]
    low, high = y_range(panel, values)
    first, last = panel.step_range
    left, right, top, bottom = 46.0, width - 10.0, 10.0, height - 24.0

    def x(step: float) -> float:
        return round(left + (right - left) * ((step - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low), 1)

    y_values = ticks(low, high, 5)
    newest = ends(panel.series)
    assert newest is not None, "a panel has at least one number"
    smoothed = drawn.line.values != drawn.points.values
    return Chart(
        title=panel.title,
        note=panel.note,
        latest="" if panel.unit == "rate" else number(newest[1], panel.unit),
        latest_held_out=number(held_out.numbers()[-1], panel.unit) if held_out.numbers() else "",
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        points=_path(drawn.points, x, y) if smoothed else "",
        line=_path(drawn.line, x, y),
        band=_band(drawn.low, drawn.high, x, y),
        held_out=_path(held_out, x, y),
        held_out_dots="".join(f"M{x(step)} {y(value)}h0" for piece in _pieces(held_out) for step, value in piece),
        y_ticks=[(y(value), label) for value, label in zip(y_values, tick_labels(y_values, panel.unit), strict=True)],
        x_ticks=[(x(step), f"{step:,}") for step in step_ticks(first, last)],
        boundaries=[(x(stage.first_step - 0.5), stage.name) for stage in panel.stages[1:]],
    )


def _pieces(series: Series) -> list[list[tuple[int, float]]]:
    """The series cut at its gaps."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for step, value in zip(series.steps, series.values, strict=True):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((step, value))
    return [piece for piece in pieces if piece]


def _path(series: Series, x: Any, y: Any) -> str:
    """A lone point becomes a line of no length, which round caps show as a dot."""
    return "".join(
        "M" + "L".join(f"{x(step)} {y(value)}" for step, value in piece) + ("h0" if len(piece) == 1 else "")
        for piece in _pieces(series)
    )


def _band(low: Series, high: Series, x: Any, y: Any) -> str:
    return "".join(
        "M" + "L".join(f"{x(step)} {y(value)}" for step, value in [*above, *reversed(below)]) + "Z"
        for above, below in zip(_pieces(high), _pieces(low), strict=True)
    )
