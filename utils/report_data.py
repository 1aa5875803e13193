"""What the report's script draws and browses, as one JSON value: curves and completions of some runs.

    data = report_data([run])                       one run; a directory of runs gives those below it
    data = report_data([a, b, c], ["a", "b", "c"])  several, overlaid chart by chart

    {"format": 1,
     "runs": [{"name", "task", "status", "step", "planned_steps", "stages", "alarms", "faults"}],
     "charts": [{"key", "title", "unit", "group", "note", "lines": [
         {"run", "kind": "value" | "held_out", "steps", "values", "low", "high", "means", "thinned"}]}],
     "completions": {"total", "kept", "rewards": [names], "rows": [
         {"run", "step", "prompt", "visible", "hidden", "failure", "completion", "rewards", "total", "cut"}]}}

A chart holds the lines of all runs that logged it; `low` and `high` are the band of one standard deviation. A line that
was too long has `thinned` (how many points it had and has, and how they were chosen) and, point by point, `means` of
the neighborhood that each kept point stands for: moving averages are to be made of these. Gaps are None; no value is
NaN, so the result is standard JSON. Texts are as the model wrote them, hence untrusted, and may hold lone surrogates;
the raw `completion` is there only where the strict grammar refused it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from utils.downsample import HOW
from utils.panels import Panel, is_bounded, panels
from utils.series import Run, Series, finite

FORMAT = 1
MOST_POINTS = 4000
"""Points of a line; of several runs each gets its share, so that a page of ten is no larger than two of one."""
LEAST_POINTS = 500
MOST_ROWS = 100_000
LONGEST_TEXT = 200_000
"""Characters of one text that reach the page; `cut` says how many of a row's do not."""
SIGNIFICANT_DIGITS = 6

Data = dict[str, Any]


def report_data(
    runs: Sequence[Run], names: Sequence[str] | None = None, most_points: int = MOST_POINTS, most_rows: int = MOST_ROWS
) -> Data:
    """Everything the page's script needs; a directory of runs stands for the runs below it."""
    named = list(zip(names or [run.path.resolve().name for run in runs], runs, strict=True))
    shown = list(flat(named))
    points = max(LEAST_POINTS, most_points // max(1, (len(shown) + 1) // 2))
    return {
        "format": FORMAT,
        "runs": [about(name, run) for name, run in shown],
        "charts": charts([run for _, run in shown], points),
        "completions": completions([run for _, run in shown], most_rows),
    }


def flat(named: Iterable[tuple[str, Run]]) -> Iterable[tuple[str, Run]]:
    for name, run in named:
        if run.series or run.completions or run.manifest or not run.runs:
            yield name, run
        yield from run.runs.items()


def about(name: str, run: Run) -> Data:
    status = run.manifest.get("status")
    return {
        "name": name,
        "task": run.manifest.get("task"),
        "status": status if isinstance(status, str) else None,
        "step": run.last_step,
        "planned_steps": run.planned_steps,
        "stages": [
            {"name": stage.name, "first_step": stage.first_step, "last_step": stage.last_step} for stage in run.stages
        ],
        "alarms": [{"step": alarm.step, "text": alarm.text} for alarm in run.alarms],
        "faults": list(run.faults),
    }


# ----------------------------------------------------------------------------------------------------- curves


def charts(runs: Sequence[Run], most_points: int = MOST_POINTS) -> list[Data]:
    """One chart a metric, in the order of the first run that logged it; each with the lines of all runs."""
    found: dict[str, Data] = {}
    for index, run in enumerate(runs):
        for panel in panels(run):
            of_key = found.setdefault(panel.key, _chart(panel))
            of_key["lines"].append(value_line(index, panel, most_points))
            if panel.held_out:
                of_key["lines"].append(_line(index, "held_out", panel.held_out, most_points))
    return list(found.values())


def _chart(panel: Panel) -> Data:
    return {
        "key": panel.key,
        "title": panel.title,
        "unit": panel.unit,
        "group": panel.group,
        "note": panel.note,
        "lines": [],
    }


def value_line(run: int, panel: Panel, most: int) -> Data:
    """A panel's own line with its band: around the values, or around the means where points were left out."""
    line = _line(run, "value", panel.series, most)
    if panel.spread:
        middle = line["means"] or line["values"]
        spread = _at(panel.spread, line["steps"])
        bounded = is_bounded(panel)
        edges = [_edges(mean, deviation, bounded) for mean, deviation in zip(middle, spread, strict=True)]
        line["low"], line["high"] = [edge[0] for edge in edges], [edge[1] for edge in edges]
    return line


def _line(run: int, kind: str, series: Series, most: int) -> Data:
    shown = series.thinned(most)
    logged = shown.logged or len(shown.steps)
    return {
        "run": run,
        "kind": kind,
        "steps": list(shown.steps),
        "values": [_short(value) for value in shown.values],
        "low": None,
        "high": None,
        "means": None if shown.means is None else [_short(value) for value in shown.means],
        "thinned": {"from": logged, "kept": len(shown.steps), "how": HOW} if logged > len(shown.steps) else None,
    }


def _at(spread: Series, steps: Sequence[int]) -> list[float | None]:
    """The spread at these steps; where it was thinned, that of the nearest neighborhood."""
    if spread.means is None:
        known = dict(zip(spread.steps, spread.values, strict=True))
        return [known.get(step) for step in steps]
    import numpy as np

    places = np.searchsorted(np.asarray(spread.steps), np.asarray(steps)).clip(0, len(spread.steps) - 1)
    return [spread.means[place] for place in places]


def _edges(mean: float | None, deviation: float | None, bounded: bool) -> tuple[float | None, float | None]:
    if mean is None or deviation is None:
        return None, None
    low, high = mean - deviation, mean + deviation
    return (_short(max(0.0, low)), _short(min(1.0, high))) if bounded else (_short(low), _short(high))


def _short(value: float | None) -> float | None:
    """More digits than any screen shows would be two thirds of the page."""
    if value is None or value == 0:
        return value
    return round(value, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))))


# ------------------------------------------------------------------------------------------------ completions


def completions(runs: Sequence[Run], most: int = MOST_ROWS) -> Data:
    """The texts of all runs; of too many, those that stand evenly over each run's rows."""
    share = most // max(1, len(runs))
    kept = [evenly(run.completions, share) for run in runs]
    rewards = reward_names(row for rows in kept for row in rows)
    return {
        "total": sum(run.completions_total for run in runs),
        "kept": sum(map(len, kept)),
        "rewards": rewards,
        "rows": [completion(index, row, rewards) for index, rows in enumerate(kept) for row in rows],
    }


def evenly(items: Sequence[Data], most: int) -> Sequence[Data]:
    """At most `most` of them, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / max(1, most - 1))] for index in range(most)]


def reward_names(rows: Iterable[Data]) -> list[str]:
    """All rewards that any row holds, in the order in which they first stand."""
    return list(dict.fromkeys(name for row in rows for name in _rewards(row)))


def completion(run: int, row: Data, rewards: Sequence[str]) -> Data:
    """One row of the browser; the raw text only where the strict grammar refused it, since it has no parts."""
    of_row = _rewards(row)
    shown = {name: _text(row.get(name)) for name in ("prompt", "visible", "hidden", "failure")}
    if shown["failure"] or shown["visible"] is None or shown["hidden"] is None:
        shown["completion"] = _text(row.get("completion")) or ""
    cut = sum(max(0, len(text) - LONGEST_TEXT) for text in shown.values() if text)
    return {
        "run": run,
        "step": row["step"],
        **{name: text[:LONGEST_TEXT] if text else text for name, text in shown.items()},
        "prompt": (shown["prompt"] or "")[:LONGEST_TEXT],
        "rewards": [finite(of_row.get(name)) for name in rewards],
        "total": finite(row.get("total")),
        "cut": cut or None,
    }


def _rewards(row: Data) -> Data:
    found = row.get("rewards")
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    return None if value is None else value if isinstance(value, str) else str(value)
