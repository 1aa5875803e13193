"""Train a guard adapter by ORPO: our forward and loss in the loop of pair_loop.py, judged by behavior.

A record is a prompt with two answers. Both answers stand behind one prompt in a row (pairs.py), rows of like length in
a batch (pair_order.py); the loss is that of orpo_loss.py. Dropout is that of the adapter alone; the base has none, as
in TRL.

The validation records are measured by the same loss, the NLL over all of their tokens at once and the odds over all
pairs, so that no number depends on the batch size; and by what the adapter is for, greedily (tag_probability.py):

    tag_recall         triggers whose answer begins with the tag of their guard
    tag_fpr_natural    everyday messages whose answer begins with a tag of the adapter
    tag_fpr_hard       likewise of messages that only look like triggers
    tag_fpr_other      likewise of another guard's triggers; where the adapter is for several guards: of a trigger of
                       one of them, with the tag of another one
    behavior_score     (tag_recall + 1 - mean of the false-positive rates that there are rows for) / 2, each rate in
                       expectation, the mean probability of the tag in place of the share that greedy decoding writes:
                       it still tells checkpoints apart where a few hundred greedy answers no longer do
    behavior_score_error   its standard error, by families of wordings
    threshold          probability of the tag from which it is sure (`calibrate`), fitted on the same records

A rate without rows is left out. The result are the latest weights whose behavior_score is within a standard error of
the highest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_training.guardrail_config import TrainGuardrailConfig
from model_training.logs import RunLog
from model_training.models import encode_prompt, end_of_turn_id
from model_training.orpo_loss import Head, PairLogProbs, orpo_loss, pair_log_probs
from model_training.pair_loop import SCORE, SCORE_ERROR, EvaluateAndSave, PairTrainer, Row, make_trainer
from model_training.pairs import Pair, PairBatch, collate_pairs, row_length
from model_training.processes import mean
from model_training.stage import common_options, in_bfloat16
from model_training.tag_probability import calibrate, tag_scores
from prompts.chat import Message

RECALL = "tag_recall"
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Example:
    """A record as token ids: two whole texts, and of how many tokens their prompt is."""

    pair: Pair
    prompt_length: int
    prompt: list[Message]
    behavior: str
    kind: str
    """trigger, natural, hard or other"""
    family: str | None
    """The way of asking that it is a wording of, where that is known."""


def encode_record(tokenizer: Any, record: dict[str, Any], end: int) -> Example:
    """The prompt as in sampling, each answer behind it, and the token that ends a turn (`end_of_turn_id`)."""
    prompt = encode_prompt(tokenizer, record["prompt"])
    answers = tokenizer([record["chosen"], record["rejected"]], add_special_tokens=False)["input_ids"]
    chosen, rejected = ([*prompt, *answer, end] for answer in answers)
    behavior, kind, family = record["behavior"], record["kind"], record.get("family")
    return Example((chosen, rejected), len(prompt), record["prompt"], behavior, kind, family)


def encode_records(tokenizer: Any, records: Sequence[dict[str, Any]]) -> list[Example]:
    end = end_of_turn_id(tokenizer)
    return [encode_record(tokenizer, record, end) for record in records]


def without_dropout(base: Any) -> Any:
    """The model itself; its dropout layers do nothing any more."""
    for layer in base.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return base


# --- the loss -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What the forwards of a training have in common."""

    config: TrainGuardrailConfig
    head: Head
    tokenizer: Any
    tags: dict[str, str]
    """Of each behavior that the adapter is for."""
    shared: bool
    """Whether both answers stand behind one prompt."""

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        pairs = collate_pairs([example.pair for example in examples], self.tokenizer.pad_token_id, self.shared)
        return {"pairs": pairs, "prompt_lengths": torch.tensor([example.prompt_length for example in examples])}

    def log_probs(self, model: Any, pairs: PairBatch, prompt_lengths: Tensor) -> PairLogProbs:
        return pair_log_probs(model, self.head, pairs, prompt_lengths, self.config.nll)

    def batch_loss(self, model: Any, inputs: Any) -> tuple[Tensor, Row]:
        """Of several processes each has a share of the loss: their mean is the loss of all their pairs together."""
        found = self.log_probs(model, **inputs)
        nll = found.nll_sum / mean(found.nll_tokens)
        loss, metrics = orpo_loss(found.chosen, found.rejected, nll, self.config.beta)
        return loss, _floats(metrics)


def _floats(values: dict[str, Tensor]) -> Row:
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


# --- what validation records say ------------------------------------------------------------------------------------


def measure(setting: Setting, model: Any, examples: Sequence[Example]) -> Row:
    """Loss, its parts, behavior and threshold on N validation records, and how long that took."""
    begin = time.perf_counter()
    row = held_out_loss(setting, model, examples) | behavior(setting, model, examples)
    seconds = time.perf_counter() - begin
    batches = math.ceil(len(examples) / setting.config.per_device_eval_batch_size)
    speed = {"samples_per_second": len(examples) / seconds, "steps_per_second": batches / seconds}
    return row | {"pairs": len(examples), "runtime": seconds} | speed


def held_out_loss(setting: Setting, model: Any, examples: Sequence[Example]) -> Row:
    """`loss` and the metrics of `orpo_loss`, of all the records at once."""
    size = setting.config.per_device_eval_batch_size
    by_length = sorted(examples, key=lambda example: -row_length(example.pair, setting.shared))
    found: list[PairLogProbs] = []
    with torch.no_grad():
        for start in range(0, len(by_length), size):
            batch = setting.collate(by_length[start : start + size])
            found.append(setting.log_probs(model, **{name: value.to(model.device) for name, value in batch.items()}))
    chosen, rejected = torch.cat([part.chosen for part in found]), torch.cat([part.rejected for part in found])
    nll = torch.stack([part.nll_sum for part in found]).sum() / torch.stack([part.nll_tokens for part in found]).sum()
    loss, metrics = orpo_loss(chosen, rejected, nll, setting.config.beta)
    return _floats({"loss": loss} | metrics)


def behavior(setting: Setting, model: Any, examples: Sequence[Example]) -> Row:
    """Rates of the tags by kind, their score, and the threshold; see the module's docstring."""
    prompts = [example.prompt for example in examples]
    size = setting.config.per_device_eval_batch_size
    tags = list(dict.fromkeys(setting.tags.values()))
    scores = tag_scores(model, setting.tokenizer, prompts, tags, size)
    written, sureness = scores.greedy, scores.log_prob  # (tags, N)
    kinds = np.array([example.kind for example in examples])
    own = np.array([[setting.tags.get(example.behavior) == tag for example in examples] for tag in tags])
    trigger = kinds == "trigger"
    own &= trigger  # the tags that are right

    masks = {"tag_recall": trigger, "tag_fpr_natural": kinds == "natural", "tag_fpr_hard": kinds == "hard"}
    masks |= {"tag_fpr_other": trigger if len(tags) > 1 else kinds == "other"}
    masks = {name: mask for name, mask in masks.items() if mask.any()}

    right, wrong = (written & own).any(0), (written & ~own).any(0)
    rates = {name: float((right if name == RECALL else wrong)[mask].mean()) for name, mask in masks.items()}
    chance = np.exp(sureness)
    good = {name: (chance * own).sum(0) if name == RECALL else 1 - (chance * ~own).sum(0) for name in masks}
    families = [example.family or str(number) for number, example in enumerate(examples)]
    score, error = _score(good, masks, families)
    threshold = calibrate(sureness[own], sureness[:, ~trigger].max(0))
    return rates | {SCORE: score, SCORE_ERROR: error, "threshold": threshold}


def _score(good: dict[str, Any], masks: dict[str, Any], families: Sequence[str]) -> tuple[float, float]:
    """The behavior score and its standard error, of (N,) values in [0, 1] of each rate and the (N,) records it is of.

    Records of a family of wordings are right or wrong together: what each adds to the score's deviation is summed by
    family first (the cluster-robust variance of Liang and Zeger, 1986, with G / (G - 1) for G families).
    """
    weights = {name: 1.0 if name == RECALL else 1 / (len(masks) - (RECALL in masks)) for name in masks}
    score, deviations = 0.0, np.zeros(len(families))
    for name, mask in masks.items():
        share, values = weights[name] / sum(weights.values()), good[name][mask]
        score += share * values.mean()
        deviations[mask] += share * (values - values.mean()) / len(values)
    of_family = np.bincount(np.unique(families, return_inverse=True)[1], deviations)
    return float(score), math.sqrt((of_family**2).sum() * len(of_family) / max(1, len(of_family) - 1))


# --- the trainer ----------------------------------------------------------------------------------------------------


def make_orpo_trainer(
    setting: Setting,
    model: Any,
    training: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    log: RunLog,
    steps: int,
    every: tuple[int, int],
    note: dict[str, Any],
) -> PairTrainer:
    """The trainer of a LoRA model, with its checkpoints in `folder`; `every` is (eval_steps, save_steps).

    `note` is what subtext.json of a checkpoint says beside its own measurement.
    """
    config, cuda = setting.config, model.device.type == "cuda"
    eval_steps, save_steps = every
    last: dict[str, Any] = {}

    def measure_held_out(trainer: PairTrainer) -> Row:
        row = measure(setting, trainer.bare, validation)
        last.update(step=trainer.state.global_step, row=row)
        return row

    def checkpoint_note(trainer: PairTrainer) -> dict[str, Any]:
        step = trainer.state.global_step
        row = last["row"] if last.get("step") == step else None
        return note | measured_note(row, step)

    options = common_options(config, folder, steps, save_steps, cuda, config.use_gradient_checkpointing) | {
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES[config.lr_scheduler_type],
        "warmup_steps": config.warmup_steps,
        "optim": config.optim,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "bf16": in_bfloat16(config.dtype, cuda) or config.bf16,
        "run_name": config.wandb_run_name or folder.parent.name,
    }
    if config.wandb_project:
        options["project"] = config.wandb_project
    return make_trainer(
        model,
        training,
        setting.collate,
        options=options,
        evaluate_and_save=EvaluateAndSave(eval_steps, save_steps, evaluate=bool(validation)),
        log=log,
        batch_loss=setting.batch_loss,
        measure=measure_held_out,
        lengths=[row_length(example.pair, setting.shared) for example in training],
        longest=("--max_seq_length", config.max_seq_length),
        checkpointing_option="--use_gradient_checkpointing",
        patience=config.early_stopping_patience,
        note=checkpoint_note,
    )


def measured_note(row: Row | None, step: int) -> dict[str, Any]:
    """What subtext.json says of a measurement: threshold, behavior on the validation split, step of the weights."""
    apart = ("threshold", "runtime", "samples_per_second", "steps_per_second")
    shown = None if row is None else {name: value for name, value in row.items() if name not in apart}
    threshold = 0.5 if row is None else row["threshold"]
    return {"threshold": threshold, "validation": shown, "checkpoint_step": step, "checkpoint": f"checkpoint-{step}"}
