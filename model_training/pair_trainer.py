"""Train a reward model on pairs: our forward and loss in the loop of pair_loop.py.

Each optimizer step: the pairs of a few batches of like length (pair_order.py), both texts of a pair in one row behind
their common prompt (pairs.py), and

    loss = mean over pairs of -log P(chosen over rejected) + regulariser        (preference_losses.py)

by AdamW, gradients clipped, with the learning rate at share t of the steps

    cosine    0.1 + 0.9 (1 + cos(pi t)) / 2   times its peak
    step      1, 0.1, 0.01 times its peak, by thirds

The held-out pairs are scored by the same loss without regulariser; the weights with the lowest one are the result,
without held-out pairs the last weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_training import preference_losses
from model_training.logs import COIN_EVALUATIONS, RunLog
from model_training.pair_loop import EvaluateAndSave, PairTrainer, make_trainer
from model_training.pairs import Pair, collate_pairs, pair_outputs, row_length
from model_training.preference_config import TrainPreferenceConfig
from model_training.preference_losses import Kind, mean_and_spread
from model_training.processes import gathered
from model_training.reward_model import outputs_of_pairs
from model_training.stage import common_options, in_bfloat16
from utils.runs import read_metrics


def rate_at(schedule: str, share: float) -> float:
    """The learning rate at that share of the steps (0 to 1), as a multiple of its peak."""
    if schedule == "step":
        return (1.0, 0.1, 0.01)[min(int(3 * share), 2)]
    return 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2


def measure(kind: Kind, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """What a batch of outputs, (B, K) and (B, K), says: accuracy (a tie counts 1/2), mean absolute difference of the
    rewards, mean spread (not of `base`, which has none)."""
    (mean_c, spread_c), (mean_r, spread_r) = mean_and_spread(kind, chosen), mean_and_spread(kind, rejected)
    values = {
        "accuracy": (mean_c > mean_r).float().mean() + (mean_c == mean_r).float().mean() / 2,
        "mean_margin": (mean_c - mean_r).abs().mean(),
    }
    if kind != "base":
        values["mean_spread"] = (spread_c + spread_r).mean() / 2
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def alarm_if_worse_than_a_coin(trainer: PairTrainer, loss: float) -> None:
    """Raise it if this held-out loss and those before it are above log 2, COIN_EVALUATIONS of them."""
    log, step = trainer.run_log, trainer.state.global_step
    before = [row["loss"] for row in read_metrics(log.run) if row["split"] == "eval" and row["step"] < step]
    last = [*before, loss][-COIN_EVALUATIONS:]
    if len(last) == COIN_EVALUATIONS and min(last) > math.log(2):
        text = f"worse than a coin: for {COIN_EVALUATIONS} evaluations the held-out loss was above log 2; lower "
        log.raise_alarms(step, {"worse than a coin": text + "--learning_rate, or look at the data"})


def make_pair_trainer(
    model: Any,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    pad_id: int,
    config: TrainPreferenceConfig,
    folder: Path,
    log: RunLog,
    steps: int,
) -> PairTrainer:
    """The trainer of a model of `reward_model.build`, on pairs of token ids, with its checkpoints in `folder`."""
    kind, cuda = config.reward_model_type, model.device.type == "cuda"

    def batch_loss(model: Any, inputs: Any) -> tuple[Tensor, dict[str, float]]:
        chosen, rejected = pair_outputs(model, inputs["pairs"])
        loss = preference_losses.training_loss(
            kind,
            chosen,
            rejected,
            likelihood=config.likelihood,
            variance_penalty=config.variance_penalty,
            entropy_coeff=config.entropy_coeff,
            entropy_bonus=config.entropy_bonus,
            whole_batch=gathered,
        )
        return loss, measure(kind, chosen.detach(), rejected.detach())

    def measure_held_out(trainer: PairTrainer) -> dict[str, float]:
        model, batch_size = trainer.bare, config.per_device_eval_batch_size
        chosen, rejected = outputs_of_pairs(model, held_out, pad_id, config.shared_prompt, batch_size)
        loss = preference_losses.loss(kind, chosen, rejected, config.likelihood).mean().item()
        alarm_if_worse_than_a_coin(trainer, loss)
        return {"loss": loss} | measure(kind, chosen, rejected) | {"pairs": len(held_out)}

    options = common_options(config, folder, steps, config.eval_steps, cuda, config.gradient_checkpointing) | {
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "bf16": in_bfloat16(config.dtype, cuda) or config.bf16,
    }
    return make_trainer(
        model,
        pairs,
        lambda batch: {"pairs": collate_pairs(list(batch), pad_id, config.shared_prompt)},
        options=options,
        evaluate_and_save=EvaluateAndSave(config.eval_steps, config.eval_steps, evaluate=bool(held_out)),
        log=log,
        batch_loss=batch_loss,
        measure=measure_held_out,
        lengths=[row_length(pair, config.shared_prompt) for pair in pairs],
        longest=("--max_length", config.max_length),
        checkpointing_option="--gradient_checkpointing",
        patience=config.early_stopping_patience,
        rate=lambda share: rate_at(config.lr_scheduler_type, share),
    )
