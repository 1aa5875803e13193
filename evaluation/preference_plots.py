"""Pictures and report of reward models, from a run directory's files alone; nothing here imports torch.

    python main.py --task preference --mode visualize --output_dir runs/mv [--start_server --server_port 8000]

The directory may be one of three:

- a run of train: its curves, and if it was evaluated, everything below
- the output of evaluate alone, of any number of models: everything below, without curves
- a synthetic experiment, OUT_DIR/ENV/BATCH_LR_ITERATIONS: its figure (model_training/synthetic_figures.py)

    loss_curve.png             loss, accuracy, margin and spread over steps, on training batches and held-out pairs
    model_comparison.png       the main metrics of several models, with 95 % intervals
    reward_distributions.png   rewards of chosen and rejected answers, and the distribution of their difference
    spread_by_subset.png       spread of a pair by subset, and of contested and agreed pairs where the data knows them
    risk_curve.png             what choosing by the alpha-quantile gives as alpha falls, and the trade-off it makes
    reliability.png            how often the answer expected to win was chosen, by how sure the model was

Each is drawn if its numbers are there, and one line says why if not; preference_report.py puts them on the page. A
model has one color in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation import synthetic_report
from evaluation.statistics import wilson
from utils.errors import UserError
from utils.files import read_jsonl, write_atomic
from utils.formatting import METRIC_LABELS, neutralize
from utils.plots import MUTED, drawing, plot
from utils.series import Run, load_run, panels
from utils.visualization import write_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Models = dict[str, dict[str, Any]]
"""The evaluation's models by name, as preference.json holds them."""

TASK = "preference"
REPORT = "training_report.html"
ITEMS = Path("evaluation/preference_items.jsonl")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C2E", "#555B66")
"""Okabe and Ito's, which those who see few colors tell apart too; black and yellow, hard on paper, are replaced."""
MARKERS = "osD^vP"
REJECTED = "#8A91A0"
MOST_MODELS = 12
"""Models drawn in one picture; tables hold them all."""
LONGEST_NAME = 26
SIDES = ("chosen", "rejected")
SCORE_KEYS = [f"{score}_{side}" for score in ("mean", "spread") for side in SIDES]
COMPARED = ("accuracy", "jailbreak_rate", "compliance_rate", "r2", "spread_auroc", "ece", "log_loss")
RISK_AVERSE = {"accuracy": "accuracy_risk", "jailbreak_rate": "jailbreak_rate_risk"} | {
    "compliance_rate": "compliance_rate_risk"
}
SHARES = ("accuracy", "jailbreak_rate", "compliance_rate")
KINDS = ("agreed", "contested")


@dataclass(frozen=True)
class Items:
    """What one model says of N pairs; columns of the (N, 2) arrays: chosen, rejected."""

    mean: Floats
    spread: Floats
    subsets: list[str | None]
    kinds: list[str | None]

    @property
    def margin(self) -> Floats:
        """(N,)"""
        return np.asarray(self.mean[:, 0] - self.mean[:, 1])

    @property
    def pair_spread(self) -> Floats:
        """(N,), the spread of the difference of the two rewards."""
        return np.hypot(self.spread[:, 0], self.spread[:, 1])


@dataclass(frozen=True)
class Style:
    """How a model looks in every picture."""

    label: str
    color: str
    marker: str


def visualize(output_dir: str, start_server: bool, server_port: int, host: str) -> None:
    """Write pictures and report into the directory, print where they are, and serve them if asked."""
    from evaluation.preference_report import contents_of, live_page

    directory = Path(output_dir)
    run = load_run(directory)
    if task_of(run) != TASK:
        raise UserError(f"{directory} holds a run of task {task_of(run)}; give --task {task_of(run)}")
    pictures = draw(run, say=print)
    for path in write_pictures(directory, pictures):
        print(path)
    write_report(run, directory / REPORT, contents_of(run, pictures))
    print(directory / REPORT)
    if start_server:
        from utils.server import serve

        serve(directory, host, server_port, live_page(directory))


def task_of(run: Run) -> str | None:
    """The task whose run, or else whose evaluation, a directory holds."""
    found = run.manifest.get("task") or (run.evaluation or {}).get("task")
    return str(found) if found else None


def draw(run: Run, say: Callable[[str], None] = lambda line: None) -> dict[str, bytes]:
    """The PNGs that a directory has the numbers for, by file name; `say` hears of the others, and why."""
    if synthetic_report.is_synthetic(run):
        return synthetic_report.draw(run, say)
    models = models_of(run)
    items = read_items(run.path, models)
    styles = styles_of(list(models))
    pictures: dict[str, bytes] = {}
    for name, (drawn, why) in DRAWINGS.items():
        picture = drawn(run, models, items, styles)
        if picture is None:
            say(f"{name}: not drawn, {why}")
        else:
            pictures[name] = picture
    return pictures


def write_pictures(directory: Path, pictures: dict[str, bytes]) -> list[Path]:
    """Write them, and remove what an earlier evaluation left that this one has no numbers for."""
    for name in DRAWINGS:
        if name not in pictures:
            (directory / name).unlink(missing_ok=True)
    for name, picture in pictures.items():
        write_atomic(directory / name, picture)
    return [directory / name for name in pictures]


# --- numbers --------------------------------------------------------------------------------------------------------


def models_of(run: Run) -> Models:
    """The evaluated models by name, each with its metrics, be they none."""
    found = (run.evaluation or {}).get("models", {})
    return {name: {"metrics": {}} | model for name, model in found.items() if isinstance(model, dict)}


def read_items(directory: Path, models: Models) -> dict[str, Items]:
    """The pairs of each evaluated model; none where the file is missing.

    Raises:
        UserError: a row lacks a score, or it is no finite number.
    """
    if not (directory / ITEMS).is_file():
        return {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for number, row in enumerate(read_jsonl(directory / ITEMS), start=1):
        if row.get("model") not in rows:
            continue
        missing = [key for key in SCORE_KEYS if not _is_number(row.get(key))]
        if missing:
            raise UserError(f"{directory / ITEMS}:{number}: {missing[0]} is no number; run --mode evaluate again")
        rows[row["model"]].append(row)
    return {name: _items(of_model) for name, of_model in rows.items() if of_model}


def _items(rows: list[dict[str, Any]]) -> Items:
    mean, spread = (
        np.array([[row[f"{score}_{side}"] for side in SIDES] for row in rows]) for score in ("mean", "spread")
    )
    subsets, kinds = ([_text(row.get(key)) for row in rows] for key in ("data_subset", "kind"))
    return Items(mean, spread, subsets, kinds)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_known(estimate: object) -> bool:
    """Whether there is an estimate, and it has a value."""
    return isinstance(estimate, dict) and _is_number(estimate.get("value"))


def has_spread(model: dict[str, Any]) -> bool:
    return bool(model.get("kind") != "base")


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    return {
        name: Style(short(name), COLORS[index % len(COLORS)], MARKERS[index // len(COLORS) % len(MARKERS)])
        for index, name in enumerate(names)
    }


def layout(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for so many panels, at most so many side by side, the rows as full as they go."""
    rows = math.ceil(count / most)
    return rows, math.ceil(count / rows)


def short(name: str) -> str:
    """A name as a label: made safe, and cut where it is too long."""
    plain = str(neutralize(name)).replace("\n", " ")
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 1] + "…"


# --- curves, and several models -------------------------------------------------------------------------------------


def loss_curve(run: Run, models: Models, items: dict[str, Items], styles: dict[str, Style]) -> bytes | None:
    shown = [panel for panel in panels(run) if panel.group in ("loss", "pairs")]
    return plot(run, shown, 2) if shown else None


def model_comparison(run: Run, models: Models, items: dict[str, Items], styles: dict[str, Style]) -> bytes | None:
    """A row a model, a panel a metric: dot and interval, hollow for choosing by the risk-averse reward."""
    shown = dict(list(models.items())[:MOST_MODELS])
    metrics = [metric for metric in COMPARED if any(is_known(model["metrics"].get(metric)) for model in shown.values())]
    if len(shown) < 2 or not metrics:
        return None
    rows, columns = layout(len(metrics), 4)
    height = (0.34 * len(shown) + 1.0) * rows + 0.5
    with drawing(max(6.4, 2.5 * columns + 1.6), height) as (figure, picture):
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for metric, ax in zip(metrics, axes.flat, strict=False):
            _forest(ax, metric, shown, styles)
        for ax in axes.flat[len(metrics) :]:
            ax.set_axis_off()
        note = "line: 95 % interval"
        if any(RISK_AVERSE.get(metric) for metric in metrics):
            note += "  ·  filled: by the mean reward, hollow: by the risk-averse one"
        figure.supxlabel(note, fontsize=8, color=MUTED)
    return picture.getvalue()


def _forest(ax: Axes, metric: str, models: Models, styles: dict[str, Style]) -> None:
    scale = 100 if metric in SHARES else 1
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
    ax.set_title(title_of(metric) + (", %" if scale == 100 else ""), loc="left", fontsize=9.5)
    ax.margins(x=0.08)


def title_of(metric: str) -> str:
    """A metric as the title of a panel."""
    words = {"r2": "Explained variance r²", "ece": "Calibration error", "log_loss": "Log loss, nats"}
    return words.get(metric) or METRIC_LABELS.get(metric) or metric.replace("_", " ").capitalize()


# --- rewards and spreads --------------------------------------------------------------------------------------------


def reward_distributions(run: Run, models: Models, items: dict[str, Items], styles: dict[str, Style]) -> bytes | None:
    """For each model the rewards of both answers, above the distribution of their difference."""
    if not items:
        return None
    shown = list(items)[:MOST_MODELS]
    rows, columns = layout(len(shown), 4)
    with drawing(max(4.6, 3.3 * columns), 4.3 * rows + 0.3) as (figure, picture):
        axes = figure.subplots(2 * rows, columns, squeeze=False)
        for index, name in enumerate(shown):
            row, column = divmod(index, columns)
            _rewards(axes[2 * row, column], items[name], styles[name])
            _margins(axes[2 * row + 1, column], items[name], styles[name])
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


def spread_by_subset(run: Run, models: Models, items: dict[str, Items], styles: dict[str, Style]) -> bytes | None:
    """For each model with spread: the spread of pairs, all and by subset and kind, as mirrored histograms."""
    shown = [name for name in items if has_spread(models[name])][:MOST_MODELS]
    if not shown:
        return None
    rows, columns = layout(len(shown), 3)
    parts = max(len(spread_groups(items[name])) for name in shown)
    with drawing(max(4.6, (0.75 * parts + 1.0) * columns), 3.1 * rows + 0.3) as (figure, picture):
        axes = figure.subplots(rows, columns, squeeze=False)
        for name, ax in zip(shown, axes.flat, strict=False):
            _spreads(ax, spread_groups(items[name]), styles[name], models[name]["metrics"].get("spread_auroc"))
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


# --- risk -----------------------------------------------------------------------------------------------------------


def risk_curve(run: Run, models: Models, items: dict[str, Items], styles: dict[str, Style]) -> bytes | None:
    """Trade-offs first, then each measure over alpha."""
    shown = {name: model for name, model in models.items() if len(model.get("risk_curve") or []) > 1}
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
            _trade_off(ax, shown, other, styles)
        for measure, ax in zip(measures, flat[len(trades) :], strict=False):
            _over_alpha(ax, shown, measure, styles)
        for ax in flat[count:]:
            ax.set_axis_off()
        _legend(figure, shown, styles)
    return picture.getvalue()


def measures_of(models: Models) -> list[str]:
    """What the risk curves hold, in order: accuracy, of each subset, jailbreak rate."""
    found = dict.fromkeys(
        key
        for model in models.values()
        for row in model["risk_curve"]
        for key, value in row.items()
        if key != "alpha" and is_known(value)
    )
    return list(found)


def measure_title(measure: str) -> str:
    """`helpful` -> `Accuracy, helpful`."""
    if measure in ("accuracy", "jailbreak_rate"):
        return {"accuracy": "Accuracy, all pairs", "jailbreak_rate": "Jailbreak rate"}[measure]
    return f"Accuracy, {short(measure)}"


def curve_of(model: dict[str, Any], *measures: str) -> list[dict[str, Any]]:
    """The rows of a model's risk curve that have all these measures, from the largest alpha down."""
    rows = [row for row in model["risk_curve"] if all(is_known(row.get(measure)) for measure in measures)]
    return sorted(rows, key=lambda row: -row["alpha"])


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


def reliability(run: Run, models: Models, items: dict[str, Items], styles: dict[str, Style]) -> bytes | None:
    """A diagram a model: observed against predicted share, with the number of pairs in each bin below."""
    shown = [name for name, model in models.items() if model.get("reliability")][:MOST_MODELS]
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
            _calibration(above, models[shown[index]], styles[shown[index]])
            _counts(below, models[shown[index]], styles[shown[index]])
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


Drawn = Callable[[Run, Models, dict[str, Items], dict[str, Style]], bytes | None]

DRAWINGS: dict[str, tuple[Drawn, str]] = {
    "loss_curve.png": (loss_curve, "metrics.jsonl holds no loss of a reward model's training"),
    "model_comparison.png": (model_comparison, "it takes an evaluation of two models or more"),
    "reward_distributions.png": (reward_distributions, "evaluation/preference_items.jsonl holds no pairs"),
    "spread_by_subset.png": (
        spread_by_subset,
        "evaluation/preference_items.jsonl holds no pairs of a model with spread",
    ),
    "risk_curve.png": (risk_curve, "no evaluated model has a spread and several alphas"),
    "reliability.png": (reliability, "evaluation/preference.json holds no reliability table"),
}
"""Each picture by its file name, and what it wants."""
