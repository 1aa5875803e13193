"""Draws a run: two PNG plots (matplotlib) and one self-contained HTML page (jinja2, inline SVG), from its files alone.

    python main.py --mode visualize --output_dir outputs [--start_server --server_port 8000]

`utils.series` reads and decides what there is to show; this file only gives it a shape. The page asks the network for
nothing and runs no script. What a model wrote is untrusted: every value that reaches the template is escaped (jinja2
autoescape) after `neutralize` has made control, zero-width and bidirectional characters visible, so that no text can
act on the page or reorder what stands beside it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.files import write_atomic
from utils.formatting import (
    NBSP,
    duration,
    interval,
    metric_label,
    metric_value,
    moment,
    neutralize,
    number,
    scientific,
    untrusted,
)
from utils.series import (
    Panel,
    Run,
    Series,
    category_tables,
    ends,
    evaluation_table,
    failure_table,
    is_bounded,
    is_rate,
    load_run,
    paired_table,
    panels,
    reward_title,
    sample_completions,
    trace,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATE = "report.html.jinja"
MANIFEST_KEYS = ("task", "status", "reason", "started", "resumes", "dataset", "git_commit")
COMPLETION_KEYS = ("step", "prompt", "completion", "visible", "hidden", "failure", "rewards", "total")

LIVE_SCRIPT = Markup("""
(() => {
  const note = document.getElementById("live");
  async function follow() {
    try {
      const version = await (await fetch("/version", { cache: "no-store" })).text();
      const main = document.querySelector("main");
      if (version !== main.dataset.version) {
        const page = await (await fetch("/", { cache: "no-store" })).text();
        const fresh = new DOMParser().parseFromString(page, "text/html").querySelector("main");
        const open = new Map([...main.querySelectorAll("details[id]")].map((d) => [d.id, d.open]));
        fresh.querySelectorAll("details[id]").forEach((d) => { if (open.has(d.id)) d.open = open.get(d.id); });
        const scrolled = window.scrollY;
        main.replaceWith(fresh);
        window.scrollTo(window.scrollX, scrolled);
      }
      note.textContent = "follows the run";
    } catch {
      note.textContent = "server gone; this is the last state";
    }
  }
  setInterval(follow, 2000);
})();
""")


def visualize(output_dir: str, start_server: bool, server_port: int, host: str) -> None:
    """Write the plots and the report into the run directory, print where they are, and serve them if asked."""
    directory = Path(output_dir)
    run = load_run(directory)
    for path in write_plots(run, directory):
        print(path)
    report = directory / "training_report.html"
    write_report(run, report)
    print(report)
    if start_server:
        from utils.server import serve

        serve(directory, host, server_port)


# ------------------------------------------------------------------------------------------------------- charts


def y_range(panel: Panel, values: list[float]) -> tuple[float, float]:
    """0 to 1 for what is bounded; else from 0, unless a high total would hide its own movement."""
    low, high = min(values), max(values)
    if is_bounded(panel):
        return 0.0, 1.04
    if panel.key == "reward" and low > 0.3 * high:
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
    width: int
    height: int
    left: float
    bottom: float
    right: float
    top: float
    points: str
    line: str
    band: str
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    boundaries: list[tuple[float, str]]


def chart(panel: Panel, width: int = 340, height: int = 176) -> Chart:
    drawn = trace(panel)
    values = [value for part in (drawn.points, drawn.low, drawn.high) for value in part.numbers()]
    low, high = y_range(panel, values)
    first, last = panel.series.steps[0], panel.series.steps[-1]
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
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        points=_path(drawn.points, x, y) if smoothed else "",
        line=_path(drawn.line, x, y),
        band=_band(drawn.low, drawn.high, x, y),
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


# --------------------------------------------------------------------------------------------------------- PNG

INK, MUTED, RULE, ACCENT, WARM = "#1d2433", "#667085", "#e3e6ec", "#3457a6", "#98a2b3"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
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
            write_atomic(directory / name, _plot(run, of_plot, columns))
            written.append(directory / name)
        else:
            print(f"{name}: nothing to draw yet, the run has logged no such metric")
    return written


def _plot(run: Run, of_plot: list[Panel], columns: int) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(of_plot))
    rows = math.ceil(len(of_plot) / columns)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        cell = (4.6, 3.1) if len(of_plot) <= 2 else (3.9, 2.35)
        figure = Figure(figsize=(cell[0] * columns, cell[1] * rows + 0.6), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel, ax in zip(of_plot, axes.flat, strict=False):
            _draw(ax, panel)
        for ax in axes.flat[len(of_plot) :]:
            ax.set_axis_off()
        _caption(figure, run, of_plot)
        picture = BytesIO()
        FigureCanvasAgg(figure).print_png(picture)  # type: ignore[no-untyped-call]
    return picture.getvalue()


def _caption(figure: Figure, run: Run, of_plot: list[Panel]) -> None:
    config = run.manifest.get("config", {})
    model, task = (neutralize(str(part)) for part in (config.get("model_name") or "", run.manifest.get("task") or ""))
    figure.suptitle(
        " · ".join(str(part) for part in (task, model) if part), x=0.01, ha="left", fontsize=11, weight="bold"
    )
    parts = ["line: moving average", "pale line: logged values"]
    if any(panel.spread for panel in of_plot):
        parts.append("band: ± 1 standard deviation over the batch")
    figure.supxlabel("optimizer step        " + "  ·  ".join(parts), fontsize=8, color=MUTED)


def _draw(ax: Axes, panel: Panel) -> None:
    drawn = trace(panel, most=600)
    low, high = y_range(panel, [v for part in (drawn.points, drawn.low, drawn.high) for v in part.numbers()])

    def gapped(series: Series) -> list[float]:
        return [math.nan if value is None else value for value in series.values]

    steps = list(drawn.line.steps)
    if drawn.low.numbers():
        ax.fill_between(steps, gapped(drawn.low), gapped(drawn.high), color=ACCENT, alpha=0.14, linewidth=0)
    ax.plot(steps, gapped(drawn.points), color=ACCENT, alpha=0.3, linewidth=0.8)
    few = len(drawn.line.numbers()) < 3
    ax.plot(steps, gapped(drawn.line), color=ACCENT, linewidth=1.6, marker="o" if few else "", markersize=3)
    for stage in panel.stages[1:]:
        ax.axvline(stage.first_step - 0.5, color=WARM, linewidth=0.9, linestyle=(0, (3, 3)))
        ax.annotate(
            stage.name, (stage.first_step - 0.5, 1.0), (3, -1), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7, color=MUTED, va="top",
        )  # fmt: skip
    ax.set_ylim(low, high)
    y_values = ticks(low, high, 5)
    ax.set_yticks(y_values, tick_labels(y_values, panel.unit))
    ax.set_xticks(step_ticks(panel.series.steps[0], panel.series.steps[-1]))
    ax.tick_params(length=0)
    ax.grid(axis="y")
    unit = {"share": "", "rate": "", "": ""}.get(panel.unit, panel.unit)
    ax.set_title(str(neutralize(panel.title)) + (f" ({unit})" if unit else ""), loc="left", pad=17)
    if panel.note:
        ax.annotate(
            panel.note, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=MUTED
        )


# --------------------------------------------------------------------------------------------------------- page


def write_report(run: Run, path: Path) -> None:
    """One HTML file that needs nothing else: styles and charts inside, no script, no network."""
    write_atomic(path, render_report(run))


def render_report(run: Run, version: str | None = None) -> str:
    """The page as text. With a `version` it is the server's: it asks `/version` and takes up what changed."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=neutralize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(untrusted=untrusted, moment=moment, duration=duration, reward_title=reward_title)
    environment.globals.update(number=number, metric_value=metric_value, interval=interval, label=metric_label)
    environment.globals.update(score=score, bar=bar)
    found = panels(run)
    shown = sample_completions(run.completions)
    return environment.get_template(TEMPLATE).render(
        run=run,
        manifest=dict.fromkeys(MANIFEST_KEYS) | run.manifest,
        config={"model_name": None} | run.manifest.get("config", {}),
        version=version,
        live_script=LIVE_SCRIPT,
        tiles=training_tiles(run, found),
        held_out=held_out_tiles(run),
        charts=[chart(panel) for panel in found],
        has_spread=any(panel.spread for panel in found),
        completions=[dict.fromkeys(COMPLETION_KEYS) | row for row in shown],
        scales=reward_scales(shown),
        table=evaluation_table(run.evaluation) if run.evaluation else None,
        paired=paired_table(run.evaluation) if run.evaluation else None,
        categories=category_tables(run.evaluation) if run.evaluation else [],
        failures=failure_table(run.evaluation) if run.evaluation else ([], []),
        reproduce=reproduce(run.manifest),
        facts=flatten(run.manifest),
    )


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    details: list[str]


def held_out_tiles(run: Run, most: int = 6) -> list[Tile]:
    """The first metrics of the trained model, each with its interval and the base model's value."""
    if not run.evaluation:
        return []
    table = evaluation_table(run.evaluation)
    if not table.columns:
        return []
    name = "adapter" if "adapter" in table.columns else table.columns[-1]
    mine, base = table.columns.index(name), table.columns.index("base") if "base" in table.columns else None
    tiles = []
    for metric, cells in table.rows:
        cell, reference = cells[mine], cells[base] if base not in (None, mine) else None
        if cell is None or (not is_rate(metric) and metric != "mean_reward"):
            continue
        details = [interval(metric, cell)] + ([f"base {metric_value(metric, reference.value)}"] if reference else [])
        tiles.append(Tile(metric_label(metric), metric_value(metric, cell.value), details))
    return tiles[:most]


def training_tiles(run: Run, found: list[Panel]) -> list[Tile]:
    tiles = []
    for panel in found:
        if panel.key in ("reward", "strict_format_rate", "frac_reward_zero_std", "completions/mean_length"):
            span = ends(panel.series)
            assert span is not None, "a panel has at least one number"
            title, unit = (f"{panel.title}, tokens", "") if panel.unit == "tokens" else (panel.title, panel.unit)
            tiles.append(Tile(title, number(span[1], unit), [f"{number(span[0], unit)} at first"]))
    return tiles


def score(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) and math.isfinite(value) else "n/a"


def bar(value: object, full: float) -> float:
    """Length of a reward's bar, in per cent."""
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    return round(100 * min(1.0, max(0.0, value / full)), 1) if finite else 0.0  # type: ignore[operator]


def reward_scales(completions: list[dict[str, Any]]) -> dict[str, float]:
    """The full length of each reward's bar: 1, or the largest value shown where a reward goes beyond."""
    scales: dict[str, float] = {}
    for row in completions:
        for name, value in (row.get("rewards") or {}).items():
            usable = isinstance(value, (int, float)) and math.isfinite(value)
            scales[name] = max(scales.get(name, 1.0), float(value) if usable else 1.0)
    return scales


def reproduce(manifest: dict[str, Any]) -> tuple[str, str] | None:
    """The command, and the options as the YAML file it reads."""
    if "config" not in manifest:
        return None
    options = {key: value for key, value in manifest["config"].items() if value is not None}
    lines = [f"{key}: {_yaml(value)}" for key, value in options.items() if key not in ("resume", "overwrite")]
    command = f"python main.py --mode {manifest.get('mode', 'train')} --task {manifest.get('task', 'secret')}"
    return f"{command} --config run.yaml", "\n".join(lines)


def _yaml(value: object) -> str:
    """JSON, which YAML takes as it is but for one thing: to YAML 1.1, 5e-06 is a string and 5.0e-06 a number."""
    if isinstance(value, list):
        return f"[{', '.join(_yaml(part) for part in value)}]"
    text = json.dumps(value)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted name, value) pairs."""
    facts: list[tuple[str, str]] = []
    for key, part in value.items():
        if isinstance(part, dict):
            facts += flatten(part, f"{prefix}{key}.")
        else:
            facts.append((f"{prefix}{key}", part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)))
    return facts
