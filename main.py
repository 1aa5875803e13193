"""The dispatcher: one mode of one task is one function, imported when it is called.

    python main.py --help
    python main.py --mode train --help
    python main.py --mode train --dataset_path secret_conversations.json --output_dir outputs

Exit codes: 0 done; 1 the work failed; 2 wrong usage or bad input; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import traceback
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
from utils.errors import UserError, WorkError

STEPS = ("prepare_data", "train", "evaluate", "visualize")

PIPELINE = "Run the other modes in order; a step whose inputs have not changed is skipped, a killed one is resumed."

SecretPipelineConfig = union(
    "SecretPipelineConfig",
    PIPELINE,
    [PipelineOptions, TrainConfig, PrepareDataConfig, EvaluateConfig, VisualizeConfig],
    leave_out=["multi_gpu"],
)
PreferencePipelineConfig = union(
    "PreferencePipelineConfig",
    PIPELINE,
    [PipelineOptions, PreparePreferenceConfig, TrainPreferenceConfig, EvaluatePreferenceConfig, VisualizeConfig],
    leave_out=[
        *("env", "batch_size", "lr", "num_iterations", "estimator", "shared_context", "out_dir"),
        *("reward_model_checkpoints", "from_outputs"),
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
    leave_out=["joint", "lora_paths"],
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
    try:
        command = parse(arguments, TASKS)
        if command.text is not None:
            print(command.text)
        else:
            call(command.task, command.mode, command.config)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {reason(error)}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


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


def reason(error: Exception) -> str:
    """One line for any error; what is no error of ours is named by its type, for --debug to show more."""
    if isinstance(error, (UserError, WorkError)):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"cannot write {error.filename or 'a file'}: {error.strerror}; free space or write elsewhere"
    lines = str(error).strip().splitlines()
    return f"{': '.join([type(error).__name__, *lines[:1]])} (--debug shows the traceback)"


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
