"""What a run writes while it trains: metrics, sampled completions, alarms, and one compact line now and then.

A log event is a row of metrics.jsonl, with the trainer's own metric names and the run's global step (the warm-up's
steps come first). GRPO's loss is near zero by construction and says nothing; what tells that something is wrong are the
alarms, each raised once in a run, as a row of its own and a line on stderr. On a terminal a table with the newest
numbers takes the place of the lines (utils.terminal). Alarms of GRPO

    dead groups        for 20 log events no reward differed within any group: nothing is learned
    all clipped        for 5 log events every completion ran into its longest length: no answer ever ends
    reward up, format down   over the last 20 log events against the 20 before: rewards are won by breaking the format

of a reward model

    dead rewards       for 20 log events both texts of every pair got the same reward
    spreads gone       for 20 log events spreads were under a thousandth of the rewards' differences: nobody disagrees
    worse than a coin  for 3 evaluations in a row the held-out loss was above log 2

of ORPO

    rejected preferred  for 20 log events the rejected answers were the likelier ones, more often than not
    chosen forgotten   over the last 20 log events the chosen answers' tokens lost half of their probability

and of all

    not finite         loss or gradient is NaN or infinite: the run stops at once, before a checkpoint could keep it
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from model_training import processes
from utils.errors import WorkError
from utils.files import write_json_atomic
from utils.runs import MANIFEST, log_completion, log_metrics, read_manifest, read_metrics
from utils.terminal import LINE_EVERY, Progress, is_live, live_view, plain_line, seconds_left, take

Row = dict[str, Any]

DEAD_LOGS, CLIPPED_LOGS, WINDOW, FORMAT_DROP = 20, 5, 20, 0.05
SAME_REWARD, NO_SPREAD, COIN_EVALUATIONS = 1e-6, 1e-3, 3
HALVED = math.log(2)
TOTAL = "_total"
"""Name of the column that the trainer's `reward` is made of: weighted sum times gates."""
INTERNAL = ("epoch", "total_flos", f"rewards/{TOTAL}/mean", f"rewards/{TOTAL}/std")
"""Keys of the trainer that say nothing of their own."""


def alarms(rows: Sequence[Row]) -> dict[str, str]:
    """The alarms that the last rows of GRPO give cause for, by kind; `rows` holds at least the last 2 x WINDOW."""
    found = {}
    dead = [row.get("frac_reward_zero_std") == 1 for row in rows[-DEAD_LOGS:]]
    if len(dead) == DEAD_LOGS and all(dead):
        found["dead groups"] = (
            f"dead groups: for {DEAD_LOGS} log events the rewards did not differ within any group, so nothing is "
            "learned; raise --rollout_temperature or --num_generations, or choose rewards that tell completions apart"
        )
    clipped = [row.get("completions/clipped_ratio") == 1 for row in rows[-CLIPPED_LOGS:]]
    if len(clipped) == CLIPPED_LOGS and all(clipped):
        found["all clipped"] = (
            f"all clipped: for {CLIPPED_LOGS} log events every completion ran into --max_completion_length; "
            "raise it, or warm up with --sft_steps so that answers end"
        )
    new, old = rows[-WINDOW:], rows[-2 * WINDOW : -WINDOW]
    if len(old) == WINDOW:
        reward = _mean(new, "reward") - _mean(old, "reward")
        strict = _mean(new, "strict_format_rate") - _mean(old, "strict_format_rate")
        if reward > 0 and strict < -FORMAT_DROP:
            found["reward up, format down"] = (
                f"reward up, format down: over {WINDOW} log events the mean reward rose by {reward:.3f} while the "
                f"strict format rate fell by {-strict:.3f}: rewards are won by breaking the format; weigh `format` more"
            )
    return found


def reward_alarms(rows: Sequence[Row]) -> dict[str, str]:
    """The alarms that the last training rows of a reward model give cause for, by kind."""
    found = {}
    last = rows[-DEAD_LOGS:]
    if len(last) == DEAD_LOGS and all(row["mean_margin"] < SAME_REWARD for row in last):
        found["dead rewards"] = (
            f"dead rewards: for {DEAD_LOGS} log events both texts of every pair got the same reward, so nothing is "
            "learned; look at the data, or raise --learning_rate"
        )
    elif len(last) == DEAD_LOGS and all(row.get("mean_spread", 1) < NO_SPREAD * row["mean_margin"] for row in last):
        found["spreads gone"] = (
            f"spreads gone: for {DEAD_LOGS} log events spreads were under {NO_SPREAD} of the rewards' differences: the "
            "model claims that nobody disagrees; lower --learning_rate or --num_train_epochs"
        )
    return found


def orpo_alarms(rows: Sequence[Row]) -> dict[str, str]:
    """The alarms that the last training rows of ORPO give cause for, by kind."""
    found = {}
    new, old = rows[-WINDOW:], rows[-2 * WINDOW : -WINDOW]
    if len(new) == WINDOW and all(row["rewards/accuracies"] < 0.5 for row in new):
        found["rejected preferred"] = (
            f"rejected preferred: for {WINDOW} log events the rejected answers were the likelier ones, more often than "
            "not; look at the data, or raise --beta or --learning_rate"
        )
    if len(old) == WINDOW and _mean(new, "logps/chosen") < _mean(old, "logps/chosen") - HALVED:
        found["chosen forgotten"] = (
            f"chosen forgotten: over {WINDOW} log events the tokens of the chosen answers lost half of their "
            "probability: the odds ratio pushes both answers down; lower --learning_rate or --beta"
        )
    return found


ALARMS = {"grpo": alarms, "train": reward_alarms, "orpo": orpo_alarms}
"""By the log's `kind`."""


def _mean(rows: Sequence[Row], key: str) -> float:
    return math.fsum(row[key] for row in rows) / len(rows)


@dataclass
class Interrupt:
    """Whether the user, or the machine, asked the run to stop; a step under way is finished first. `closing` is closed
    however the run ends."""

    asked: bool = False
    closing: ExitStack = field(default_factory=ExitStack)


@contextmanager
def catch_signals(is_running: Callable[[], bool] = lambda: True) -> Iterator[Interrupt]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second one stops at once.

    A launcher sends SIGTERM to what is left of a run that has failed, too: then nothing is promised.
    """
    interrupt = Interrupt()

    def ask(signum: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        if is_running():
            print(
                "\nStopping after this step, with a checkpoint (again: stop at once) ...", file=sys.stderr, flush=True
            )

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals belong to the main thread; elsewhere its handlers stay
        old = {}
    try:
        with interrupt.closing:
            yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass
class RunLog(TrainerCallback):  # type: ignore[misc]
    """The trainer's log events as rows of the run; `samples` is filled by the trainer with its newest completions."""

    run: Path
    split: str
    first_step: int
    """Global steps before this trainer's first."""
    last_step: int
    completions_per_log: int
    interrupt: Interrupt
    is_writer: bool
    kind: str = ""
    """Which alarms; by default those of the split."""
    steps_in_epoch: float | None = None
    """Gives rows an `epoch`, the passes over the records so far."""
    history: list[Row] = field(default_factory=list)
    raised: set[str] = field(default_factory=set)
    samples: list[Row] = field(default_factory=list)
    logged_at: float = 0.0
    logged_tokens: int = 0
    progress: Progress = field(init=False)
    is_on_screen: bool = False

    def __post_init__(self) -> None:
        self.progress = Progress(str(self.run), planned_steps=self.last_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logged_at, self.logged_tokens = time.perf_counter(), -1
        if state.global_step and self.is_writer:
            step = self.first_step + state.global_step
            for row in (row for row in read_metrics(self.run) if row["split"] == self.split and row["step"] <= step):
                if "alarm" in row:
                    self.raised.add(row["alarm"].partition(":")[0])
                else:
                    self.history.append(row)
            for row in self.history:
                take(self.progress, row)
            self.history = self.history[-2 * WINDOW :]
        if self.is_writer:
            self._open_view()

    def _open_view(self) -> None:
        """State in the manifest how many steps there will be, and show a table if there is a terminal for it."""
        manifest = read_manifest(self.run)
        stages = [manifest["config"].get(option) or 0 for option in ("sft_steps", "max_steps")]
        planned = sum(stages) if self.split == "sft" else self.last_step
        write_json_atomic(self.run / MANIFEST, manifest | {"planned_steps": planned})
        self.progress.task, self.progress.started = str(manifest.get("task", "")), time.time()
        if is_live(sys.stderr):
            self.interrupt.closing.enter_context(live_view(self.progress, sys.stderr))
            self.is_on_screen = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.status = "interrupted" if self.interrupt.asked else "done"
        self.interrupt.closing.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self._stop_asked(args):
            control.should_save = control.should_training_stop = True

    def _stop_asked(self, args: Any) -> bool:
        """Whether any process was asked to stop: all leave the loop at the same step."""
        self.interrupt.asked = processes.any_of(self.interrupt.asked, args.device)
        return self.interrupt.asked

    def on_log(self, args: Any, state: Any, control: Any, logs: Row | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        step = self.first_step + state.global_step
        row = {"step": step, "split": self.split}
        row |= {key: value for key, value in logs.items() if key not in INTERNAL and value is not None}
        row |= self._epoch(step)
        if "num_tokens" in logs:
            row["tokens_per_s"] = self._tokens_per_s(int(logs["num_tokens"] or 0))
        if self.is_writer:
            log_metrics(self.run, row)
            for sample in self.samples[: self.completions_per_log]:
                log_completion(self.run, {"step": step} | sample)
            self._alarm(step, row)
            self._tell(row, state.global_step % (LINE_EVERY * args.logging_steps) == 0 or step >= self.last_step)
        self.stop_unless_finite(step, row)

    def stop_unless_finite(self, step: int, row: Row) -> None:
        """End the run, with an alarm, if loss or gradient of the row is no number any more."""
        wrong = [key for key in ("loss", "grad_norm") if not math.isfinite(row.get(key, 0.0))]
        if wrong:
            text = f"not finite: {' and '.join(wrong)} at step {step}"
            if self.is_writer:
                log_metrics(self.run, {"step": step, "split": self.split, "alarm": text})
            raise WorkError(f"{text}; lower the learning rate and start again (checkpoints before it are sound)")

    def evaluated(self, step: int, row: Row) -> None:
        """Write the measurements on held-out data, as rows of split `eval`, and a line."""
        row = {"step": step, "split": "eval"} | row | self._epoch(step)
        if self.is_writer:
            log_metrics(self.run, row)
            self._tell(row, is_line_due=True)
        self.stop_unless_finite(step, row)

    def _epoch(self, step: int) -> Row:
        return {} if self.steps_in_epoch is None else {"epoch": step / self.steps_in_epoch}

    def _tokens_per_s(self, num_tokens: int) -> float | None:
        """Tokens, prompts included, that went through training since the last log event, a second."""
        now, before = time.perf_counter(), self.logged_tokens
        elapsed, self.logged_at, self.logged_tokens = now - self.logged_at, now, num_tokens
        return None if before < 0 else (num_tokens - before) / elapsed

    def _alarm(self, step: int, row: Row) -> None:
        kind = self.kind or self.split
        if kind in ALARMS:
            self.history = [*self.history[-2 * WINDOW + 1 :], row]
            self.raise_alarms(step, ALARMS[kind](self.history))

    def raise_alarms(self, step: int, found: dict[str, str]) -> None:
        """Each kind once in a run, as a row and a line."""
        for kind, text in found.items():
            if self.is_writer and kind not in self.raised:
                self.raised.add(kind)
                alarm = {"step": step, "split": self.split, "alarm": text}
                log_metrics(self.run, alarm)
                take(self.progress, alarm)
                print(f"ALARM at step {step}: {text}", file=sys.stderr, flush=True)

    def _tell(self, row: Row, is_line_due: bool) -> None:
        """Show a row: in the table, or as a line where there is none and one is due."""
        take(self.progress, {"time": time.time()} | row)
        if is_line_due and not self.is_on_screen:
            line = plain_line(row, self.last_step, seconds_left(self.progress))
            print(line, file=sys.stderr, flush=True)
