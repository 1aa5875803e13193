"""What a training takes: memory of the device, and seconds a step, measured while it runs.

On a GPU memory is what tensors take of it (torch's allocator); on a CPU what the process has resident of the machine's.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from utils.errors import WorkError

GIB = 2**30
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    weights: int
    """Before the first step: the model, and on a CPU the process around it."""
    peak: int
    """The most so far."""
    total: int
    """The device's, or the machine's."""
    reserved: int | None = None
    """The most that the GPU's allocator held, fragments among it; None on a CPU."""

    def describe(self) -> str:
        """`peak GPU memory 3.20 of 23.64 GiB (at start 2.10, reserved 3.50)`."""
        more = "" if self.reserved is None else f", reserved {self.reserved / GIB:.2f}"
        kind = "resident memory" if self.reserved is None else "GPU memory"
        of_all = f"{self.peak / GIB:.2f} of {self.total / GIB:.2f} GiB"
        return f"peak {kind} {of_all} (at start {self.weights / GIB:.2f}{more})"


@dataclass
class Meter(TrainerCallback):  # type: ignore[misc]
    """Measures from the beginning of `train` on."""

    device: torch.device
    begun: bool = False
    weights: int = 0
    clock: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    evaluation_seconds: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.weights, self.begun = self._now(), True
        self.clock = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_seconds = [*self.step_seconds[-1:], self._lap()]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.evaluation_seconds = self._lap()

    def _lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before

    def _now(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except FileNotFoundError:  # not Linux
            return _peak_resident()
        return pages * os.sysconf("SC_PAGE_SIZE")

    def memory(self) -> Memory:
        """What was measured so far."""
        if self.device.type == "cuda":
            total = torch.cuda.mem_get_info(self.device)[1]
            reserved = torch.cuda.max_memory_reserved(self.device)
            return Memory(self.weights, torch.cuda.max_memory_allocated(self.device), total, reserved)
        return Memory(self.weights, _peak_resident(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _peak_resident() -> int:
    """Of the process since its start, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    found = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in found)


def tried_bytes(error: BaseException) -> int:
    """What the allocation that failed was to take, from its message; 0 where it does not say."""
    text = str(error)
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", text)
    if found:
        return int(float(found[1]) * UNITS[found[2]])
    found = re.search(r"you tried to allocate (\d+) bytes", text)
    return int(found[1]) if found else 0


@contextmanager
def memory_errors(trainer: Any, meter: Meter) -> Iterator[None]:
    """Out of memory in a training is one line: what was measured, and which settings would fit."""
    from model_training.memory_advice import advice

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not meter.begun:
            raise
        step = trainer.state.global_step + 1
        settings = trainer.memory_settings(_is_sampling(error))
        line = advice(meter.memory(), settings, tried_bytes(error))
        raise WorkError(f"out of memory in step {step}: {line}") from error


def _is_sampling(error: BaseException) -> bool:
    """Whether it was raised while GRPO's trainer sampled completions."""
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return "_generate_single_turn" in names
