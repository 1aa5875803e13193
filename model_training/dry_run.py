"""`--dry_run`: two optimizer steps on the longest records, to know before a run what it takes of memory and time.

Model, adapter, trainer and options are those of the run; the records are the longest ones, as many as a step takes, and
sampled completions go on to their full length. So memory is the run's worst case, and its time an upper bound. The
first step warms up (the optimizer's state, the allocator's blocks); the time of the second counts. Trainers need a
directory: they get a temporary one, and save nothing.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from utils.formatting import NBSP, duration

if TYPE_CHECKING:
    from model_training.logs import RunLog
    from model_training.memory import Memory

STEPS = 2
Record = TypeVar("Record")


@dataclass(frozen=True)
class Rehearsed:
    """What a training took."""

    name: str
    memory: Memory
    step_seconds: float
    evaluation_seconds: float
    """Of one batch of held-out records; 0 if there are none."""


def longest(records: Sequence[Record], length: Callable[[Record], int], count: int) -> list[Record]:
    """The `count` longest records."""
    return sorted(records, key=length, reverse=True)[:count]


@contextmanager
def quiet_log() -> Iterator[tuple[Path, RunLog]]:
    """A temporary directory, and a log that writes nothing."""
    from model_training.logs import Interrupt, RunLog

    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), RunLog(Path(folder), "dry", 0, STEPS, 0, Interrupt(), is_writer=False)


def rehearse(trainer: Any, name: str) -> Rehearsed:
    """Train to the end without saving."""
    from model_training.memory import Meter, memory_errors

    meter = Meter(trainer.args.device)
    trainer.add_callback(meter)
    trainer._save_checkpoint = lambda *_, **__: None
    with memory_errors(trainer, meter):
        trainer.train()
    return Rehearsed(name, meter.memory(), meter.step_seconds[-1], meter.evaluation_seconds)


def to_full_length(trainer: Any, tokens: int) -> None:
    """Let GRPO's trainer sample that many tokens of every completion, whichever engine it samples with."""
    if trainer.use_vllm:
        trainer.vllm_generation.generation_kwargs["min_tokens"] = tokens
    else:
        trainer.generation_config.min_new_tokens = tokens


def report(found: Sequence[tuple[Rehearsed, int, int]]) -> str:
    """What is printed, of each training with the steps and evaluation batches that the run would have."""
    lines, seconds = [], 0.0
    for one, steps, evaluations in found:
        seconds += steps * one.step_seconds + evaluations * one.evaluation_seconds
        lines.append(
            f"{one.name}: {one.memory.describe()}, {one.step_seconds:.2f} s a step; {steps} steps: at most "
            f"{_time(steps * one.step_seconds)}"
            + (f", evaluations at most {_time(evaluations * one.evaluation_seconds)}" if evaluations else "")
        )
    total = f"The whole run: at most {_time(seconds)}, loading and checkpoints not counted. Nothing was written."
    return "\n".join([*lines, total])


def _time(seconds: float) -> str:
    return duration(math.ceil(seconds)).replace(NBSP, " ")
