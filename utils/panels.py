"""What of a run is worth a chart, and in which unit; nothing here draws, and nothing here is heavy to import.

panels(run)              what to plot: one record a chart, with its spread, unit and note
trace(panel)             its points, smoothed, few enough to draw
ends(series)             where a curve began, and where it ended
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from utils.series import HELD_OUT, Run, Series, Stage

Unit = Literal["", "share", "tokens", "tokens/s", "pairs/s", "s", "nats", "rate"]
Group = Literal["loss", "pairs", "guard", "reward", "health"]


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
    shown, totals, counts = series.averages(), [0.0], [0]
    for value in shown:
        totals.append(totals[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))

    def average(index: int) -> float | None:
        low, high = max(0, index - reach), min(len(shown), index + reach + 1)
        if shown[index] is None:
            return None
        return (totals[high] - totals[low]) / (counts[high] - counts[low])

    return Series(series.steps, tuple(average(index) for index in range(len(shown))))


def thin(series: Series, most: int = 300) -> Series:
    """At most `most` points: each the mean of a run of neighbours, at the middle one's step."""
    size = math.ceil(len(series.steps) / most)
    if size <= 1:
        return series
    averages, steps, values = series.averages(), [], []
    for start in range(0, len(series.steps), size):
        known = [value for value in averages[start : start + size] if value is not None]
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
    known = [value for value in series.averages() if value is not None]
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
