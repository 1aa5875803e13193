"""What a guardrail training trains: an adapter for each guardrail and variation, or one for all; its records and steps.

plans = make_plans(config)                              records of splits train and validation
training, validation = encoded(tokenizer, plans[0])     as tokens, the too long ones left out and counted
steps_of(plans[0].config, training)
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_training import processes
from model_training.guardrail_config import ALL, JOINT, VARIATIONS, TrainGuardrailConfig, run_directory
from utils.errors import UserError

if TYPE_CHECKING:
    from model_training.orpo_trainer import Example

Record = dict[str, Any]
EVALUATIONS = 10
"""In a training, by default."""


@dataclass(frozen=True)
class Plan:
    """One adapter to train: what the manifest of its run says, and its records."""

    name: str
    """A guardrail's, or `joint`."""
    config: TrainGuardrailConfig
    tags: dict[str, str]
    training: list[Record]
    validation: list[Record]
    left_out: int
    """Records of kind `other` that a joint adapter does not learn from."""


def make_plans(config: TrainGuardrailConfig) -> list[Plan]:
    """The adapters to train, in their order, by variation and guardrail."""
    from dataset.guardrails import choose_behaviors, load_guardrails

    guards = load_guardrails(config.guardrails)
    behaviors = choose_behaviors(guards, config.behavior)
    variations = VARIATIONS if config.dataset_variation == ALL else (config.dataset_variation,)
    groups = [(JOINT, behaviors)] if config.joint else [(name, [name]) for name in behaviors]
    return [_plan(config, guards, name, group, variation) for variation in variations for name, group in groups]


def _plan(config: TrainGuardrailConfig, guards: Any, name: str, behaviors: list[str], variation: Any) -> Plan:
    from dataset.guardrail import load_behavior

    records = [
        record
        for behavior in behaviors
        for record in load_behavior(config.dataset_path, behavior, variation, guards, config.skip_invalid)
    ]
    kept = [record for record in records if name != JOINT or record["kind"] != "other"]
    training, validation = ([one for one in kept if one["split"] == split] for split in ("train", "validation"))
    if not training:
        raise UserError(
            f"{config.dataset_path}: none of the {len(kept)} records of {name}, {variation}, is of the split `train`; "
            "there is nothing to learn"
        )
    own = replace(
        config,
        behavior=behaviors,
        dataset_variation=variation,
        output_dir=str(run_directory(config.output_dir, name, variation)),
    )
    tags = {behavior: guards[behavior].tag for behavior in behaviors}
    return Plan(name, own, tags, training, validation, len(records) - len(kept))


def encoded(tokenizer: Any, plan: Plan) -> tuple[list[Example], list[Example]]:
    """The records that are short enough, as tokens; a line says how many there are of each kind."""
    from model_training.orpo_trainer import encode_records

    longest = plan.config.max_seq_length
    sides = [encode_records(tokenizer, records) for records in (plan.training, plan.validation)]
    training, validation = ([one for one in side if max(map(len, one.pair)) <= longest] for side in sides)
    if not training:
        raise UserError(
            f"{plan.name}: none of {len(plan.training)} records is short enough; raise --max_seq_length {longest}"
        )
    intervals(plan.config, steps_of(plan.config, training))
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in training).items())
    too_long = sum(map(len, sides)) - len(training) - len(validation)
    left_out = [f"{too_long} longer than --max_seq_length {longest} tokens"] if too_long else []
    left_out += [f"{plan.left_out} of kind other, which have guards of their own here"] if plan.left_out else []
    print(
        f"{Path(plan.config.output_dir).name}: {len(training)} records to train on ({kinds}), {len(validation)} for "
        f"validation{'; left out: ' if left_out else ''}{', '.join(left_out)}.",
        file=sys.stderr,
    )
    return training, validation


def steps_of(config: TrainGuardrailConfig, training: list[Example]) -> int:
    """Optimizer steps of the whole training. A joint adapter has as many for each of its guardrails as a single one."""
    epochs = config.num_train_epochs
    return config.max_steps * len(config.behavior) or math.ceil(epochs * len(training) / records_in_step(config))


def records_in_step(config: TrainGuardrailConfig) -> int:
    """Of all processes."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * processes.count()


def intervals(config: TrainGuardrailConfig, steps: int) -> tuple[int, int]:
    """Steps between evaluations, and between checkpoints: by default a tenth of all, both.

    Raises:
        UserError: checkpoints would not fall on evaluations.
    """
    eval_steps = config.eval_steps or math.ceil(steps / EVALUATIONS)
    save_steps = config.save_steps or eval_steps
    if save_steps % eval_steps:
        default = "" if config.eval_steps else f", the default for {steps} steps"
        raise UserError(
            f"--save_steps {save_steps} is no multiple of --eval_steps {eval_steps}{default}: a checkpoint is "
            f"chosen by its evaluation; --save_steps {math.ceil(save_steps / eval_steps) * eval_steps} works"
        )
    return eval_steps, save_steps
