"""Draws a run: PNG plots (utils.plots) and one self-contained HTML page (jinja2), from its files alone.

    python main.py --mode visualize --output_dir outputs [--start_server --server_port 8000]

`utils.series` and `utils.tables` read and decide what there is to show; this file only gives it a shape. What a task
has to say of its own, it says as `Contents`: words, tiles, and sections of pictures, tables and texts.

The page reads and prints without its script, which makes curves to zoom into and completions to browse of the data of
`utils.report_data`. A directory whose runs lie below it (`run.runs`) is a page of all of them, overlaid. The page asks
the network for nothing and runs this one script. What a model wrote is untrusted: every value that reaches the template
is escaped (jinja2 autoescape) after `neutralize` has made control, zero-width and bidirectional characters visible, so
that no text can act on the page or reorder what stands beside it; the script does the same with what it shows.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.charts import chart
from utils.files import write_atomic
from utils.formatting import (
    basis,
    duration,
    interval,
    metric_label,
    metric_value,
    moment,
    neutralize,
    number,
    untrusted,
)
from utils.interval_bars import bar_in_category, bar_in_column, bar_in_row, bar_of_difference
from utils.page import HERE, TEMPLATE, pack, pack_rows, policy, script, style
from utils.panels import Panel, ends, is_rate, panels, reward_title, sample_completions
from utils.plots import write_plots
from utils.report_data import report_data
from utils.series import Run, load_run
from utils.tables import Cell, category_tables, evaluation_table, failure_table, paired_table
from utils.verdict import verdict

MANIFEST_KEYS = ("task", "status", "reason", "started", "resumes", "dataset", "git_commit")
COMPLETION_KEYS = ("step", "prompt", "completion", "visible", "hidden", "failure", "rewards", "total")


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

        serve(directory, host, server_port, render_report)


# ------------------------------------------------------------------------------------------ what a task can add


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    details: list[str]


@dataclass(frozen=True)
class Picture:
    """A PNG; `text` says what it shows to those who cannot see it."""

    text: str
    png: bytes

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def width(self) -> int:
        """Its width on the page, 100 pixels an inch: screens that have more show all of its 150."""
        return int.from_bytes(self.png[16:20]) * 100 // 150


@dataclass(frozen=True)
class Passage:
    """Texts to read beside each other, each with a heading; all of them untrusted."""

    title: str
    prompt: str
    texts: list[tuple[str, str]]


@dataclass(frozen=True)
class Grid:
    """A table of plain text, or of a metric's cells with its name; the first column is for the names of the rows."""

    title: str
    columns: list[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, Cell] | str | None]]]


@dataclass(frozen=True)
class Section:
    """A part of the page; `passages` are folded away under a heading each."""

    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    passages: list[tuple[str, list[Passage]]] = field(default_factory=list)


@dataclass(frozen=True)
class Contents:
    """What a task puts on the page: its words for what every run has, and parts of its own.

    Without `held_out`, `training` or `tables`, tiles and tables are made of the metrics. `evaluate` is the command that
    adds an evaluation, None where there can be none. `curves` stand before the charts of the metrics. `recipes` are
    the options of other commands whose results the page shows, each as a manifest holds them.
    """

    title: str | None = None
    verdict: list[str] = field(default_factory=list)
    held_out: list[Tile] | None = None
    held_out_title: str = "Held-out result"
    held_out_note: str = "The trained model on queries it never saw, with 95 % intervals."
    training: list[Tile] | None = None
    training_note: str = (
        "Rollouts on training prompts: mean over the last tenth of the log events, beside the first tenth."
    )
    compared_on: str = "all models on the same held-out queries"
    evaluate: str | None = "python main.py --mode evaluate"
    tables: list[Grid] | None = None
    curves: list[Picture] = field(default_factory=list)
    no_curves: str = "No metrics yet: the first appear with the first log event of --mode train."
    writes_completions: bool = True
    first_sections: list[Section] = field(default_factory=list)
    """Stand before the curves; `sections` after the evaluation."""
    sections: list[Section] = field(default_factory=list)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------------- page


def write_report(run: Run, path: Path, contents: Contents | None = None) -> None:
    """One HTML file that needs nothing else: style, script, data and pictures inside, no network."""
    write_atomic(path, render_report(run, contents=contents))


def render_report(run: Run, version: str | None = None, contents: Contents | None = None) -> str:
    """The page as text. With a `version` it is the server's, and follows the run from that version on."""
    contents = contents or Contents()
    found = panels(run)
    below = {name: panels(one) for name, one in run.runs.items()}
    everything = [panel for of_run in (found, *below.values()) for panel in of_run]
    shown = sample_completions(run.completions)
    data = report_data([run])
    rows = data["completions"].pop("rows")
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            run=run,
            manifest=dict.fromkeys(MANIFEST_KEYS) | run.manifest,
            config={"model_name": None} | run.manifest.get("config", {}),
            version=version,
            contents=contents,
            verdict=contents.verdict or verdict(run),
            tiles=training_tiles(found) if contents.training is None else contents.training,
            held_out=held_out_tiles(run) if contents.held_out is None else contents.held_out,
            charts=[chart(panel) for panel in found],
            charts_below={name: [chart(panel) for panel in of_run] for name, of_run in below.items() if of_run},
            has_spread=any(panel.spread for panel in everything),
            has_held_out=any(panel.held_out for panel in everything),
            completions=[dict.fromkeys(COMPLETION_KEYS) | row for row in shown],
            total=data["completions"]["total"],
            scales=reward_scales(shown),
            table=evaluation_table(run.evaluation) if run.evaluation else None,
            paired=paired_table(run.evaluation) if run.evaluation else None,
            categories=category_tables(run.evaluation) if run.evaluation else [],
            failures=failure_table(run.evaluation) if run.evaluation else ([], []),
            reproduce=reproduce(run.manifest),
            facts=flatten(run.manifest),
            recipes=recipes(run, contents),
            data=pack(data),
            row_blocks=pack_rows(rows),
        )
    )


def environment() -> Environment:
    """Jinja with the rules of this page: everything is escaped, and what a template misses is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=neutralize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(untrusted=untrusted, moment=moment, duration=duration, reward_title=reward_title)
    made.globals.update(number=number, metric_value=metric_value, basis=basis, label=metric_label, score=score, bar=bar)
    made.globals.update(
        bar_in_row=bar_in_row,
        bar_in_column=bar_in_column,
        bar_in_category=bar_in_category,
        bar_of_difference=bar_of_difference,
    )
    made.globals.update(script=script(), style=style(), policy=policy(live=False))
    return made


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


def training_tiles(found: list[Panel]) -> list[Tile]:
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


def recipes(run: Run, contents: Contents) -> list[tuple[str, tuple[str, str] | None, list[tuple[str, str]]]]:
    """How to repeat each run below, and each command whose results stand on the page: name, recipe, facts."""
    below = [(name, reproduce(one.manifest), flatten(one.manifest)) for name, one in run.runs.items()]
    return below + [(name, reproduce(manifest), []) for name, manifest in contents.recipes.items()]


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
