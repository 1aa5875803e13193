"""Pictures of reward models: several side by side, their rewards, their spreads. See preference_plots.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.preference_numbers import (
    RISK_AVERSE,
    Evaluated,
    Floats,
    Items,
    Models,
    Style,
    has_spread,
    is_known,
    short,
)
from utils.formatting import metric_label
from utils.panels import is_rate
from utils.plots import MUTED, drawing, layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MODELS = 12
"""Models drawn in one picture; tables hold them all."""
REJECTED = "#8A91A0"
COMPARED = ("accuracy", "jailbreak_rate", "compliance_rate", "r2", "spread_auroc", "ece", "log_loss")
KINDS = ("agreed", "contested")


def model_comparison(of: Evaluated) -> bytes | None:
    """A row a model, a panel a metric: dot and interval, hollow for choosing by the risk-averse reward."""
    shown = dict(list(of.models.items())[:MOST_MODELS])
    metrics = [metric for metric in COMPARED if any(is_known(model["metrics"].get(metric)) for model in shown.values())]
    if len(shown) < 2 or not metrics:
        return None
    rows, columns = layout(len(metrics), 4)
    height = (0.34 * len(shown) + 1.0) * rows + 0.5
    with drawing(max(6.4, 2.5 * columns + 1.6), height) as (figure, picture):
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for metric, ax in zip(metrics, axes.flat, strict=False):
            _forest(ax, metric, shown, of.styles)
        for ax in axes.flat[len(metrics) :]:
            ax.set_axis_off()
        note = "line: 95 % interval"
        if any(RISK_AVERSE.get(metric) for metric in metrics):
            note += "  ·  filled: by the mean reward, hollow: by the risk-averse one"
        figure.supxlabel(note, fontsize=8, color=MUTED)
    return picture.getvalue()


def _forest(ax: Axes, metric: str, models: Models, styles: dict[str, Style]) -> None:
    scale = 100 if is_rate(metric) else 1
    for place, (name, model) in enumerate(models.items()):
        style = styles[name]
        for key, shift, fill in ((metric, -0.13, style.color), (RISK_AVERSE.get(metric), 0.13, "white")):
            estimate = model["metrics"].get(key) if key else None
            if estimate is None or not is_known(estimate) or (fill == "white" and not has_spread(model)):
                continue
            y = place + (shift if metric in RISK_AVERSE and has_spread(model) else 0)
            if estimate["low"] is not None:
                ax.plot([scale * estimate["low"], scale * estimate["high"]], [y, y], color=style.color, linewidth=1.4)
            ax.plot(scale * estimate["value"], y, style.marker, color=style.color, markerfacecolor=fill, markersize=5.5)
    reference = {"accuracy": 50.0, "spread_auroc": 0.5, "log_loss": math.log(2)}.get(metric)
    if reference is not None:
        ax.axvline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    ax.set_ylim(len(models) - 0.4, -0.6)
    ax.set_yticks(range(len(models)), [styles[name].label for name in models])
    ax.tick_params(length=0)
    ax.grid(axis="x")
    ax.set_title(metric_label(metric) + (", %" if scale == 100 else ""), loc="left", fontsize=9.5)
    ax.margins(x=0.08)


# --- rewards and spreads --------------------------------------------------------------------------------------------


def reward_distributions(of: Evaluated) -> bytes | None:
    """For each model the rewards of both answers, above the distribution of their difference."""
    if not of.items:
        return None
    shown = list(of.items)[:MOST_MODELS]
    rows, columns = layout(len(shown), 4)
    with drawing(max(4.6, 3.3 * columns), 4.3 * rows + 0.3) as (figure, picture):
        axes = figure.subplots(2 * rows, columns, squeeze=False)
        for index, name in enumerate(shown):
            row, column = divmod(index, columns)
            _rewards(axes[2 * row, column], of.items[name], of.styles[name])
            _margins(axes[2 * row + 1, column], of.items[name], of.styles[name])
        for index in range(len(shown), rows * columns):
            row, column = divmod(index, columns)
            axes[2 * row, column].set_axis_off()
            axes[2 * row + 1, column].set_axis_off()
    return picture.getvalue()


def _rewards(ax: Axes, of: Items, style: Style) -> None:
    bins = np.linspace(*_range(of.mean.ravel()), 41).tolist()
    for values, color, label in ((of.mean[:, 1], REJECTED, "rejected"), (of.mean[:, 0], style.color, "chosen")):
        ax.hist(values, bins, density=True, color=color, alpha=0.28, linewidth=0)
        ax.hist(values, bins, density=True, histtype="step", color=color, linewidth=1.4, label=label)
        ax.axvline(float(values.mean()), color=color, linewidth=1.1, linestyle=(0, (4, 2)))
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], frameon=False, fontsize=7.5, loc="upper left", handlelength=1.2)
    ax.set_title(style.label, loc="left", weight="bold")
    ax.set_xlabel("mean reward; dashed: average", fontsize=8)
    _bare(ax)


def _margins(ax: Axes, of: Items, style: Style) -> None:
    margin = of.margin
    low, high = _range(margin)
    reach = max(abs(low), abs(high))
    bins = np.linspace(-reach, reach, 43).tolist()
    ax.hist(margin[margin >= 0], bins, color=style.color, alpha=0.75, linewidth=0)
    ax.hist(margin[margin < 0], bins, color=REJECTED, alpha=0.75, linewidth=0)
    ax.axvline(0, color=MUTED, linewidth=0.9)
    right = float((margin >= 0).mean())
    for x, ha, text in (
        (0.99, "right", f"{100 * right:.1f} %\nright"),
        (0.01, "left", f"{100 - 100 * right:.1f} %\nwrong"),
    ):
        ax.text(x, 0.97, text, transform=ax.transAxes, ha=ha, va="top", fontsize=8, color=MUTED)
    ax.set_xlabel("reward of chosen minus rejected", fontsize=8)
    _bare(ax)


def _range(values: Floats) -> tuple[float, float]:
    """From the least to the largest, but for a few that lie far out."""
    low, high = (float(value) for value in np.quantile(values, [0.003, 0.997]))
    margin = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - margin, high + margin


def _bare(ax: Axes) -> None:
    """An axis of frequencies says nothing by its numbers."""
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.tick_params(length=0)


def spread_by_subset(of: Evaluated) -> bytes | None:
    """For each model with spread: the spread of pairs, all and by subset and kind, as mirrored histograms."""
    shown = [name for name in of.items if has_spread(of.models[name])][:MOST_MODELS]
    if not shown:
        return None
    rows, columns = layout(len(shown), 3)
    parts = max(len(spread_groups(of.items[name])) for name in shown)
    with drawing(max(4.6, (0.75 * parts + 1.0) * columns), 3.1 * rows + 0.3) as (figure, picture):
        axes = figure.subplots(rows, columns, squeeze=False)
        for name, ax in zip(shown, axes.flat, strict=False):
            _spreads(ax, spread_groups(of.items[name]), of.styles[name], of.models[name]["metrics"].get("spread_auroc"))
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        figure.supxlabel("dot: median  ·  thick line: quartiles  ·  shape: distribution", fontsize=8, color=MUTED)
    return picture.getvalue()


def spread_groups(of: Items) -> dict[str, Floats]:
    """Pair spreads of all pairs, of each subset, and of each kind, where there are two of them or more."""
    groups = {"all": of.pair_spread}
    for values in (of.subsets, of.kinds):
        names = sorted({value for value in values if value is not None}, key=lambda name: (name not in KINDS, name))
        if len(names) > 1:
            groups |= {name: of.pair_spread[np.array([value == name for value in values])] for name in names[:8]}
    return groups


def _spreads(ax: Axes, groups: dict[str, Floats], style: Style, auroc: Any) -> None:
    everything = groups["all"]
    low, high = _range(everything)
    bins = np.linspace(max(0.0, low), high, 46)
    for place, (name, values) in enumerate(groups.items()):
        counts, _ = np.histogram(values, bins)
        width = 0.42 * np.convolve(counts, [0.25, 0.5, 0.25], mode="same") / max(1, counts.max())
        centers = (bins[1:] + bins[:-1]) / 2
        color = REJECTED if name == "all" else style.color
        ax.fill_betweenx(centers, place - width, place + width, color=color, alpha=0.35, linewidth=0)
        quarter, median, three = np.quantile(values, [0.25, 0.5, 0.75])
        ax.plot([place, place], [quarter, three], color=color, linewidth=3, solid_capstyle="round")
        ax.plot(place, median, "o", color="white", markeredgecolor=color, markersize=5)
    ax.set_xticks(
        range(len(groups)), [f"{short(name)}\n{len(values):,}" for name, values in groups.items()], fontsize=8
    )
    ax.set_ylim(bins[0] - 0.02 * (high - bins[0]), high)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.grid(axis="y")
    ax.tick_params(length=0)
    ax.set_ylabel("spread of a pair", fontsize=8)
    ax.set_title(style.label, loc="left", weight="bold", pad=15 if is_known(auroc) else 6)
    if is_known(auroc):
        told = f"contested from agreed: AUROC {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
        ax.annotate(
            told, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=MUTED
        )
