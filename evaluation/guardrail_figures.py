"""Pictures of an evaluation of guardrails: recall and false positives, who fired for what, guard models. See
guardrail_plots.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from evaluation.guardrail_numbers import (
    BASE,
    ROUTED,
    SINGLE,
    Guards,
    Models,
    is_guard_model,
    metric,
    mode_of,
    resolution_false_positives,
    tag_false_positives,
)
from evaluation.preference_numbers import Style, short
from evaluation.statistics import Estimate
from model_training.guardrail_config import JOINT
from utils.formatting import metric_label
from utils.plots import INK, MUTED, RULE, drawing, layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DETECTORS = ("behavior_recall", "tag_recall", "natural_accuracy")
ADAPTED = (BASE, SINGLE, ROUTED, JOINT)
"""What stands beside each other as without and with adapters."""
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
"""Colors of what should have fired, and of what should not: red, green and blue."""
LABELS_AT = 1.06
"""Where labels stand beside a panel, in widths of it."""
FALSE_POSITIVE_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 30, 50, 75, 100)


# --- with and without adapters --------------------------------------------------------------------------------------


def detection_efficiency(of: Guards) -> bytes | None:
    """A panel a detector: for each guard a bar without and bars with adapters, with 95 % intervals."""
    shown = {name: model for mode in ADAPTED for name, model in of.chief.items() if mode_of(name) == mode}
    panels = [name for name in DETECTORS if any(_of_guards(model, name, of) for model in shown.values())]
    if not panels or not shown.keys() - {BASE}:
        return None
    width = max(2.6, 0.25 * len(shown) * len(of.behaviors) + 0.9)
    with drawing(max(6.8, width * len(panels)), 3.9) as (figure, picture):
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        for name, ax in zip(panels, axes.flat, strict=True):
            _bars(ax, name, shown, of)
        axes[0, 0].set_ylabel("% of prompts, 95 % intervals", fontsize=8)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=8.5)
    return picture.getvalue()


def _of_guards(model: dict[str, Any], name: str, of: Guards) -> dict[str, Estimate]:
    return {behavior: found for behavior in of.behaviors if (found := metric(model, name, behavior))}


def _bars(ax: Axes, name: str, shown: Models, of: Guards) -> None:
    width = 0.84 / len(shown)
    counts: dict[str, int] = {}
    for place, (model_name, model) in enumerate(shown.items()):
        style, found = of.styles[model_name], _of_guards(model, name, of)
        x = [of.behaviors.index(behavior) + (place - (len(shown) - 1) / 2) * width for behavior in found]
        heights = [percent(estimate["value"]) for estimate in found.values()]
        ax.bar(x, heights, 0.88 * width, color=style.color, edgecolor=style.color, linewidth=1, label=style.label)
        for at, height, estimate in zip(x, heights, found.values(), strict=True):
            low, high = ends(estimate)
            ax.plot([at, at], [low, high], color=INK, linewidth=1)
            ax.annotate(
                brief(height), (at, high), (0, 2), textcoords="offset points", ha="center", fontsize=6.5, color=INK
            )
        counts |= {behavior: int(estimate["n"] or 0) for behavior, estimate in found.items()}
    labels = [f"{short(behavior)}\nn {counts.get(behavior, 0):,}" for behavior in of.behaviors]
    ax.set_xticks(range(len(of.behaviors)), labels, fontsize=8)
    ax.set_ylim(0, 109)
    ax.set_yticks(range(0, 101, 25))
    ax.set_title(metric_label(name), loc="left", fontsize=9.5)
    ax.tick_params(length=0)
    ax.grid(axis="y")
    ax.set_axisbelow(True)


# --- recall against false positives ---------------------------------------------------------------------------------


def recall_vs_fpr(of: Guards) -> bytes | None:
    """A panel for the tag, one for the behavior: up and left is better; a point a model with both its intervals."""
    answers = of.answers
    tag = {name: (metric(m, "tag_recall"), tag_false_positives(m, answers)) for name, m in of.chief.items()}
    behavior = {
        name: (metric(m, "behavior_recall"), resolution_false_positives(m, answers)) for name, m in of.chief.items()
    }
    panels = {
        "Tag": ("triggers with their guard's tag", "natural and hard rows with a tag", _both(tag)),
        "Behavior": ("triggers answered rightly", "natural and hard rows with a refusal", _both(behavior)),
    }
    panels = {title: panel for title, panel in panels.items() if panel[2]}
    if not panels:
        return None
    height = max(3.6, 0.17 * len(of.chief) + 1.4)
    with drawing(max(6.8, 5.6 * len(panels)), height) as (figure, picture):
        axes = figure.subplots(1, len(panels), squeeze=False)
        for (title, (up, across, points)), ax in zip(panels.items(), axes.flat, strict=True):
            _scatter(ax, points, of.styles, height)
            ax.set_title(title, loc="left", weight="bold", pad=15)
            ax.set_ylabel(f"{up}, %", fontsize=8)
            ax.set_xlabel(f"{across}, % (root scale)", fontsize=8)
            remark(ax, _asked(points))
        figure.supxlabel("lines: 95 % intervals  ·  numbers: recall, then false positives, %", fontsize=8, color=MUTED)
    return picture.getvalue()


Points = dict[str, tuple[Estimate, Estimate]]


def _both(points: dict[str, tuple[Estimate | None, Estimate | None]]) -> Points:
    return {name: (up, across) for name, (up, across) in points.items() if up is not None and across is not None}


def _asked(points: Points) -> str:
    triggers, others = (counted(pair[side] for pair in points.values()) for side in (0, 1))
    return f"pooled over guards: {triggers} triggers, {others} natural and hard rows"


def _scatter(ax: Axes, points: Points, styles: dict[str, Style], height: float) -> None:
    """A label a model at the right, from high recall to low, with a line to its point: labels never overlap."""
    largest = max(ends(across)[1] for _, across in points.values())
    lowest = min(ends(up)[0] for up, _ in points.values())
    reach, floor = max(4.0, 1.12 * largest), 0.0 if lowest < 50 else min(90.0, 10 * (lowest // 10))
    ax.set_xscale("function", functions=(_root, _square))
    ax.set_xlim(0, reach)
    ax.set_ylim(floor - 0.02 * (100 - floor), 100 + 0.03 * (100 - floor))
    at = {name: (percent(across["value"]), percent(up["value"])) for name, (up, across) in points.items()}
    ordered = sorted(at, key=lambda name: (-round(at[name][1] / 3), -at[name][0]))
    places = apart([(at[name][1] - floor) / (100 - floor) for name in ordered], 12.0 / (72 * (height - 1.4)))
    for name, place in zip(ordered, places, strict=True):
        (up, across), (x, y), style = points[name], at[name], styles[name]
        look: dict[str, Any] = {"color": style.color, "marker": style.marker, "clip_on": False}
        ax.plot(ends(across), [y, y], color=style.color, linewidth=1.1, alpha=0.6)
        ax.plot([x, x], ends(up), color=style.color, linewidth=1.1, alpha=0.6)
        ax.plot(x, y, markersize=7, markerfacecolor=f"{style.color}80", zorder=3, **look)
        ax.plot(LABELS_AT, place, transform=ax.transAxes, markersize=6, zorder=3, **look)
        line = {"arrowstyle": "-", "color": style.color, "alpha": 0.4, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        ends_at: dict[str, Any] = {"xycoords": "data", "textcoords": "axes fraction", "annotation_clip": False}
        ax.annotate("", (x, y), (LABELS_AT, place), arrowprops=line, zorder=0.6, **ends_at)
        ax.annotate(
            f"{style.label}  {brief(y)}, {brief(x)}", (LABELS_AT, place), (6, 0), xycoords="axes fraction",
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    shown = [tick for tick in FALSE_POSITIVE_TICKS if tick <= reach]
    ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
    ax.tick_params(length=0)
    ax.grid()


def apart(places: list[float], gap: float) -> list[float]:
    """Falling places moved until each is `gap` below the one before; none above 1, and none below 0 if they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(min(place, moved[-1] - gap) if moved else min(place, 1.0))
    if moved and moved[-1] < 0:
        moved[-1] = 0.0
        for index in range(len(moved) - 2, -1, -1):
            moved[index] = max(moved[index], moved[index + 1] + gap)
    return moved


def _root(values: Any) -> Any:
    import numpy as np

    return np.sqrt(np.maximum(values, 0))


def _square(values: Any) -> Any:
    return values**2


# --- who fired for what ---------------------------------------------------------------------------------------------


def confusion_matrix(of: Guards) -> bytes | None:
    """For each stacked model two matrices, tag and resolution: what was asked down, which guard answered across."""
    modes = [ROUTED, *(mode_of(name) for name in of.chief if mode_of(name) not in (BASE, ROUTED))]
    shown = {
        name: model["confusion"]
        for mode in modes
        for name, model in of.chief.items()
        if mode_of(name) == mode and model.get("confusion") and not is_guard_model(name)
    }
    if not shown:
        return None
    rows, columns = (max(len(found[key]) for found in shown.values()) for key in ("rows", "columns"))
    bands, across = layout(len(shown), 4)
    with drawing(max(6.8, (0.47 * columns + 0.35) * across + 1.5), (0.62 * rows + 2.0) * bands + 0.5) as (
        figure,
        picture,
    ):
        axes = figure.subplots(2 * bands, across, squeeze=False)
        for index in range(bands * across):
            band, column = divmod(index, across)
            above, below = axes[2 * band, column], axes[2 * band + 1, column]
            if index >= len(shown):
                above.set_axis_off()
                below.set_axis_off()
                continue
            name = list(shown)[index]
            _matrix(above, shown[name], "tag", column == 0)
            _matrix(below, shown[name], "resolution", column == 0)
            above.set_title(of.styles[name].label, loc="left", weight="bold", pad=16)
            remark(above, "whose tag, % of row")
            remark(below, "whose resolution, % of row")
        figure.supxlabel("framed: what should be there  ·  orange: what should not", fontsize=8, color=MUTED)
    return picture.getvalue()


def _matrix(ax: Axes, confusion: dict[str, Any], detector: str, first: bool) -> None:
    from matplotlib.patches import Rectangle

    rows, columns, counts = confusion["rows"], confusion["columns"], confusion.get(detector)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    sizes = [sum(row) for row in counts] if counts else [0] * len(rows)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            share = counts[y][x] / sizes[y] if counts and sizes[y] else 0.0
            right = column == (row if row in columns else "none")
            tint = [(255 + (part - 255) * share) / 255 for part in (RIGHT if right else WRONG)]
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=tint, edgecolor=RULE, linewidth=0.6))
            if right:
                ax.add_patch(
                    Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.1, zorder=3)
                )
            if counts and counts[y][x]:
                color = "white" if share > 0.55 else INK
                ax.text(x, y, brief(100 * share), ha="center", va="center", fontsize=7.5, color=color, zorder=4)
    if not counts:
        ax.text(
            0.5, 0.5, "not told apart", transform=ax.transAxes, ha="center", va="center", fontsize=8, color=MUTED,
            zorder=5, bbox={"facecolor": "white", "edgecolor": "none"},
        )  # fmt: skip
    names = [f"{short(row)}, n {size:,}" for row, size in zip(rows, sizes, strict=True)] if first else []
    ax.set_yticks(range(len(rows)) if first else [], names, fontsize=7.5)
    ax.set_xticks(range(len(columns)), [short(column) for column in columns], fontsize=7.5, rotation=35, ha="right")
    ax.tick_params(length=0, pad=2)
    for spine in ax.spines.values():
        spine.set_visible(False)


# --- guard models ---------------------------------------------------------------------------------------------------


def guard_models(of: Guards) -> bytes | None:
    """A row a guard, a panel a rate: its own adapter and routing beside guard models on the same prompts."""
    if not any(map(is_guard_model, of.models)):
        return None
    shown = {
        name: model for name, model in of.chief.items() if mode_of(name) in (SINGLE, ROUTED) or is_guard_model(name)
    }
    measured = ("tag_recall", "tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other")
    rates = [name for name in measured if any(_of_guards(model, name, of) for model in shown.values())]
    guards = [b for b in of.behaviors if any(metric(model, rate, b) for model in shown.values() for rate in rates)]
    if not guards:
        return None
    height = (0.27 * len(shown) + 0.95) * len(guards) + 0.5
    with drawing(max(6.8, 2.5 * len(rates) + 1.6), height) as (figure, picture):
        axes = figure.subplots(len(guards), len(rates), squeeze=False, sharey=True, sharex="col")
        for row, behavior in enumerate(guards):
            for column, rate in enumerate(rates):
                _forest(axes[row, column], rate, behavior, shown, of.styles)
            axes[row, 0].set_title(short(behavior), loc="left", weight="bold", pad=16)
        figure.supxlabel("line: 95 % interval", fontsize=8, color=MUTED)
    return picture.getvalue()


def _forest(ax: Axes, rate: str, behavior: str, shown: Models, styles: dict[str, Style]) -> None:
    drawn = []
    for place, (name, model) in enumerate(shown.items()):
        found, style = metric(model, rate, behavior), styles[name]
        if found is None:
            continue
        ax.plot(ends(found), [place, place], color=style.color, linewidth=1.4)
        ax.plot(percent(found["value"]), place, style.marker, color=style.color, markersize=6, clip_on=False)
        drawn.append(found)
    what = {"tag_recall": "triggers flagged", "tag_fpr_natural": "natural rows flagged"}
    what |= {"tag_fpr_hard": "hard negatives flagged", "tag_fpr_other": "other triggers flagged"}
    remark(ax, f"{what[rate]}, %  ·  {counted(drawn)}")
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_yticks(range(len(shown)), [styles[name].label for name in shown])
    ax.set_xlim(-4, 104)
    ax.set_xticks(range(0, 101, 25))
    ax.tick_params(length=0)
    ax.grid(axis="x")


# --- small things ---------------------------------------------------------------------------------------------------


def remark(ax: Axes, text: str) -> None:
    """A line of small print above a panel."""
    ax.annotate(text, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=MUTED)


def percent(share: float | int | None) -> float:
    assert share is not None, "only estimates with a value are drawn"
    return 100 * share


def counted(estimates: Iterable[Estimate]) -> str:
    """`n 200`, or `n 190 to 200` where models differ."""
    counts = [int(estimate["n"] or 0) for estimate in estimates]
    low, high = min(counts, default=0), max(counts, default=0)
    return f"n {high:,}" if low == high else f"n {low:,} to {high:,}"


def ends(estimate: Estimate) -> tuple[float, float]:
    """The interval in per cent; where none can be told, the value."""
    value = percent(estimate["value"])
    low, high = (value if estimate[end] is None else percent(estimate[end]) for end in ("low", "high"))
    return low, high


def brief(percent: float) -> str:
    """`100`, `99.5`, `0.3`, `12`: a decimal only near the ends, where it tells."""
    near = 0 < percent < 9.95 or 90 < percent < 100
    return f"{percent:.1f}".removesuffix(".0") if near else f"{percent:.0f}"
