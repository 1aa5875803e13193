"""Pictures of what reward models do with their spread and how sure they are: risk curve, reliability diagram. See
preference_plots.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evaluation.preference_figures import MOST_MODELS
from evaluation.preference_numbers import (
    Evaluated,
    Models,
    Style,
    curve_of,
    has_spread,
    is_known,
    measure_title,
    measures_of,
)
from evaluation.statistics import wilson
from utils.plots import MUTED, drawing, layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# --- risk -----------------------------------------------------------------------------------------------------------


def risk_curve(of: Evaluated) -> bytes | None:
    """Trade-offs first, then each measure over alpha."""
    shown = {name: model for name, model in of.models.items() if len(model.get("risk_curve") or []) > 1}
    shown = dict(list(shown.items())[:MOST_MODELS])
    if not any(has_spread(model) for model in shown.values()):
        return None
    measures = measures_of(shown)
    trades = [rest for rest in ("harmless", "jailbreak_rate") if {"helpful", rest} <= set(measures)]
    count = len(trades) + len(measures)
    rows, columns = layout(count, 3)
    with drawing(max(6.4, 3.6 * columns), 3.0 * rows + 0.6) as (figure, picture):
        axes = figure.subplots(rows, columns, squeeze=False)
        flat = list(axes.flat)
        for other, ax in zip(trades, flat, strict=False):
            _trade_off(ax, shown, other, of.styles)
        for measure, ax in zip(measures, flat[len(trades) :], strict=False):
            _over_alpha(ax, shown, measure, of.styles)
        for ax in flat[count:]:
            ax.set_axis_off()
        _legend(figure, shown, of.styles)
    return picture.getvalue()


def _trade_off(ax: Axes, models: Models, other: str, styles: dict[str, Style]) -> None:
    """Helpful accuracy up, the other measure to the side; a line of falling alpha, the last point hollow."""
    for name, model in models.items():
        rows, style = curve_of(model, "helpful", other), styles[name]
        if not rows:
            continue
        x, y = ([100 * row[measure]["value"] for row in rows] for measure in (other, "helpful"))
        for row in (rows[0], rows[-1]) if has_spread(model) else rows[:1]:
            across, up = row[other], row["helpful"]
            ax.plot(
                [100 * across["low"], 100 * across["high"]],
                [100 * up["value"]] * 2,
                color=style.color,
                alpha=0.35,
                linewidth=1,
            )
            ax.plot(
                [100 * across["value"]] * 2,
                [100 * up["low"], 100 * up["high"]],
                color=style.color,
                alpha=0.35,
                linewidth=1,
            )
        if not has_spread(model):
            ax.plot(x[0], y[0], style.marker, color=style.color, markersize=7)
            continue
        ax.plot(x, y, marker=style.marker, color=style.color, linewidth=1.3, markersize=3.5)
        ax.plot(x[-1], y[-1], style.marker, color=style.color, markerfacecolor="white", markersize=6.5)
        for place, offset in ((0, (5, 4)), (-1, (5, -10))):
            text = f"α {rows[place]['alpha']:g}"
            ax.annotate(text, (x[place], y[place]), offset, textcoords="offset points", fontsize=7, color=style.color)
    ax.set_title("Trade-off as α falls", loc="left", pad=16)
    ax.annotate(
        "hollow: the most risk-averse; lines: 95 % intervals", (0, 1), (0, 4), xycoords="axes fraction",
        textcoords="offset points", fontsize=7.5, color=MUTED,
    )  # fmt: skip
    ax.set_xlabel(f"{measure_title(other)}, %" + (" (lower is safer)" if other == "jailbreak_rate" else ""), fontsize=8)
    ax.set_ylabel("Accuracy, helpful, %", fontsize=8)
    ax.margins(0.12)
    ax.tick_params(length=0)
    ax.grid()


def _over_alpha(ax: Axes, models: Models, measure: str, styles: dict[str, Style]) -> None:
    with_bands = len(models) <= 4
    alphas: list[float] = []
    for name, model in models.items():
        rows, style = curve_of(model, measure), styles[name]
        if not rows:
            continue
        x = [row["alpha"] for row in rows]
        low, value, high = ([100 * row[measure][key] for row in rows] for key in ("low", "value", "high"))
        if with_bands:
            ax.fill_between(x, low, high, color=style.color, alpha=0.12, linewidth=0)
        flat = not has_spread(model)
        ax.plot(
            x, value, marker="" if flat else style.marker, markersize=3.5, color=style.color, linewidth=1.3,
            linestyle=(0, (4, 2)) if flat else "-",
        )  # fmt: skip
        alphas += x
    ticks = _alpha_ticks(sorted(set(alphas)))
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{alpha:g}" for alpha in ticks])
    ax.minorticks_off()
    ax.set_title(measure_title(measure) + ", %", loc="left", pad=16)
    ax.annotate(
        "band: 95 % interval" if with_bands else "intervals stand in the report", (0, 1), (0, 4),
        xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=MUTED,
    )  # fmt: skip
    ax.set_xlabel("quantile α of the reward (left: more risk-averse)", fontsize=8)
    ax.tick_params(length=0)
    ax.grid()


def _alpha_ticks(alphas: list[float]) -> list[float]:
    """Those of the alphas that have room on a log axis, from the largest down."""
    kept: list[float] = []
    width = math.log(alphas[-1] / alphas[0]) or 1.0
    for alpha in reversed(alphas):
        if not kept or math.log(kept[-1] / alpha) > 0.11 * width:
            kept.append(alpha)
    return kept[::-1]


def _legend(figure: Figure, models: Models, styles: dict[str, Style]) -> None:
    """One for all panels, with as many columns as there is room for."""
    from matplotlib.lines import Line2D

    handles = []
    for name, model in models.items():
        color, marker = styles[name].color, styles[name].marker if has_spread(model) else ""
        handle = Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.3)
        handle.set_linestyle("-" if has_spread(model) else "--")
        handles.append(handle)
    labels = [styles[name].label for name in models]
    columns = int(figure.get_figwidth() / (0.7 + 0.085 * max(map(len, labels))))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, columns), frameon=False, fontsize=8.5)


# --- calibration ----------------------------------------------------------------------------------------------------


def reliability(of: Evaluated) -> bytes | None:
    """A diagram a model: observed against predicted share, with the number of pairs in each bin below."""
    shown = [name for name, model in of.models.items() if model.get("reliability")][:MOST_MODELS]
    if not shown:
        return None
    rows, columns = layout(len(shown), 4)
    with drawing(max(4.2, 3.1 * columns), 3.9 * rows + 0.3) as (figure, picture):
        axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3.2, 1] * rows, sharex="col")
        for index in range(rows * columns):
            row, column = divmod(index, columns)
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            if index >= len(shown):
                above.set_axis_off()
                below.set_axis_off()
                continue
            _calibration(above, of.models[shown[index]], of.styles[shown[index]])
            _counts(below, of.models[shown[index]], of.styles[shown[index]])
    return picture.getvalue()


def _calibration(ax: Axes, model: dict[str, Any], style: Style) -> None:
    ax.plot([50, 100], [50, 100], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    lowest = 0.45
    for row in model["reliability"]:
        x = 100 * row["predicted"]
        sure = wilson(row["observed"] * row["n"], row["n"])
        low, high = sure["low"], sure["high"]
        assert low is not None and high is not None, "a bin of the table holds pairs"
        lowest = min(lowest, low)
        ax.plot([x, x], [100 * low, 100 * high], color=style.color, linewidth=1.3, alpha=0.6)
    x, y = ([100 * row[key] for row in model["reliability"]] for key in ("predicted", "observed"))
    ax.plot(x, y, color=style.color, marker=style.marker, markersize=4.5, linewidth=1)
    ece = model["metrics"].get("ece")
    ax.set_title(style.label, loc="left", weight="bold", pad=15)
    if is_known(ece):
        told = f"ECE {ece['value']:.3f}" + (
            f" ({ece['low']:.3f} to {ece['high']:.3f})" if ece["low"] is not None else ""
        )
        ax.annotate(told, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=MUTED)
    ax.set_xlim(49, 101)
    ax.set_ylim(100 * lowest - 3, 103)
    ax.set_ylabel("it was chosen, %", fontsize=8)
    ax.tick_params(length=0)
    ax.grid()


def _counts(ax: Axes, model: dict[str, Any], style: Style) -> None:
    rows = model["reliability"]
    middles, widths = (
        [50 * (row["low"] + row["high"]) for row in rows],
        [100 * (row["high"] - row["low"]) for row in rows],
    )
    bars = ax.bar(
        middles, [row["n"] for row in rows], [0.86 * width for width in widths], color=style.color, alpha=0.45
    )
    ax.bar_label(bars, [f"{row['n']:,}" for row in rows], fontsize=6.5, color=MUTED, padding=1)
    ax.margins(y=0.35)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("probability of the answer expected to win, %", fontsize=8)
