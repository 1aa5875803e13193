"""A run directory read into series and tables; nothing here draws, and nothing here is heavy to import.

    run = load_run(Path("outputs"))          files -> numbers and rows (a run that is still being written is fine)
    load_runs(Path("outputs"), "guardrail")  the same of a directory whose runs lie below it, as `run.runs`

Whatever shows a run (plots, page, terminal) starts from these records, from the charts that `utils.panels` makes of
them, and from the tables of `utils.tables`. A metric
that was logged as null, NaN or infinite is a gap (`None`) in its series; a step that did not log it is simply not in
it. What a run measures on held-out data while it trains (split `eval`) makes series of its own, `eval/<metric>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.columns import ABSENT, Table, read_metrics_table
from utils.completion_rows import sample_rows
from utils.downsample import extremes
from utils.errors import UserError
from utils.runs import COMPLETIONS, MANIFEST, METRICS
from utils.sound import sound_evaluation, sound_manifest, unix_time

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_POINTS = 4000
"""Points of one series; of more, the extremes are kept."""
MOST_COMPLETIONS, MOST_COMPLETION_BYTES = 100_000, 200 << 20
STAGE_NAMES = {"sft": "warm-up", "grpo": "GRPO", "train": "training"}
HELD_OUT = "eval"


@dataclass(frozen=True)
class Series:
    """What was logged of a metric. Of a long one the extremes alone are kept (utils.downsample): then `logged` says how
    many points there were, and `means` holds, point by point, the mean of the neighborhood that it stands for."""

    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    means: tuple[float | None, ...] | None = None
    logged: int | None = None

    def within(self, first_step: int, last_step: int) -> Series:
        places = [index for index, step in enumerate(self.steps) if first_step <= step <= last_step]
        if len(places) == len(self.steps):
            return self
        logged = None if self.logged is None else round(self.logged * len(places) / len(self.steps))
        return self._at(places, self.means, logged)

    def thinned(self, most: int) -> Series:
        """At most so many points, the extremes among them."""
        if len(self.steps) <= most:
            return self
        import numpy as np

        kept = extremes(np.array(self.values, dtype=np.float64), most)
        thinned = self._at(kept.indices.tolist(), self.means, self.logged or len(self.steps))
        return thinned if self.means else replace(thinned, means=with_gaps(kept.means))

    def _at(self, places: Sequence[int], means: tuple[float | None, ...] | None, logged: int | None) -> Series:
        return Series(
            tuple(self.steps[place] for place in places),
            tuple(self.values[place] for place in places),
            None if means is None else tuple(means[place] for place in places),
            logged,
        )

    def numbers(self) -> list[float]:
        return [value for value in self.values if value is not None]

    def averages(self) -> tuple[float | None, ...]:
        """The values, or of a thinned series the means: what averages are to be made of."""
        return self.values if self.means is None else self.means


@dataclass(frozen=True)
class Stage:
    split: str
    first_step: int
    last_step: int

    @property
    def name(self) -> str:
        return STAGE_NAMES.get(self.split, self.split.replace("_", " "))


@dataclass(frozen=True)
class Alarm:
    step: int
    split: str
    text: str


@dataclass(frozen=True)
class Run:
    path: Path
    manifest: dict[str, Any]
    series: dict[str, Series]
    stages: tuple[Stage, ...]
    alarms: tuple[Alarm, ...]
    completions: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    seconds: float | None
    """Wall time from the start of the run to its end, or to its last log event."""
    last_logged: float | None
    """When the last row was logged, in Unix seconds: a run that says "running" may have been killed."""
    runs: dict[str, Run] = field(default_factory=dict)
    """The runs below a directory that is none itself, by the names of their directories."""
    completions_total: int = 0
    """How many completions were logged; `completions` holds as many of them as a page can."""
    read: tuple[int, int] = (0, 0)
    """How many bytes of metrics.jsonl and completions.jsonl are in it: whole lines."""
    faults: tuple[str, ...] = ()
    """What is missing or cannot be read, a line each: what is wrong, where, what to do."""

    @property
    def last_step(self) -> int:
        return max((stage.last_step for stage in self.stages), default=0)

    @property
    def planned_steps(self) -> int | None:
        planned = self.manifest.get("planned_steps")
        if isinstance(planned, int) and planned > 0:
            return planned
        config = self.manifest.get("config", {})
        parts = [config[key] for key in ("sft_steps", "max_steps") if isinstance(config.get(key), int)]
        return sum(parts) or None


# ---------------------------------------------------------------------------------------------------- reading


def load_run(run: Path) -> Run:
    """Everything a run directory says; what is missing or cannot be read stands in `faults`.

    Raises:
        UserError: there is no run in it at all.
    """
    evaluations = sorted(run.glob("evaluation/*.json"))
    if not ((run / MANIFEST).is_file() or (run / METRICS).is_file() or evaluations):
        raise UserError(_what_is_there(run))
    manifest, faults = sound_manifest(run)
    table = read_metrics_table(run / METRICS)
    sample = sample_rows(run / COMPLETIONS, MOST_COMPLETIONS, MOST_COMPLETION_BYTES)
    evaluation, evaluation_faults = sound_evaluation(evaluations, manifest.get("task"))
    times = table.times[table.times == table.times]
    first, last = (float(times.min()), float(times.max())) if len(times) else (None, None)
    return Run(
        path=run,
        manifest=manifest,
        series=series_of(table),
        stages=stages_of(table),
        alarms=tuple(
            Alarm(int(table.steps[place]), table.split_names[table.splits[place]], text)
            for place, text in table.alarms.items()
        ),
        completions=[_completion(row) for row in sample.rows],
        evaluation=evaluation,
        seconds=_wall_seconds(manifest, first, last),
        last_logged=last,
        completions_total=sample.total,
        read=(table.read, sample.read),
        faults=(*faults, *table.faults, *sample.faults, *evaluation_faults),
    )


def load_runs(directory: Path, task: str) -> Run:
    """A run of the task; or a directory with such runs below it, with their alarms and the evaluation of all of them.

    Raises:
        UserError: there is neither such a run, nor one below, nor evaluation/<task>.json.
    """
    manifest, _ = sound_manifest(directory)
    if manifest.get("task") == task or (not manifest and (directory / METRICS).is_file()):
        return load_run(directory)
    runs = {path.name: load_run(path) for path in runs_below(directory, task)}
    evaluation, faults = sound_evaluation(sorted(directory.glob("evaluation/*.json")), task)
    if not runs and evaluation is None:
        return load_run(directory)
    alarms = [replace(alarm, text=f"{name}: {alarm.text}") for name, run in runs.items() for alarm in run.alarms]
    faults += tuple(f"{name}: {fault}" for name, run in runs.items() for fault in run.faults)
    unread = [path for path in _with_manifest(directory) if not sound_manifest(path)[0]]
    faults += tuple(f"{path.name}: {fault}" for path in unread for fault in sound_manifest(path)[1])
    return Run(directory, {}, {}, (), tuple(alarms), [], evaluation, None, None, runs, faults=faults)


def runs_below(directory: Path, task: str) -> list[Path]:
    """The directories in a directory that hold a run of the task."""
    return [path for path in _with_manifest(directory) if sound_manifest(path)[0].get("task") == task]


def _with_manifest(directory: Path) -> list[Path]:
    below = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in below if (path / MANIFEST).is_file()]


def _what_is_there(run: Path) -> str:
    if not run.exists():
        return f"{run}: no such directory; give --output_dir the directory of a run (train writes it)"
    if not run.is_dir():
        return f"{run}: a file, not a run directory; give --output_dir the directory that holds manifest.json"
    names = sorted(entry.name for entry in run.iterdir())
    holds = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
    return (
        f"{run}: no run here (no manifest.json, metrics.jsonl or evaluation/*.json; it holds {holds}); "
        "train or evaluate with this --output_dir first, or name another"
    )


def series_of(table: Table, most: int = MOST_POINTS) -> dict[str, Series]:
    """By metric; of a step that is there twice, in two splits, the last row."""
    import numpy as np

    held_out = np.isin(table.splits, [code for code, name in enumerate(table.split_names) if name == HELD_OUT])
    sides = [(prefix, rows) for prefix, rows in (("", ~held_out), (f"{HELD_OUT}/", held_out)) if rows.any()]

    def of_metric(name: str) -> dict[str, Series]:
        column, found = table.column(name), {}
        for prefix, rows in sides:
            logged = rows & (column != ABSENT)
            steps, values = (table.steps, column) if logged.all() else (table.steps[logged], column[logged])
            last = np.append(steps[1:] != steps[:-1], True)[: len(steps)]
            if not last.all():
                steps, values = steps[last], values[last]
            if not np.isnan(values).all():
                found[prefix + name] = to_series(steps, values, most)
        return found

    with ThreadPoolExecutor(2) as pool:
        return {name: series for found in pool.map(of_metric, table.names) for name, series in found.items()}


def to_series(steps: NDArray[np.int64], values: NDArray[np.float64], most: int = MOST_POINTS) -> Series:
    """All points, or of too many the extremes."""
    if len(steps) <= most:
        return Series(tuple(steps.tolist()), with_gaps(values))
    kept = extremes(values, most)
    return Series(
        tuple(steps[kept.indices].tolist()), with_gaps(values[kept.indices]), with_gaps(kept.means), len(steps)
    )


def with_gaps(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if value != value else value for value in values.tolist())


def _completion(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose rewards are numbers or None, whatever was logged."""
    rewards = row.get("rewards")
    known = {name: finite(value) for name, value in rewards.items()} if isinstance(rewards, dict) else {}
    return row | {"rewards": known, "total": finite(row.get("total"))}


def finite(value: Any) -> float | None:
    """The number, or None for what was logged as null, "NaN" or infinite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < 1e308 else None


def stages_of(table: Table) -> tuple[Stage, ...]:
    import numpy as np

    measured = np.ones(len(table.steps), dtype=bool)
    measured[list(table.alarms)] = False
    stages = []
    for code, name in enumerate(table.split_names):
        steps = table.steps[(table.splits == code) & measured]
        if name != HELD_OUT and len(steps):
            stages.append(Stage(name, int(steps[0]), int(steps[-1])))
    return tuple(sorted(stages, key=lambda stage: stage.first_step))


def _wall_seconds(manifest: dict[str, Any], first: float | None, last: float | None) -> float | None:
    started = unix_time(manifest.get("started")) or first
    ended = unix_time(manifest.get("ended")) or last
    return max(0.0, ended - started) if started is not None and ended is not None else None
