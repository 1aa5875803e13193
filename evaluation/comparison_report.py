"""What several runs are beside each other, in words: for a terminal, and for the page that any run has.

    text(compare([Path("runs/a"), Path("runs/b")]))       verdict, options that differ, paired differences

The page is made of what any page is: a `Run` with the compared ones below it and an evaluation whose models are
theirs (`merged`), and `Contents` with verdict, ranks, options and further models.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.run_comparison import Comparison, evaluated
from evaluation.tables import table
from utils.compare import Metric, Ranking, differing, evaluation_options
from utils.formatting import basis, metric_label, metric_value, neutralize
from utils.series import HELD_OUT, Run
from utils.tables import Cell, cell, paired_table
from utils.visualization import Contents, Grid, Section, Tile

PRINTED = {
    "secret": ("strict_format_rate", "leak_rate", "relevance_rate", "facts_right_rate", "mean_reward"),
    "preference": ("accuracy", "accuracy_risk"),
    "guardrail": ("f1", "tag_recall", "behavior_recall", "natural_accuracy"),
}
"""Differences that the terminal shows, beside that of the metric which ranks; the page has all."""


# ------------------------------------------------------------------------------------------------------- words


def verdict(of: Comparison) -> list[str]:
    """The best run and by how much, then what to be careful of."""
    return [_best(of), *of.notes]


def _best(of: Comparison) -> str:
    ranked = of.ranking
    if ranked is None:
        return "No metric to rank the runs by: nothing was evaluated or logged that says which is better."
    name, source = _plain(ranked.metric), _source_text(ranked.metric)
    shown = [f"{run} {metric_value(name, found.value)}" for run in ranked.order if (found := ranked.scores[run])]
    if len(ranked.order) == 1:
        return f"Only {ranked.order[0]} has {metric_label(name).lower()} ({source}): {shown[0]}."
    best, second = ranked.order[:2]
    head = f"Best by {metric_label(name)} ({source}, {ranked.metric.direction} is better): {', '.join(shown)}."
    gap = difference_of(of, best, second, ranked.metric.name)
    if _tied(ranked, best, second):
        head = f"No best by {metric_label(name)} ({source}): {best} and {second} are equal. {', '.join(shown)}."
    if ranked.metric.source == "training":
        return f"{head} A value of training has no interval: --mode evaluate tells whether the difference is real."
    if gap is None:
        return f"{head} No paired difference of {best} and {second}."
    sure = "its interval leaves out 0" if gap.excludes_zero else "its interval holds 0: they are not told apart"
    value, rest = metric_value(name, gap.value, difference=True), basis(name, gap, difference=True)
    return f"{head} {best} - {second}, paired: {value} ({rest}); {sure}."


def _tied(ranked: Ranking, best: str, second: str) -> bool:
    first, other = ranked.scores[best], ranked.scores[second]
    return first is not None and other is not None and math.isclose(first.value, other.value, abs_tol=1e-12)


def _plain(metric: Metric) -> str:
    """Its name without where it was measured, which labels and units go by."""
    return metric.name.removeprefix(f"{HELD_OUT}/")


def _source_text(metric: Metric) -> str:
    if metric.source == "evaluation":
        return "evaluation"
    return "best held-out value while training" if metric.name.startswith(f"{HELD_OUT}/") else "end of training"


def difference_of(of: Comparison, first: str, second: str, metric: str) -> Cell | None:
    """first - second, whichever way round it was told."""
    if (first, second) in of.paired:
        return cell(of.paired[first, second].metrics.get(metric))
    found = cell(of.paired[second, first].metrics.get(metric)) if (second, first) in of.paired else None
    if found is None:
        return None
    low, high = (None if edge is None else -edge for edge in (found.high, found.low))
    return Cell(-found.value, found.n, low, high)


# -------------------------------------------------------------------------------------------------------- page


def merged(of: Comparison) -> Run:
    """One run with the compared ones below it, and with an evaluation whose models are theirs."""
    below = {name: one for name, run in of.runs.items() for name, one in _flat(name, run)}
    alarms = [replace(alarm, text=f"{name}: {alarm.text}") for name, run in below.items() for alarm in run.alarms]
    faults = tuple(f"{name}: {fault}" for name, run in of.runs.items() for fault in run.faults)
    return Run(
        path=Path(f"{len(of.runs)} runs"),
        manifest={},
        series={},
        stages=(),
        alarms=tuple(alarms),
        completions=[],
        evaluation=evaluation(of),
        seconds=None,
        last_logged=None,
        runs=below,
        faults=faults,
    )


def _flat(name: str, run: Run) -> list[tuple[str, Run]]:
    return [(f"{name}/{part}", one) for part, one in run.runs.items()] or [(name, run)]


def evaluation(of: Comparison) -> dict[str, Any] | None:
    """The trained model of each run under the run's name, and their paired differences."""
    models = {
        name: evaluated(run)[model] for name, run in of.runs.items() if (model := of.models.get(name)) is not None
    }
    if not models:
        return None
    differences = {f"{first} - {second}": found.metrics for (first, second), found in of.paired.items()}
    return {"task": of.task, "models": models, "paired": differences}


def contents_of(of: Comparison) -> Contents:
    return Contents(
        title=f"{of.task} · {', '.join(of.runs)}",
        verdict=verdict(of),
        held_out=_tiles(of),
        held_out_title=f"Ranked by {metric_label(_plain(of.ranking.metric))}" if of.ranking else "Ranking",
        held_out_note=_ranking_note(of),
        training=[],
        compared_on="the trained model of each run",
        evaluate=None,
        writes_completions=any(run.completions for run in of.runs.values()),
        first_sections=[_options(of)],
        sections=_other_models(of),
    )


def _ranking_note(of: Comparison) -> str:
    if of.ranking is None:
        return ""
    models = {name: model for name, model in of.models.items() if model is not None}
    shown = ", ".join(f"{name}: {model}" for name, model in models.items())
    is_news = of.ranking.metric.source == "evaluation" and any(name != model for name, model in models.items())
    told = f" Models: {shown}." if is_news else ""
    return f"From {_source_text(of.ranking.metric)}; {of.ranking.metric.direction} is better.{told}"


def _tiles(of: Comparison) -> list[Tile]:
    if of.ranking is None:
        return []
    name, tiles = _plain(of.ranking.metric), []
    for place, run in enumerate(of.ranking.order, start=1):
        found = of.ranking.scores[run]
        if found is not None:
            details = [basis(name, found)] if found.low is not None else []
            tiles.append(Tile(f"{place}. {run}", metric_value(name, found.value), details))
    return tiles


def _options(of: Comparison) -> Section:
    names, (options, facts) = list(of.runs), differing(of.runs)
    asked = evaluation_options(of.runs)
    grids = [
        Grid(title, [head, *names], rows)
        for title, head, rows in (
            ("Training", "Option", options),
            ("Evaluation", "Option", asked),
            ("Data, code and machine", "Fact", facts),
        )
        if rows
    ]
    note = "Only what is not the same in all runs." if grids else "None: all runs were given the same options."
    return Section("Options that differ", note, grids=grids)


def _other_models(of: Comparison) -> list[Section]:
    """Models beside the trained ones that several runs evaluated, each with a column a run."""
    shared = dict.fromkeys(
        model
        for name, run in of.runs.items()
        for model in evaluated(run)
        if model != of.models[name] and sum(model in evaluated(other) for other in of.runs.values()) > 1
    )
    grids = [grid for model in shared if (grid := _model_grid(of, model))]
    note = "Models that several runs evaluated, other than the trained one."
    return [Section("Other models", note, grids=grids)] if grids else []


def _model_grid(of: Comparison, model: str) -> Grid | None:
    found = {name: evaluated(run)[model].get("metrics", {}) for name, run in of.runs.items() if model in evaluated(run)}
    if all(metrics == next(iter(found.values())) for metrics in found.values()):
        return None
    rows = []
    for metric in dict.fromkeys(metric for metrics in found.values() for metric in metrics):
        cells = [cell(metrics.get(metric)) for metrics in found.values()]
        rows.append((metric_label(metric), [None if at is None else (metric, at) for at in cells]))
    return Grid(model, ["Metric", *found], rows)


def text(of: Comparison) -> str:
    """The verdict, the options that differ and the paired differences, for a terminal."""
    names, (options, facts) = list(of.runs), differing(of.runs)
    parts = ["\n".join(verdict(of))]
    rows = [(name, [_short(value) for value in values]) for name, values in options + facts]
    if rows:
        parts.append(table("differs", names, rows))
    found = evaluation(of)
    if found is not None:
        differences = paired_table(found)
        shown = [
            (name, [_difference_text(name, at) for at in cells])
            for name, cells in differences.rows
            if name in (*PRINTED.get(of.task, ()), of.ranking.metric.name if of.ranking else "")
        ]
        if shown:
            parts.append(table("paired difference", differences.columns, shown))
    return str(neutralize("\n\n".join(parts)))


def _short(text: str, longest: int = 24) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _difference_text(metric: str, found: Cell | None) -> str:
    if found is None:
        return "-"
    return f"{metric_value(metric, found.value, difference=True)} ({basis(metric, found, difference=True)})"
