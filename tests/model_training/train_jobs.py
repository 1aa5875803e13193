"""Trainings in a row in this process, or with a launcher in each of several:

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.model_training.train_jobs jobs.json

jobs.json is a list of {"task", "options", "stop_at"}; a `stop_at` is the step in which the last process, and no other,
is asked to stop. GRPO's completions are random tokens, the same for the same place in the whole batch of a step,
however many processes share it.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from model_training import guardrail, preference, secret
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


def run(jobs: list[dict[str, Any]]) -> None:
    from model_training.grpo import SegmentTrainer
    from model_training.logs import RunLog
    from model_training.processes import count, rank

    asked_for = RunLog.on_step_end
    SegmentTrainer._generate_single_turn = same_completions
    for job in jobs:

        def on_step_end(self: Any, args: Any, state: Any, control: Any, job: Any = job, **kwargs: Any) -> None:
            if rank() == count() - 1 and self.first_step + state.global_step == job.get("stop_at"):
                self.interrupt.asked = True
            asked_for(self, args, state, control, **kwargs)

        RunLog.on_step_end = on_step_end  # type: ignore[method-assign]
        train, config = TASKS[job["task"]]
        with contextlib.suppress(KeyboardInterrupt):
            train(config(**job["options"]))
    RunLog.on_step_end = asked_for  # type: ignore[method-assign]


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
