"""Trainings in a row in this process, or with a launcher in each of several:

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.model_training.train_jobs jobs.json

jobs.json is a list of {"task", "options"}, with `stop_at` the step in which the last process, and no other, is asked to
stop, and with `sample` real completions. Without, GRPO's completions are random tokens, the same for the same place in
the whole batch of a step, however many processes share it.

With ACCELERATE_USE_FSDP=true or ACCELERATE_USE_DEEPSPEED=true the processes are shown to accelerate as if they had
GPUs: on CPUs it would share no weights, although torch and DeepSpeed can.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from model_training import guardrail, preference, processes, secret
from model_training.config import TrainConfig
from model_training.guardrail_config import TrainGuardrailConfig
from model_training.preference_config import TrainPreferenceConfig

TASKS: dict[str, Any] = {
    "secret": (secret.train, TrainConfig),
    "preference": (preference.train, TrainPreferenceConfig),
    "guardrail": (guardrail.train, TrainGuardrailConfig),
}


def same_completions(self: Any, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
    first = self.accelerator.process_index * len(prompt_ids)
    found = []
    for number in range(first, first + len(prompt_ids)):
        rng = random.Random(f"{self.state.global_step} {number}")
        found.append([rng.randrange(20, 300) for _ in range(rng.randrange(3, 12))] + self.eos_token_ids[:1])
    return found, None


def show_as_gpus() -> None:
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.DEEPSPEED if deepspeed else DistributedType.MULTI_GPU

    PartialState.__init__ = __init__
    processes._check_sharding = lambda: None


def run(jobs: list[dict[str, Any]]) -> None:
    from model_training.grpo import SegmentTrainer
    from model_training.logs import RunLog

    asked, sampled = RunLog.on_step_end, SegmentTrainer._generate_single_turn
    try:
        for job in jobs:

            def on_step_end(self: Any, args: Any, state: Any, control: Any, job: Any = job, **kwargs: Any) -> None:
                if processes.rank() == processes.count() - 1:
                    self.interrupt.asked |= self.first_step + state.global_step == job.get("stop_at")
                asked(self, args, state, control, **kwargs)

            RunLog.on_step_end = on_step_end  # type: ignore[method-assign]
            SegmentTrainer._generate_single_turn = sampled if job.get("sample") else same_completions
            train, config = TASKS[job["task"]]
            with contextlib.suppress(KeyboardInterrupt):
                train(config(**job["options"]))
    finally:
        RunLog.on_step_end, SegmentTrainer._generate_single_turn = asked, sampled  # type: ignore[method-assign]


if __name__ == "__main__":
    if "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        show_as_gpus()
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
