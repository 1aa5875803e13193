"""The figure of a synthetic experiment, from the run's own files and without torch.

    1d   normal preference learning beside Borda count and expected utility; mean and spread of mean_and_variance; the
         categorical distribution as a heat map, with the two branches of the true utility
    2d   expected utility, Borda count and spread of the world over what the networks learned of them

Spreads of 1d are clipped, since they grow beyond all bounds; in 2d they are those of ranks (synthetic_measures.py), and
so are the heights of the atoms: comparisons tell their order, nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError
from utils.files import write_atomic
from utils.plots import ACCENT, INK, MUTED, SECOND, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULT = "evaluation/synthetic.json"
FIGURE = "figure.png"
CLIP = 1.0
"""The band of 1d reaches this far beyond the learned means."""

Curves = dict[str, Any]


def draw(run: Path) -> list[Path]:
    """Draw the figure of a finished run into its directory; returns the files written.

    Raises:
        UserError: the run holds no result, or one that cannot be read.
    """
    path = run / RESULT
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{run} has no {RESULT}: the experiment has not ended; continue it with --resume") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; train again with --overwrite") from error
    target = run / FIGURE
    write_atomic(target, picture_1d(result) if result["env"] == "1d" else picture_2d(result))
    return [target]


# --- 1d -------------------------------------------------------------------------------------------------------------


def picture_1d(result: dict[str, Any]) -> bytes:
    """Three panels over the state a, as PNG."""
    a = np.array(result["states"])[:, 0]
    truth, learned = result["truth"], result["learned"]
    with drawing(10.4, 3.3) as (figure, picture):
        axes = figure.subplots(1, 3)
        _normal_learning(axes[0], a, truth, learned["base"])
        _mean_and_spread(axes[1], a, learned["mean_and_variance"])
        _distribution(figure, axes[2], a, truth, learned["categorical"])
        for ax in axes:
            ax.set_xlabel("state a")
            ax.set_xlim(0, 1)
            ax.tick_params(length=2)
        _caption(figure, result, "dashed orange on the right: the two branches of the true utility, by rank")
    return picture.getvalue()


def _normal_learning(ax: Axes, a: np.ndarray, truth: Curves, base: Curves) -> None:
    ax.set_title("Normal preference learning", loc="left")
    ax.plot(a, base["mean"], color=INK, linewidth=1.8)
    ax.set_ylabel("learned reward", color=INK)
    low, high = min(base["mean"]), max(base["mean"])
    ax.set_ylim(low - 0.08 * (high - low), high + 0.12 * (high - low))
    right = ax.twinx()
    below = np.array(truth["probability"]) == 1
    for part in (below, ~below):
        right.plot(a[part], np.array(truth["borda_count"])[part], color=ACCENT, linewidth=1.4, linestyle=(0, (5, 2)))
    right.plot(a, truth["expected_utility"], color=SECOND, linewidth=1.4, linestyle=(0, (1.5, 1.5)))
    right.set_ylim(-0.05, 1.08)
    right.set_ylabel("Borda count, expected utility")
    right.spines["right"].set_visible(True)
    right.tick_params(length=2)
    for color, style, text in (
        (INK, "-", "learned reward"),
        (ACCENT, (0, (5, 2)), "Borda count"),
        (SECOND, (0, (1.5, 1.5)), "expected utility"),
    ):
        ax.plot([], [], color=color, linestyle=style, linewidth=1.6, label=text)
    ax.legend(loc="lower right", frameon=False, fontsize=8, labelcolor="linecolor")


def _mean_and_spread(ax: Axes, a: np.ndarray, normal: Curves) -> None:
    mean, spread = np.array(normal["mean"]), np.array(normal["spread"])
    bottom, top = mean.min() - CLIP, mean.max() + CLIP
    ax.set_title("DPL, mean and variance", loc="left")
    ax.fill_between(
        a,
        np.clip(mean - spread, bottom, top),
        np.clip(mean + spread, bottom, top),
        color=ACCENT,
        alpha=0.18,
        linewidth=0,
    )
    ax.plot(a, mean, color=ACCENT, linewidth=1.8)
    ax.set_ylim(bottom, top)
    ax.set_ylabel("learned mean ± spread")
    note = f"band clipped to the panel:\nspread {spread.min():.0e} to {spread.max():.0e}"
    ax.annotate(note, (0.04, 0.95), xycoords="axes fraction", fontsize=7.5, color=MUTED, va="top")


def _distribution(figure: Figure, ax: Axes, a: np.ndarray, truth: Curves, atoms: Curves) -> None:
    distribution = np.array(atoms["distribution"])
    edges = np.concatenate([[0.0], np.cumsum(atoms["share_of_atoms"])])
    half = 0.5 / len(a)
    ax.set_title("DPL, categorical", loc="left")
    mesh = ax.pcolormesh(
        np.concatenate([a - half, [1.0]]), edges / edges[-1], distribution.T, cmap="Blues", vmin=0, vmax=1
    )
    below = np.array(truth["probability"]) == 1
    for part, ranks in ((below, "rank_of_value"), (~below, "rank_of_value"), (~below, "rank_of_zero")):
        ax.plot(a[part], np.array(truth[ranks])[part], color=SECOND, linewidth=1.3, linestyle=(0, (4, 2)))
    ax.plot([], [], color=SECOND, linewidth=1.3, linestyle=(0, (4, 2)), label="true utility")
    ax.legend(loc="upper left", frameon=False, fontsize=8, labelcolor="linecolor")
    ax.set_ylim(0, 1)
    ax.set_ylabel("rank of the utility: share below")
    bar = figure.colorbar(mesh, ax=ax, ticks=[0, 0.5, 1], fraction=0.05, pad=0.02)
    bar.set_label("probability of the atom")
    bar.outline.set_visible(False)


# --- 2d -------------------------------------------------------------------------------------------------------------


def picture_2d(result: dict[str, Any]) -> bytes:
    """Six panels over the square, the truth above what was learned, as PNG."""
    truth, learned, numbers = result["truth"], result["learned"], result["numbers"]
    panels = [
        ("Expected utility", truth["expected_utility"], None, (0, 1), ""),
        ("Borda count", truth["borda_count"], None, (0, 1), ""),
        ("Spread of the utility's rank", truth["rank_spread"], None, (0, 0.5), ""),
        ("Normal learning: Borda count", learned["base"]["borda_count"], "borda_count", (0, 1), "base"),
        *(
            (f"DPL, {title}: spread", learned[name]["rank_spread"], "rank_spread", (0, 0.5), name)
            for title, name in (("mean and variance", "mean_and_variance"), ("categorical", "categorical"))
        ),
    ]
    with drawing(10.0, 6.3) as (figure, picture):
        axes = figure.subplots(2, 3)
        for ax, (title, values, true_values, limits, name) in zip(axes.flat, panels, strict=True):
            _square(figure, ax, values, truth.get(true_values), limits)
            ax.set_title(title, loc="left")
            if name == "base":
                _note(ax, f"Spearman with Borda count {numbers[name]['spearman_borda_count']:.4f}")
            elif name:
                _note(ax, f"Spearman of spreads {numbers[name]['spearman_spread']:.4f}")
        _caption(
            figure, result, "dashed: the truth at the same levels; spreads are those of ranks (share of states below)"
        )
    return picture.getvalue()


def _square(
    figure: Figure, ax: Axes, values: list[float], truth: list[float] | None, limits: tuple[float, float]
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    pale = ListedColormap(colormaps["Blues"](np.linspace(0, 0.7, 256)))
    side = round(len(values) ** 0.5)
    middles = (np.arange(side) + 0.5) / side
    levels = np.linspace(*limits, 11)[1:-1]

    def drawn(flat: list[float]) -> np.ndarray:
        return np.array(flat).reshape(side, side).T

    image = ax.imshow(
        drawn(values), origin="lower", extent=(0, 1, 0, 1), cmap=pale, vmin=limits[0], vmax=limits[1],
        interpolation="bilinear",
    )  # fmt: skip
    ax.contour(middles, middles, drawn(values), levels=levels, colors=INK, linewidths=0.6)
    if truth is not None:
        ax.contour(
            middles, middles, drawn(truth), levels=levels, colors=SECOND, linewidths=1.0, linestyles=[(0, (4, 2))]
        )
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    ax.set_xticks([0, 0.5, 1])
    ax.set_yticks([0, 0.5, 1])
    ax.tick_params(length=2)
    bar = figure.colorbar(image, ax=ax, ticks=[limits[0], sum(limits) / 2, limits[1]], fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)


def _note(ax: Axes, text: str) -> None:
    ax.annotate(text, (0, -0.24), xycoords="axes fraction", fontsize=8, color=MUTED)


def _caption(figure: Figure, result: dict[str, Any], text: str) -> None:
    config = result["config"]
    context = "one context for both sides" if config["shared_context"] else "a context for each side"
    title = (
        f"{result['env']}  ·  {config['estimator']}, batch {config['batch_size']}, lr {config['lr']}, "
        f"{config['num_iterations']} iterations  ·  {context}"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    figure.supxlabel(text, fontsize=8, color=MUTED)
