"""Several runs beside each other: names that tell them apart, the options that differ, the best by a metric.

    names = names_of([Path("runs/a"), Path("runs/b")])       ["a", "b"]
    check_tasks(runs)                                        one task, or a UserError
    differing(runs)                                          rows of what is not the same in all manifests
    metric = chosen(runs, models, "accuracy", [])
    ranking(runs, metric, models)                            every run's value, and their order

A metric is looked for in the evaluations first, there of one model a run (`models`), then among what the runs logged:
of those, a held-out metric (`eval/...`) counts with its best measurement, whose weights training keeps, and any other
with the mean over its last tenth of log events. Which end is better, its name tells (utils.metric_order), or the user:
`visible_words:min`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError
from utils.metric_order import Direction, better
from utils.panels import ends
from utils.runs import FREE_OPTIONS
from utils.series import HELD_OUT, Run
from utils.tables import Cell, cell

Runs = Mapping[str, Run]
"""By the names that tell them apart."""
Models = Mapping[str, str | None]
"""Of each run, by name, the evaluated model that stands for it; None where it has no evaluation."""
Source = Literal["evaluation", "training"]

ABSENT = "-"
LONGEST_VALUE = 200
ENDS: dict[str, Direction] = {"min": "lower", "max": "higher"}
OTHER_FACTS = ("versions", "hardware")


# ------------------------------------------------------------------------------------------------ names, tasks


def names_of(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, or as much before it as it takes to tell them apart.

    Raises:
        UserError: a directory is given twice.
    """
    paths = [directory.resolve() for directory in directories]
    for path, directory in zip(paths, directories, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{directory} is given more than once; give --metrics_dir each run once")
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths differ in some part")


def task_of(run: Run) -> str | None:
    """The task whose run, or else whose evaluation, a directory holds."""
    below = [one.manifest.get("task") for one in run.runs.values()]
    found = run.manifest.get("task") or (run.evaluation or {}).get("task") or next(filter(None, below), None)
    return str(found) if found else None


def check_tasks(runs: Runs) -> str:
    """The task that all runs are of; one that says nothing of its task passes.

    Raises:
        UserError: they are of different tasks, or none says of which.
    """
    tasks = {name: task for name, run in runs.items() if (task := task_of(run)) is not None}
    if not tasks:
        raise UserError(f"none of {', '.join(runs)} says which task it is of; compare runs that --mode train wrote")
    if len(set(tasks.values())) > 1:
        told = ", ".join(f"{name} is of {task}" for name, task in tasks.items())
        raise UserError(f"runs of different tasks do not compare: {told}; give --metrics_dir runs of one task")
    return next(iter(tasks.values()))


# ----------------------------------------------------------------------------------------- options that differ


Rows = list[tuple[str, list[str]]]


def differing(runs: Runs) -> tuple[Rows, Rows]:
    """Options that are not the same in all runs, and other facts that are not: name, and each run's value as text.

    Where files lie, and what alters no training step, is left out; a dataset is compared by its content.
    """
    manifests = [run.manifest for run in runs.values()]
    options = [_object(manifest.get("config")) for manifest in manifests]
    options = [{key: value for key, value in of.items() if key not in FREE_OPTIONS} for of in options]
    facts = [{"dataset": _dataset(manifest), "resumes": manifest.get("resumes")} for manifest in manifests]
    for of, manifest in zip(facts, manifests, strict=True):
        of |= _flat({key: manifest.get(key) for key in OTHER_FACTS} | {"git_commit": _commit(manifest)})
    return _unequal(options), _unequal(facts)


def evaluation_options(runs: Runs) -> Rows:
    """The options of the evaluations that differ between the runs that have one."""
    evaluations = [run.evaluation or {} for run in runs.values()]
    left_out = FREE_OPTIONS | {"compare", "model_name", "reward_model_checkpoints", "reward_model_names", "lora_paths"}
    options = [_object(evaluation.get("config")) for evaluation in evaluations]
    rows = _unequal([{key: value for key, value in of.items() if key not in left_out} for of in options])
    known = [bool(of) for of in options]
    return [
        (name, values)
        for name, values in rows
        if len({value for value, is_known in zip(values, known, strict=True) if is_known}) > 1
    ]


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dataset(manifest: dict[str, Any]) -> str | None:
    found = _object(manifest.get("dataset"))
    digest = found.get("sha256")
    return f"sha256 {str(digest)[:12]}" if digest else None


def _commit(manifest: dict[str, Any]) -> str | None:
    found = manifest.get("git_commit")
    return str(found)[:12] if found else None


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{prefix}{key}.") if isinstance(part, dict) else {f"{prefix}{key}": part}
    return flat


def _unequal(columns: Sequence[dict[str, Any]]) -> Rows:
    """The keys whose values are not the same in all columns, with the values as text."""
    columns = [_flat(column) for column in columns]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [(key, [_text(column.get(key, ABSENT)) for column in columns]) for key in keys]
    return [(key, [_cut(value) for value in values]) for key, values in rows if len(set(values)) > 1]


def _text(value: object) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


# ------------------------------------------------------------------------------------------------ best by what


@dataclass(frozen=True)
class Metric:
    """What runs are ranked by, and where it was found."""

    name: str
    direction: Direction
    source: Source


@dataclass(frozen=True)
class Ranking:
    """Every run's value, in the order given, None where it has none; the ranked runs, best first."""

    metric: Metric
    scores: dict[str, Cell | None]
    order: list[str]


def chosen(runs: Runs, models: Models, best_by: str | None, usual: Sequence[tuple[str, Source]]) -> Metric | None:
    """The metric that was asked for; else the first usual one that all runs have, or that any has; None if none does.

    Raises:
        UserError: no run has the metric asked for, or nothing says which end of it is better.
    """
    if best_by is not None:
        return _asked(runs, models, best_by)
    for everywhere in (True, False):
        for name, source in usual:
            if _is_in(runs, models, name, source, everywhere):
                return Metric(name, better(name) or "higher", source)
    return None


def _asked(runs: Runs, models: Models, best_by: str) -> Metric:
    name, colon, end = best_by.rpartition(":")
    if not colon or end not in ENDS:
        name, end = best_by, ""
    source = _source(runs, models, name)
    if source is None:
        known = sorted({metric for run in runs for metric in _known(runs[run], models.get(run))})
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; they have {', '.join(known) or 'no metric'}"
        raise UserError(f"--best_by {name}: no run has this metric{hint}")
    direction = ENDS[end] if end else better(name)
    if direction is None:
        raise UserError(f"--best_by {name}: neither end of it is better by itself; say {name}:max or {name}:min")
    return Metric(name, direction, source)


def _source(runs: Runs, models: Models, metric: str) -> Source | None:
    sources: tuple[Source, ...] = ("evaluation", "training")
    return next((source for source in sources if _is_in(runs, models, metric, source, everywhere=False)), None)


def _is_in(runs: Runs, models: Models, metric: str, source: Source, everywhere: bool) -> bool:
    found = [_value(run, models.get(name), metric, source) is not None for name, run in runs.items()]
    return all(found) if everywhere else any(found)


def _known(run: Run, model: str | None) -> list[str]:
    return [*_metrics(run, model), *(name for part in _parts(run) for name in part.series)]


def _parts(run: Run) -> list[Run]:
    return [run, *run.runs.values()]


def _metrics(run: Run, model: str | None) -> dict[str, Any]:
    models = (run.evaluation or {}).get("models", {})
    return _object(_object(models.get(model)).get("metrics")) if model is not None else {}


def _value(run: Run, model: str | None, metric: str, source: Source) -> Cell | None:
    if source == "evaluation":
        return cell(_metrics(run, model).get(metric))
    series = run.series.get(metric)
    known = series.numbers() if series else []
    if series is None or not known:
        return None
    if metric.startswith(f"{HELD_OUT}/"):
        value = min(known) if better(metric) == "lower" else max(known)
    else:
        last = ends(series)
        assert last is not None
        value = last[1]
    return Cell(value, None, None, None)


def ranking(runs: Runs, metric: Metric, models: Models) -> Ranking:
    """Every run's value of the metric, and the runs that have one, best first."""
    scores = {name: _value(run, models.get(name), metric.name, metric.source) for name, run in runs.items()}
    known = {name: found.value for name, found in scores.items() if found is not None}
    order = sorted(known, key=lambda name: known[name], reverse=metric.direction == "higher")
    return Ranking(metric, scores, order)
