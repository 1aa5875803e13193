"""A run in a terminal, for those who have no browser beside it: progress, time left, the chief metrics, alarms.

    python main.py --mode train ...                          the table below while it trains, if stderr is a terminal
    python visualize_training.py --metrics_dir RUN --follow  the same of a run that another process writes

    secret · runs/a · GRPO
    step 140 of 300 ━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━ 47 %
    elapsed 6 min 04 s · left about 6 min 50 s · 2.56 s a step
     metric          last   mean of 10   held-out   curve      lately
     reward         4.512        4.488          -   ▁▂▃▅▅▆▇█   up
     ...
    1 alarm, the last at step 120: dead groups

What is no terminal (a file, a pipe, TERM=dumb) gets plain lines: every tenth log event, every held-out measurement,
every alarm. `Progress` is fed rows of metrics.jsonl, whoever reads them; `view` gives it a shape. "Lately" compares the
newest half of the last TREND_ROWS rows with the half before; within two standard errors it is steady. Every text of a
file is made safe before it reaches the terminal: none can move the cursor or ring the bell.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any, TextIO

from utils.formatting import NBSP, duration, neutralize
from utils.metric_order import better
from utils.series import HELD_OUT, STAGE_NAMES, finite

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Row = dict[str, Any]

METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "behavior_score": "behavior",
    "tag_recall": "tag recall",
    "mean_spread": "spread",
    "mean_token_accuracy": "token accuracy",
    "reward": "reward",
    "strict_format_rate": "strict format",
    "completions/mean_length": "tokens",
    "frac_reward_zero_std": "dead groups",
    "entropy": "entropy",
    "tokens_per_s": "tokens/s",
    "pairs_per_s": "pairs/s",
}
"""The metrics that tell how a training goes, in order, and their short names."""
LINE_EVERY = 10
"""Log events for each plain line."""
KEPT_ROWS, MEAN_ROWS, TREND_ROWS, PACE_ROWS = 200, 10, 20, 20
BARS = "▁▂▃▄▅▆▇█"
LONGEST_ALARM, LONGEST_NAME = 200, 60


# ----------------------------------------------------------------------------------------------- what is known


@dataclass
class Progress:
    """A run as far as its rows tell. Its fields are replaced, never changed in place: another thread may be drawing."""

    name: str
    task: str = ""
    planned_steps: int | None = None
    """The last step of the stage under way."""
    started: float | None = None
    """Unix seconds; by default the time of the first row."""
    status: str = "running"
    rows: tuple[Row, ...] = ()
    """The newest log events of the stage under way."""
    held_out: Row = field(default_factory=dict)
    """The newest held-out measurement."""
    alarms: tuple[tuple[int, str], ...] = ()
    taken: int = 0
    """Log events of the stage so far."""

    @property
    def split(self) -> str:
        return str(self.rows[-1].get("split", "")) if self.rows else ""

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0


def take(progress: Progress, row: Row) -> None:
    """Let a row of metrics.jsonl count; one without a usable step does not."""
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        return
    if "alarm" in row:
        progress.alarms = (*progress.alarms, (step, line_of(row["alarm"])[:LONGEST_ALARM]))
    elif row.get("split") == HELD_OUT:
        progress.held_out = row
    else:
        if row.get("split", "") != progress.split:
            progress.rows, progress.taken = (), 0
        before = tuple(old for old in progress.rows if old["step"] < step)
        progress.rows, progress.taken = (*before[-KEPT_ROWS + 1 :], row), progress.taken + 1
    if progress.started is None:
        progress.started = finite(row.get("time"))


def shown_metrics(row: Row) -> list[str]:
    """The chief metrics that a row has; GRPO's loss is near zero by construction and says nothing."""
    return [key for key in METRICS if row.get(key) is not None and not (key == "loss" and row.get("split") == "grpo")]


def seconds_a_step(rows: Sequence[Row]) -> float | None:
    """Over the newest log events, with all that lies between steps; pauses of a resumed run do not count."""
    timed = [row for row in rows[-PACE_ROWS:] if finite(row.get("time")) is not None]
    spans = [
        (row["step"] - before["step"], row["time"] - before["time"])
        for before, row in pairwise(timed)
        if row.get("resumes") == before.get("resumes") and row["time"] >= before["time"]
    ]
    steps = sum(number for number, _ in spans)
    return sum(seconds for _, seconds in spans) / steps if steps > 0 else None


def seconds_left(progress: Progress) -> float | None:
    """Until the last step of the stage, at the present pace."""
    pace = seconds_a_step(progress.rows)
    if pace is None or progress.planned_steps is None:
        return None
    return pace * max(0, progress.planned_steps - progress.step)


def trend(values: Sequence[float]) -> str:
    """`up`, `down` or `steady`; empty while there are too few values to tell."""
    newest = values[-TREND_ROWS:]
    half = len(newest) // 2
    if half < 3:
        return ""
    old, new = newest[-2 * half : -half], newest[-half:]
    change, error = fmean(new) - fmean(old), math.sqrt((variance(old) + variance(new)) / half)
    if abs(change) <= 2 * error or change == 0:
        return "steady"
    return "up" if change > 0 else "down"


def spark(values: Sequence[float], width: int = 16) -> str:
    """The values as a row of small bars, the last ones if they are more than fit, each the mean of its neighbours."""
    if not values:
        return ""
    size = math.ceil(len(values) / width)
    means = [fmean(values[start : start + size]) for start in range(len(values) % size, len(values), size)]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span > 0 else 0] for value in means)


def line_of(text: object) -> str:
    """A text on one line that nothing in it can leave."""
    return " ".join(str(neutralize(str(text))).split())


def time_text(seconds: float) -> str:
    return duration(seconds).replace(NBSP, " ")


def value_text(value: object) -> str:
    known = finite(value)
    return "-" if known is None else f"{known:.4g}"


# ------------------------------------------------------------------------------------------------- plain lines


def plain_line(row: Row, planned_steps: int | None, left: float | None = None) -> str:
    """`grpo 140/300  reward 4.512  strict format 0.98  left 6 min 50 s`"""
    values = [f"{METRICS[key]} {value_text(row[key])}" for key in shown_metrics(row)]
    if left is not None:
        values.append(f"left {time_text(left)}")
    steps = f"{row['step']}" if planned_steps is None else f"{row['step']}/{planned_steps}"
    return line_of(row.get("split", ""))[:LONGEST_NAME] + f" {steps}  " + "  ".join(values)


# ---------------------------------------------------------------------------------------------------- the view


def is_live(stream: TextIO) -> bool:
    """Whether a stream can show a table that changes."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def view(progress: Progress, now: float, ascii_only: bool = False) -> RenderableType:
    """The table of the module's docstring."""
    from rich.console import Group
    from rich.text import Text

    parts = [line_of(part) for part in (progress.task, progress.name, _stage_name(progress)[:LONGEST_NAME]) if part]
    between = " - " if ascii_only else " · "
    lines: list[RenderableType] = [Text(between.join(parts), style="bold"), _bar(progress)]
    lines.append(Text(between.join(_clock(progress, now)), style="dim"))
    if progress.rows or progress.held_out:
        lines.append(_table(progress, ascii_only))
    if progress.alarms:
        step, text = progress.alarms[-1]
        number = f"{len(progress.alarms)} alarm" + ("s" if len(progress.alarms) > 1 else "")
        lines.append(Text(f"{number}, the last at step {step}: {text}", style="bold red"))
    return Group(*lines)


def _stage_name(progress: Progress) -> str:
    return STAGE_NAMES.get(progress.split, progress.split)


def _bar(progress: Progress) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    planned = progress.planned_steps
    if not planned:
        return Text(f"step {progress.step}")
    share = min(1.0, progress.step / planned)
    row = Table.grid(padding=(0, 1))
    row.add_row(f"step {progress.step} of {planned}", ProgressBar(planned, progress.step, width=40), f"{share:.0%}")
    return row


def _clock(progress: Progress, now: float) -> list[str]:
    pace, left = seconds_a_step(progress.rows), seconds_left(progress)
    parts = [f"elapsed {time_text(now - progress.started)}"] if progress.started is not None else []
    if progress.status != "running":
        return [*parts, line_of(progress.status)]
    if left is not None:
        parts.append(f"left about {time_text(left)}")
    if pace is not None:
        parts.append(f"{pace:.3g} s a step")
    logged = finite(progress.rows[-1].get("time")) if progress.rows else None
    waited, usual = now - (logged or now), _log_interval(progress.rows)
    if usual is not None and waited > max(30.0, 5 * usual):
        parts.append(f"no log event for {time_text(waited)}")
    return parts or ["waiting for the first log event"]


def _log_interval(rows: Sequence[Row]) -> float | None:
    pace = seconds_a_step(rows)
    return None if pace is None or len(rows) < 2 else pace * (rows[-1]["step"] - rows[-2]["step"])


def _table(progress: Progress, ascii_only: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII if ascii_only else box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    for head in ("last", f"mean of {MEAN_ROWS}", *(["held-out"] if progress.held_out else [])):
        table.add_column(head, justify="right", no_wrap=True)
    for head in ([] if ascii_only else ["curve"]) + ["lately"]:
        table.add_column(head, no_wrap=True)
    last: Row = progress.rows[-1] if progress.rows else {}
    held_out = progress.held_out
    have = {*shown_metrics(last), *shown_metrics(held_out)}
    for key in (key for key in METRICS if key in have):
        known = [value for row in progress.rows if (value := finite(row.get(key))) is not None]
        mean = value_text(fmean(known[-MEAN_ROWS:])) if known else "-"
        cells = [value_text(last.get(key)), mean, *([value_text(held_out.get(key))] if held_out else [])]
        word = trend(known)
        curve = [] if ascii_only else [spark(known)]
        table.add_row(METRICS[key], *cells, *curve, Text(word, style=_style(key, word)))
    return table


def _style(metric: str, word: str) -> str:
    direction = better(metric)
    if word not in ("up", "down") or direction is None:
        return ""
    return "green" if (word == "up") == (direction == "higher") else "yellow"


@contextlib.contextmanager
def live_view(progress: Progress, stream: TextIO) -> Iterator[Callable[[], None]]:
    """Draw the progress on a terminal, once a second, until the end; gives what draws it at once. Its last state stays.

    What the program prints meanwhile on a terminal appears above it; what goes into a file goes there as ever. A
    terminal that goes away ends the view, not the program.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    ascii_only = not console.encoding.lower().startswith("utf")

    def drawn() -> RenderableType:
        return view(progress, time.time(), ascii_only)

    live = Live(
        console=console,
        get_renderable=drawn,
        refresh_per_second=1,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
    live.start()

    def refresh() -> None:
        with contextlib.suppress(OSError, ValueError):
            live.refresh()

    try:
        yield refresh
    except BaseException:
        progress.status = "stopped" if progress.status == "running" else progress.status
        raise
    finally:
        with contextlib.suppress(OSError, ValueError):
            live.stop()
