"""Pictures of a run as PNG, by matplotlib's own canvas: no window system, no pyplot, no state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from utils.charts import step_ticks, tick_labels, ticks, y_range
from utils.files import write_atomic
from utils.formatting import neutralize
from utils.panels import Panel, panels, trace
from utils.series import Run, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, MUTED, RULE, ACCENT, SECOND, WARM = "#1d2433", "#667085", "#e3e6ec", "#3457a6", "#c2571a", "#98a2b3"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.edgecolor": "#c5cad3",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "path.simplify": True,
}


def write_plots(run: Run, directory: Path) -> list[Path]:
    """`loss_curve.png` and `reward_components.png`; without metrics to draw, none of them (and a line that says so)."""
    found = panels(run)
    loss = [panel for panel in found if panel.group == "loss"]
    rest = [panel for panel in found if panel.group != "loss"]
    written = []
    for name, of_plot, columns in (("loss_curve.png", loss, 2), ("reward_components.png", rest, 3)):
        if of_plot:
            write_atomic(directory / name, plot(run, of_plot, columns))
            written.append(directory / name)
        else:
            print(f"{name}: nothing to draw yet, the run has logged no such metric")
    return written


def plot(run: Run, of_plot: Sequence[Panel], columns: int) -> bytes:
    """One picture of these panels, at most `columns` side by side."""
    rows, columns = layout(len(of_plot), columns)
    cell = (4.6, 3.1) if len(of_plot) <= 2 else (3.9, 2.35)
    with drawing(cell[0] * columns, cell[1] * rows + 0.6) as (figure, picture):
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel, ax in zip(of_plot, axes.flat, strict=False):
            _draw(ax, panel)
        for ax in axes.flat[len(of_plot) :]:
            ax.set_axis_off()
        _caption(figure, run, of_plot)
    return picture.getvalue()


def layout(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for so many panels, at most so many side by side, the rows as full as they go."""
    rows = math.ceil(count / most)
    return rows, math.ceil(count / rows)


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, BytesIO]]:
    """An empty figure of so many inches in the house's style; at the end it is in the buffer, as PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = BytesIO()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure, picture
        FigureCanvasAgg(figure).print_png(picture)  # type: ignore[no-untyped-call]


def _caption(figure: Figure, run: Run, of_plot: Sequence[Panel]) -> None:
    config = run.manifest.get("config", {})
    model, task = (neutralize(str(part)) for part in (config.get("model_name") or "", run.manifest.get("task") or ""))
    figure.suptitle(
        " · ".join(str(part) for part in (task, model) if part), x=0.01, ha="left", fontsize=11, weight="bold"
    )
    parts = ["line: moving average", "pale line: logged values"]
    if any(panel.spread for panel in of_plot):
        parts.append("band: ± 1 standard deviation over the batch")
    if any(panel.held_out for panel in of_plot):
        parts.append("dots: held-out")
    figure.supxlabel("optimizer step        " + "  ·  ".join(parts), fontsize=8, color=MUTED)


def _draw(ax: Axes, panel: Panel) -> None:
    drawn = trace(panel, most=600)
    held_out = panel.held_out or Series((), ())
    shown = (drawn.points, drawn.low, drawn.high, held_out)
    low, high = y_range(panel, [value for part in shown for value in part.numbers()])

    def gapped(series: Series) -> list[float]:
        return [math.nan if value is None else value for value in series.values]

    steps = list(drawn.line.steps)
    if drawn.low.numbers():
        ax.fill_between(steps, gapped(drawn.low), gapped(drawn.high), color=ACCENT, alpha=0.14, linewidth=0)
    ax.plot(steps, gapped(drawn.points), color=ACCENT, alpha=0.3, linewidth=0.8)
    few = len(drawn.line.numbers()) < 3
    ax.plot(steps, gapped(drawn.line), color=ACCENT, linewidth=1.6, marker="o" if few else "", markersize=3)
    if held_out.numbers():
        ax.plot(
            held_out.steps, gapped(held_out), color=SECOND, linewidth=1.3, marker="o", markersize=3.5, label="held-out"
        )
    for stage in panel.stages[1:]:
        ax.axvline(stage.first_step - 0.5, color=WARM, linewidth=0.9, linestyle=(0, (3, 3)))
        ax.annotate(
            stage.name, (stage.first_step - 0.5, 1.0), (3, -1), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7, color=MUTED, va="top",
        )  # fmt: skip
    ax.set_ylim(low, high)
    y_values = ticks(low, high, 5)
    ax.set_yticks(y_values, tick_labels(y_values, panel.unit))
    ax.set_xticks(step_ticks(*panel.step_range))
    ax.tick_params(length=0)
    ax.grid(axis="y")
    unit = {"share": "", "rate": "", "": ""}.get(panel.unit, panel.unit)
    ax.set_title(str(neutralize(panel.title)) + (f" ({unit})" if unit else ""), loc="left", pad=17)
    if panel.note:
        ax.annotate(
            panel.note, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=MUTED
        )
