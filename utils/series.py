"""A run directory read into series and tables; nothing here draws, and nothing here is heavy to import.

    run = load_run(Path("outputs"))          files -> numbers and rows (a run that is still being written is fine)
    load_runs(Path("outputs"), "guardrail")  the same of a directory whose runs lie below it, as `run.runs`
    panels(run)                              what to plot: one record a chart, with its spread, unit and note

Whatever shows a run (plots, page, terminal) starts from these records, and from the tables of `utils.tables`. A metric
that was logged as null, NaN or infinite is a gap (`None`) in its series; a step that did not log it is simply not in
it. What a run measures on held-out data while it trains (split `eval`) makes series of its own, `eval/<metric>`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError
from utils.runs import MANIFEST, METRICS, read_completions, read_manifest, read_metrics

ROW_KEYS = {"step", "time", "split", "resumes", "alarm", "epoch"}
STAGE_NAMES = {"sft": "warm-up", "grpo": "GRPO", "train": "training"}
HELD_OUT = "eval"

Unit = Literal["", "share", "tokens", "tokens/s", "pairs/s", "s", "nats", "rate"]
Group = Literal["loss", "pairs", "guard", "reward", "health"]


@dataclass(frozen=True)
class Series:
    steps: tuple[int, ...]
    values: tuple[float | None, ...]

    def within(self, first_step: int, last_step: int) -> Series:
        kept = [
            (step, value)
            for step, value in zip(self.steps, self.values, strict=True)
            if first_step <= step <= last_step
        ]
        return Series(tuple(step for step, _ in kept), tuple(value for _, value in kept))

    def numbers(self) -> list[float]:
        return [value for value in self.values if value is not None]


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

    @property
    def last_step(self) -> int:
        return max((stage.last_step for stage in self.stages), default=0)

    @property
    def planned_steps(self) -> int | None:
        config = self.manifest.get("config", {})
        parts = [config[key] for key in ("sft_steps", "max_steps") if isinstance(config.get(key), int)]
        return sum(parts) if parts else None


@dataclass(frozen=True)
class Panel:
    """One chart: a series, its spread (one standard deviation to either side) and what to say about it. `held_out` is
    the same metric on held-out data, drawn beside it as it was measured."""

    key: str
    title: str
    unit: Unit
    group: Group
    series: Series
    spread: Series | None
    note: str
    stages: tuple[Stage, ...]
    held_out: Series | None = None

    @property
    def step_range(self) -> tuple[int, int]:
        """The first and the last step that the chart shows."""
        steps = [*self.series.steps, *(self.held_out.steps if self.held_out else ())]
        return min(steps), max(steps)


# ---------------------------------------------------------------------------------------------------- reading


def load_run(run: Path) -> Run:
    """Everything a run directory says, or a UserError when there is no run in it."""
    manifest_file, metrics_file, completions_file = (
        run / name for name in ("manifest.json", "metrics.jsonl", "completions.jsonl")
    )
    evaluations = sorted(run.glob("evaluation/*.json"))
    if not (manifest_file.is_file() or metrics_file.is_file() or evaluations):
        raise UserError(_what_is_there(run))
    manifest = read_manifest(run) if manifest_file.is_file() else {}
    rows = read_metrics(run) if metrics_file.is_file() else []
    measured = [row for row in rows if "alarm" not in row and isinstance(row.get("step"), int)]
    times = [row["time"] for row in rows if isinstance(row.get("time"), (int, float))]
    return Run(
        path=run,
        manifest=manifest,
        series=_to_series(measured),
        stages=_stages(measured),
        alarms=tuple(
            Alarm(row["step"], str(row.get("split", "")), str(row["alarm"])) for row in rows if "alarm" in row
        ),
        completions=read_completions(run) if completions_file.is_file() else [],
        evaluation=_read_evaluation(evaluations, manifest.get("task")),
        seconds=_wall_seconds(manifest, times),
        last_logged=max(times, default=None),
    )


def load_runs(directory: Path, task: str) -> Run:
    """A run of the task; or a directory with such runs below it, with their alarms and the evaluation of all of them.

    Raises:
        UserError: there is neither such a run, nor one below, nor evaluation/<task>.json.
    """
    manifest = read_manifest(directory) if (directory / MANIFEST).is_file() else {}
    if manifest.get("task") == task or (not manifest and (directory / METRICS).is_file()):
        return load_run(directory)
    runs = {path.name: load_run(path) for path in runs_below(directory, task)}
    evaluation = _read_evaluation(sorted(directory.glob("evaluation/*.json")), task)
    if not runs and evaluation is None:
        return load_run(directory)
    alarms = [replace(alarm, text=f"{name}: {alarm.text}") for name, run in runs.items() for alarm in run.alarms]
    return Run(directory, {}, {}, (), tuple(alarms), [], evaluation, None, None, runs)


def runs_below(directory: Path, task: str) -> list[Path]:
    """The directories in a directory that hold a run of the task."""
    below = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in below if (path / MANIFEST).is_file() and read_manifest(path).get("task") == task]


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


def _to_series(rows: list[dict[str, Any]]) -> dict[str, Series]:
    points: dict[str, dict[int, float | None]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ROW_KEYS and (value is None or _is_metric(value)):
                name = f"{HELD_OUT}/{key}" if row.get("split") == HELD_OUT else key
                points.setdefault(name, {})[row["step"]] = finite(value)
    return {
        key: Series(tuple(sorted(values)), tuple(values[step] for step in sorted(values)))
        for key, values in points.items()
        if any(value is not None for value in values.values())
    }


def _is_metric(value: object) -> bool:
    if isinstance(value, str):
        return value.lower() in ("nan", "inf", "-inf", "infinity", "-infinity")
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """The number, or None for what was logged as null, "NaN" or infinite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _stages(rows: list[dict[str, Any]]) -> tuple[Stage, ...]:
    steps: dict[str, list[int]] = {}
    for row in rows:
        if row.get("split") != HELD_OUT:
            steps.setdefault(str(row.get("split", "train")), []).append(row["step"])
    stages = [Stage(split, min(of_split), max(of_split)) for split, of_split in steps.items()]
    return tuple(sorted(stages, key=lambda stage: stage.first_step))


def _read_evaluation(files: list[Path], task: str | None) -> dict[str, Any] | None:
    """The evaluation of the run's own task; without a manifest, the first there is."""
    of_task = [file for file in files if task in (None, file.stem)]
    if not of_task:
        return None
    file = of_task[0]
    try:
        evaluation = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise UserError(f"{file}: not valid JSON ({fault}); run --mode evaluate again") from fault
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("models"), dict):
        raise UserError(f'{file}: no evaluation (expected an object with "models"); run --mode evaluate again')
    return evaluation


def _wall_seconds(manifest: dict[str, Any], times: list[float]) -> float | None:
    started = _unix(manifest.get("started")) or min(times, default=None)
    ended = _unix(manifest.get("ended")) or max(times, default=None)
    return max(0.0, ended - started) if started is not None and ended is not None else None


def _unix(moment: object) -> float | None:
    if isinstance(moment, str):
        return datetime.fromisoformat(moment).timestamp()
    return float(moment) if isinstance(moment, (int, float)) else None


# ----------------------------------------------------------------------------------------------------- panels


def panels(run: Run) -> list[Panel]:
    """The charts of a run in reading order; a metric that was never logged has none."""
    pairs = [_panel(run, key, title, unit, "pairs", note) for key, title, unit, note in PAIR_CHARTS]
    guards = [_panel(run, key, title, unit, "guard", note) for key, title, unit, note in GUARD_CHARTS]
    reward = [_panel(run, key, title, "", "reward", note, spread) for key, title, spread, note in REWARD_CHARTS]
    health = [_panel(run, key, title, unit, "health", note) for key, title, unit, note in HEALTH_CHARTS]
    return [
        panel for panel in _loss(run) + pairs + guards + reward[:1] + _components(run) + reward[1:] + health if panel
    ]


PAIR_CHARTS: list[tuple[str, str, Unit, str]] = [
    ("accuracy", "Accuracy", "share", "pairs whose chosen answer got the higher reward"),
    ("mean_margin", "Mean margin", "", "between the two rewards of a pair"),
    ("mean_spread", "Mean spread", "", "standard deviation of a reward"),
]
GUARD_CHARTS: list[tuple[str, str, Unit, str]] = [
    ("nll_loss", "Likelihood loss", "nats", "of the chosen answer"),
    ("log_odds_chosen", "Log odds ratio", "nats", "chosen over rejected; 0 at even odds"),
    ("rewards/accuracies", "Preferred", "share", "records whose chosen answer is the likelier one"),
    ("eval/tag_recall", "Tag recall, held-out", "share", "triggers that are answered with the tag"),
    ("eval/tag_fpr_natural", "Tag on natural rows, held-out", "share", "everyday talk; each tag is a false alarm"),
    ("eval/tag_fpr_hard", "Tag on hard negatives, held-out", "share", "looks like a trigger and is none"),
    ("eval/tag_fpr_other", "Tag on other triggers, held-out", "share", "what another guard declines"),
    ("eval/behavior_score", "Behavior score, held-out", "", "what the checkpoint is chosen by"),
]
REWARD_CHARTS = [
    ("reward", "Total reward", "reward_std", "mean of the sampled completions"),
    ("group_reward_std", "Reward spread in a group", None, "what GRPO learns from; near 0 it learns nothing"),
]
HEALTH_CHARTS: list[tuple[str, str, Unit, str]] = [
    ("strict_format_rate", "Strict format", "share", "completions that the strict grammar accepts"),
    ("frac_reward_zero_std", "Dead groups", "share", "groups whose rewards are all equal: no gradient"),
    ("completions/mean_length", "Completion length", "tokens", "mean of the sampled completions"),
    ("completions/clipped_ratio", "Clipped completions", "share", "cut at the longest allowed length"),
    ("entropy", "Entropy", "nats", "of the next token; a fall to 0 is a collapse"),
    ("kl", "KL to the starting model", "nats", "mean over tokens"),
    ("learning_rate", "Learning rate", "rate", ""),
    ("grad_norm", "Gradient norm", "", "before clipping"),
    ("step_time", "Step time", "s", ""),
    ("tokens_per_s", "Throughput", "tokens/s", "prompts included"),
    ("pairs_per_s", "Throughput", "pairs/s", ""),
]
LOSS_NOTES = {
    "sft": "cross-entropy of the reference answers",
    "grpo": "near zero by construction; watch the reward",
    "train": "-log P(chosen over rejected), and what training adds",
    "guardrail": "likelihood of the chosen answer, and odds",
}


def _loss(run: Run) -> list[Panel | None]:
    found = []
    for stage in run.stages:
        loss = run.series.get("loss", Series((), ())).within(stage.first_step, stage.last_step)
        unit: Unit = "" if stage.split == "grpo" else "nats"
        note = LOSS_NOTES.get(str(run.manifest.get("task")), LOSS_NOTES.get(stage.split, ""))
        held_out = run.series.get(f"{HELD_OUT}/loss") if stage.split == "train" else None
        title = "Loss" if stage.split == "train" else f"Loss, {stage.name}"
        panel = Panel(f"loss/{stage.split}", title, unit, "loss", loss, None, note, (stage,), held_out)
        found.append(panel if loss.numbers() else None)
    return found


def _panel(
    run: Run, key: str, title: str, unit: Unit, group: Group, note: str, spread_key: str | None = None
) -> Panel | None:
    series = run.series.get(key)
    if series is None:
        return None
    spread = run.series.get(spread_key) if spread_key else None
    covered = tuple(
        stage for stage in run.stages if any(stage.first_step <= step <= stage.last_step for step in series.steps)
    )
    return Panel(key, title, unit, group, series, spread, note, covered, run.series.get(f"{HELD_OUT}/{key}"))


def _components(run: Run) -> list[Panel | None]:
    names = [match[1] for key in run.series if (match := re.fullmatch(r"rewards/(.+)/mean", key))]
    return [
        _panel(run, f"rewards/{name}/mean", reward_title(name), "", "reward", "", f"rewards/{name}/std")
        for name in names
    ]


def reward_title(name: str) -> str:
    """`visible_quality_reward_func` -> `Visible quality`."""
    words = re.sub(r"(_reward)?(_func)?$", "", name).replace("_", " ").strip() or name
    return words[0].upper() + words[1:]


def smooth(series: Series, window: int) -> Series:
    """Centered moving average over `window` log events; gaps stay gaps and count for nothing."""
    reach = window // 2
    totals, counts = [0.0], [0]
    for value in series.values:
        totals.append(totals[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))

    def average(index: int) -> float | None:
        low, high = max(0, index - reach), min(len(series.values), index + reach + 1)
        if series.values[index] is None:
            return None
        return (totals[high] - totals[low]) / (counts[high] - counts[low])

    return Series(series.steps, tuple(average(index) for index in range(len(series.values))))


def thin(series: Series, most: int = 300) -> Series:
    """At most `most` points: each the mean of a run of neighbours, at the middle one's step."""
    size = math.ceil(len(series.steps) / most)
    if size <= 1:
        return series
    steps, values = [], []
    for start in range(0, len(series.steps), size):
        known = [value for value in series.values[start : start + size] if value is not None]
        steps.append(series.steps[min(start + size // 2, len(series.steps) - 1)])
        values.append(sum(known) / len(known) if known else None)
    return Series(tuple(steps), tuple(values))


@dataclass(frozen=True)
class Trace:
    """What to draw of a panel: the logged points, their moving average, and the spread around that average."""

    points: Series
    line: Series
    low: Series
    high: Series


def trace(panel: Panel, most: int = 300) -> Trace:
    """Stage by stage, so that no average mixes two stages; a gap stands between them."""
    steps: list[int] = []
    points: list[float | None] = []
    line: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    for stage in panel.stages:
        of_stage = panel.series.within(stage.first_step, stage.last_step)
        thinned = thin(of_stage, most)
        window = 0 if panel.unit == "rate" else len(thinned.steps) // 15
        average = smooth(thinned, window)
        spread = smooth(thin(_aligned(panel.spread, of_stage.steps), most), window)
        steps += [*thinned.steps, thinned.steps[-1]]
        points += [*thinned.values, None]
        line += [*average.values, None]
        edges = [_edges(panel, mean, deviation) for mean, deviation in zip(average.values, spread.values, strict=True)]
        low += [edge[0] for edge in edges] + [None]
        high += [edge[1] for edge in edges] + [None]
    return Trace(*(Series(tuple(steps), tuple(values)) for values in (points, line, low, high)))


def _aligned(series: Series | None, steps: tuple[int, ...]) -> Series:
    known = dict(zip(series.steps, series.values, strict=True)) if series else {}
    return Series(steps, tuple(known.get(step) for step in steps))


def _edges(panel: Panel, mean: float | None, deviation: float | None) -> tuple[float | None, float | None]:
    if mean is None or deviation is None:
        return None, None
    low, high = mean - deviation, mean + deviation
    return (max(0.0, low), min(1.0, high)) if is_bounded(panel) else (low, high)


def is_bounded(panel: Panel) -> bool:
    """True where no value can leave 0 to 1: shares, and rewards that keep to the scale (a user's own may not)."""
    known = panel.series.numbers()
    return panel.unit == "share" or (panel.key.startswith("rewards/") and min(known) >= 0 and max(known) <= 1)


def ends(series: Series, share: float = 0.1) -> tuple[float, float] | None:
    """Mean of the first and of the last tenth of the log events."""
    known = series.numbers()
    if not known:
        return None
    count = max(1, round(len(known) * share))
    return sum(known[:count]) / count, sum(known[-count:]) / count


def sample_completions(completions: list[dict[str, Any]], most: int = 24) -> list[dict[str, Any]]:
    """At most `most` rows, evenly over the rows as logged, the first and the last among them."""
    if len(completions) <= most:
        return completions
    return [completions[round(index * (len(completions) - 1) / (most - 1))] for index in range(most)]


def is_count(metric: str) -> bool:
    """True for a metric that counts cases out of n, without doubt and so without interval."""
    return bool(re.search(r"(^|_)ties(_|$)", metric))


def is_rate(metric: str) -> bool:
    """True for a metric that is a share of cases, shown in per cent."""
    return bool(re.search(r"(^|_)(rate|recall|accuracy|precision|f1|fpr|adherence|kept)(_|$)", metric))
