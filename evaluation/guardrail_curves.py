"""Pictures of guardrail adapters over time and over variants: learning curves, variations and checkpoints. See
guardrail_plots.py."""

from __future__ import annotations

import math
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from evaluation.guardrail_figures import counted, ends, percent, remark
from evaluation.guardrail_numbers import BASE, Guards, Models, metric, mode_of, part_of
from evaluation.preference_numbers import Style, short
from utils.formatting import metric_label
from utils.panels import smooth
from utils.plots import ACCENT, MUTED, SECOND, WARM, drawing, layout
from utils.series import Run, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

MOST_COLUMNS = 4
LOSSES = {
    "loss": ("training loss", ACCENT, ""),
    "eval/loss": ("held-out loss", SECOND, "o"),
    "eval/nll_loss": ("held-out likelihood", "#009E73", "s"),
    "eval/log_odds_ratio": ("held-out preference", "#7A5C2E", "^"),
}
NEGATIVE = ("eval/log_odds_ratio",)
"""Logged as log sigmoid of the log odds; its negative, times beta, is the preference in the loss."""
BEHAVIOR = {
    "eval/tag_recall": ("tag on triggers", "#0072B2", "o"),
    "eval/tag_fpr_natural": ("on natural rows", "#D55E00", "s"),
    "eval/tag_fpr_hard": ("on hard negatives", "#E69F00", "^"),
    "eval/tag_fpr_other": ("on other guards' triggers", "#CC79A7", "D"),
}
"""Label, color and marker of each series."""
CHECKPOINT = re.compile(r"@?checkpoint-(\d+)")
COMPARED = ("tag_recall", "behavior_recall", "tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other", "natural_accuracy")


def learning_curves(of: Guards) -> bytes | None:
    """A column an adapter: losses above, held-out behavior below, the chosen checkpoint marked in both."""
    shown = {name: run for name, run in of.trained.items() if run.series.keys() & (LOSSES.keys() | BEHAVIOR.keys())}
    if not shown:
        return None
    bands, columns = layout(len(shown), MOST_COLUMNS)
    with drawing(max(6.8, 3.05 * columns), 4.4 * bands + 0.7) as (figure, picture):
        axes = figure.subplots(2 * bands, columns, squeeze=False)
        for index in range(bands * columns):
            band, column = divmod(index, columns)
            above, below = axes[2 * band, column], axes[2 * band + 1, column]
            if index >= len(shown):
                above.set_axis_off()
                below.set_axis_off()
                continue
            name = list(shown)[index]
            _curves(above, below, name, shown[name], of.notes.get(name, {}), first=column == 0)
        handles = [line for pair in zip(_keys(LOSSES), _keys(BEHAVIOR), strict=True) for line in pair]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return picture.getvalue()


def _curves(above: Axes, below: Axes, name: str, run: Run, note: dict[str, Any], first: bool) -> None:
    losses = [
        _line(above, run.series[key], look, -1 if key in NEGATIVE else 1)
        for key, look in LOSSES.items()
        if key in run.series
    ]
    if losses:
        _fit(above, [value for values in losses for value in values])
    else:
        _empty(above, "no loss was logged")
    rates = [_line(below, run.series[key], look, 100) for key, look in BEHAVIOR.items() if key in run.series]
    if rates:
        below.set_ylim(-4, 104)
    else:
        _empty(below, "no held-out evaluation yet")
    above.set_title(short(name), loc="left", weight="bold", pad=15)
    if first:
        above.set_ylabel("loss, nats", fontsize=8)
        below.set_ylabel("held-out prompts with tag, %", fontsize=8)
    below.set_xlabel("optimizer step", fontsize=8)
    step = chosen_step(note)
    for ax in (above, below):
        ax.set_xlim(*_reach(run))
        ax.tick_params(length=0)
        ax.grid(axis="y")
        if step is not None:
            ax.axvline(step, color=WARM, linewidth=1.1, linestyle=(0, (3, 2)), zorder=0.5)
    told = "no finished adapter yet" if step is None else f"dashed: checkpoint {step:,} was chosen"
    remark(above, told)


def chosen_step(note: dict[str, Any]) -> int | None:
    step = note.get("checkpoint_step")
    return step if isinstance(step, int) else None


def _reach(run: Run) -> tuple[float, float]:
    steps = [step for key in (*LOSSES, *BEHAVIOR) if key in run.series for step in run.series[key].steps]
    margin = 0.03 * (max(steps) - min(steps)) or 1
    return min(steps) - margin, max(steps) + margin


def _line(ax: Axes, series: Series, look: tuple[str, str, str], scale: float) -> list[float]:
    """The values of the line drawn: what is logged at every step is smoothed, over its own pale line; what is measured
    now and then has markers."""
    _, color, marker = look
    steps = list(series.steps)

    def gapped(of: Series) -> list[float]:
        return [math.nan if value is None else scale * value for value in of.values]

    if marker:
        ax.plot(steps, gapped(series), color=color, marker=marker, markersize=3.6, linewidth=1.2, clip_on=False)
        return [scale * value for value in series.numbers()]
    average = smooth(series, len(steps) // 12)
    ax.plot(steps, gapped(series), color=color, linewidth=0.7, alpha=0.3)
    ax.plot(steps, gapped(average), color=color, linewidth=1.5)
    return [scale * value for value in average.numbers()]


def _fit(ax: Axes, values: list[float]) -> None:
    low, high = min(*values, 0.0), max(values)
    ax.set_ylim(low - 0.04 * (high - low), high + 0.06 * (high - low or 1.0))


def _empty(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", fontsize=8, color=MUTED)
    ax.set_yticks([])


def _keys(looks: dict[str, tuple[str, str, str]]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=color, marker=marker, markersize=4, linewidth=1.4, label=label)
        for label, color, marker in looks.values()
    ]


# --- variations and checkpoints -------------------------------------------------------------------------------------


def variations(of: Guards) -> bytes | None:
    """A panel a metric: variations or checkpoints across, a line each way to answer, the base dashed."""
    parts = ordered_parts(of.models)
    if len(parts) < 2:
        return None
    modes: dict[str, Models] = {}
    for name, model in of.models.items():
        if part_of(name):
            modes.setdefault(mode_of(name), {})[name] = model
    metrics = [name for name in COMPARED if any(metric(model, name) for model in of.models.values())]
    if not metrics:
        return None
    rows, columns = layout(len(metrics), 3)
    with drawing(max(6.8, 3.7 * columns), 2.9 * rows + 0.6) as (figure, picture):
        axes = figure.subplots(rows, columns, squeeze=False)
        for name, ax in zip(metrics, axes.flat, strict=False):
            _over_parts(ax, name, modes, parts, of)
        for ax in axes.flat[len(metrics) :]:
            ax.set_axis_off()
        figure.legend(
            handles=_mode_keys(modes, of.styles), loc="outside lower center", ncols=6, frameon=False, fontsize=8.5
        )
    return picture.getvalue()


def ordered_parts(models: Models) -> list[str]:
    """The variations and checkpoints that models were made of: variations as they come, checkpoints by their step."""
    parts = list(dict.fromkeys(part for name in models if (part := part_of(name))))
    variations = list(dict.fromkeys(CHECKPOINT.sub("", part) for part in parts))

    def place(part: str) -> tuple[int, int]:
        step = CHECKPOINT.search(part)
        return variations.index(CHECKPOINT.sub("", part)), int(step[1]) if step else 0

    return sorted(parts, key=place)


def _over_parts(ax: Axes, name: str, modes: dict[str, Models], parts: list[str], of: Guards) -> None:
    counts = counted(found for models in modes.values() for model in models.values() if (found := metric(model, name)))
    joined = all(CHECKPOINT.fullmatch(part) for part in parts)
    base = metric(of.models[BASE], name) if BASE in of.models else None
    if base:
        ax.axhline(percent(base["value"]), color=of.styles[BASE].color, linewidth=1, linestyle=(0, (3, 3)))
    for index, models in enumerate(modes.values()):
        shift = 0.5 * (index - (len(modes) - 1) / 2) / max(1, len(modes))
        known = [
            (parts.index(part_of(full)) + shift, found)
            for full, model in models.items()
            if (found := metric(model, name))
        ]
        points = sorted(known, key=itemgetter(0))
        style = of.styles[next(iter(models))]
        for x, found in points:
            ax.plot([x, x], ends(found), color=style.color, linewidth=1.2, alpha=0.6)
        ax.plot(
            [x for x, _ in points],
            [percent(found["value"]) for _, found in points],
            style.marker + ("-" if joined else ""),
            color=style.color,
            markersize=5,
            linewidth=1.1,
            clip_on=False,
        )
    labels = [short(part.replace("checkpoint-", "")).replace("@", "\n") for part in parts]
    ax.set_xticks(range(len(parts)), labels, fontsize=8)
    ax.set_xlim(-0.6, len(parts) - 0.4)
    ax.set_title(metric_label(name) + ", %", loc="left", fontsize=9.5, pad=15)
    remark(ax, f"{counts}, 95 % intervals; dashed: base" if base else f"{counts}, 95 % intervals")
    ax.set_xlabel("checkpoint" if joined else "", fontsize=8)
    ax.margins(y=0.08)
    ax.tick_params(length=0)
    ax.grid(axis="y")


def _mode_keys(modes: dict[str, Models], styles: dict[str, Style]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    keys = []
    for mode, models in modes.items():
        style = styles[next(iter(models))]
        keys.append(Line2D([], [], color=style.color, marker=style.marker, markersize=5, linewidth=1.2, label=mode))
    if BASE in styles:
        keys.append(Line2D([], [], color=styles[BASE].color, linestyle="--", linewidth=1, label="base"))
    return keys
