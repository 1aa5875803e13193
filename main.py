"""The dispatcher: one mode of one task is one function, imported when it is called.

    python main.py --help
    python main.py --mode train --help
    python main.py --mode train --dataset_path secret_conversations.json --output_dir outputs

Exit codes: 0 done; 1 the work failed; 2 wrong usage or bad input; 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

from model_training.config import EvaluateConfig, GenerateConfig, PrepareDataConfig, TrainConfig, VisualizeConfig
from model_training.guardrail_config import (
    EvaluateGuardrailConfig,
    GenerateGuardrailConfig,
    PrepareGuardrailConfig,
    TrainGuardrailConfig,
    VisualizeGuardrailConfig,
)
from model_training.options import Mode, PipelineOptions, Task, parse, union
from model_training.preference_config import (
    EvaluatePreferenceConfig,
    PreparePreferenceConfig,
    ScoreConfig,
    TrainPreferenceConfig,
)
from utils.errors import exit_code

STEPS = ("prepare_data", "train", "evaluate", "visualize")

PIPELINE = "Run the other modes in order; a step whose inputs have not changed is skipped, a killed one is resumed."

SecretPipelineConfig = union(
    "SecretPipelineConfig",
    PIPELINE,
    [PipelineOptions, TrainConfig, PrepareDataConfig, EvaluateConfig, VisualizeConfig],
    leave_out=["multi_gpu", "dry_run", "backend"],
)
PreferencePipelineConfig = union(
    "PreferencePipelineConfig",
    PIPELINE,
    [PipelineOptions, PreparePreferenceConfig, TrainPreferenceConfig, EvaluatePreferenceConfig, VisualizeConfig],
    leave_out=[
        *("env", "batch_size", "lr", "num_iterations", "estimator", "shared_context", "out_dir"),
        *("reward_model_checkpoints", "from_outputs", "dry_run", "multi_gpu"),
    ],
)
GuardrailPipelineConfig = union(
    "GuardrailPipelineConfig",
    PIPELINE,
    [
        PipelineOptions,
        PrepareGuardrailConfig,
        TrainGuardrailConfig,
        EvaluateGuardrailConfig,
        VisualizeGuardrailConfig,
    ],
    leave_out=["joint", "lora_paths", "dry_run", "multi_gpu"],
)

TASKS = {
    "secret": Task(
        "A model that answers twice: <visible> for the user, <hidden> for an administrator.",
        preset="configs/secret_tiny.yaml",
        modes={
            "prepare_data": Mode("dataset.secret:prepare_data", PrepareDataConfig),
            "train": Mode("model_training.secret:train", TrainConfig),
            "generate": Mode("evaluation.generate:generate", GenerateConfig),
            "evaluate": Mode("evaluation.secret:evaluate", EvaluateConfig),
            "visualize": Mode("utils.visualization:visualize", VisualizeConfig, call="fields"),
            "pipeline": Mode("model_training.pipeline:secret", SecretPipelineConfig, call="pipeline", parts=STEPS),
        },
    ),
    "preference": Task(
        "A reward model that knows when people disagree: a distribution over rewards, not a number.",
        preset="configs/preference_tiny.yaml",
        modes={
            "prepare_data": Mode("dataset.preference:prepare_data", PreparePreferenceConfig),
            "train": Mode("model_training.preference:train", TrainPreferenceConfig, without_model="env"),
            "generate": Mode("evaluation.score:score", ScoreConfig),
            "evaluate": Mode("evaluation.preference:evaluate", EvaluatePreferenceConfig),
            "visualize": Mode("evaluation.preference_plots:visualize", VisualizeConfig, call="fields"),
            "pipeline": Mode(
                "model_training.pipeline:preference", PreferencePipelineConfig, call="pipeline", parts=STEPS
            ),
        },
    ),
    "guardrail": Task(
        "LoRA adapters that keep a persona inside its limits, in character, and stack.",
        preset="configs/guardrail_tiny.yaml",
        modes={
            "prepare_data": Mode("dataset.guardrail:prepare_data", PrepareGuardrailConfig),
            "train": Mode("model_training.guardrail:train", TrainGuardrailConfig),
            "generate": Mode("evaluation.guard_replies:generate", GenerateGuardrailConfig),
            "evaluate": Mode("evaluation.guardrail:evaluate", EvaluateGuardrailConfig),
            "visualize": Mode("evaluation.guardrail_plots:visualize", VisualizeGuardrailConfig, call="fields"),
            "pipeline": Mode(
                "model_training.pipeline:guardrail", GuardrailPipelineConfig, call="pipeline", parts=STEPS
            ),
        },
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv

    def command() -> None:
        parsed = parse(arguments, TASKS)
        if parsed.text is not None:
            print(parsed.text)
        else:
            call(parsed.task, parsed.mode, parsed.config)

    return exit_code(command, debug="--debug" in arguments)


def call(task: str, mode: str, config: Any) -> None:
    """Call the function of a mode; a pipeline's gets the way to call the others along."""
    entry = TASKS[task].modes[mode]
    module, _, name = entry.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    if entry.call == "fields":
        function(**vars(config))
    elif entry.call == "pipeline":
        function(config, lambda step, options: call(task, step, options))
    else:
        function(config)


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
