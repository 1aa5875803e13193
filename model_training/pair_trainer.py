"""Train a reward model on pairs: transformers' Trainer with our forward, loss, order, checkpoints and early stopping.

Each optimizer step: the pairs of a few batches of like length (pair_order.py), both texts of a pair in one row behind
their common prompt (pairs.py), and

    loss = mean over pairs of -log P(chosen over rejected) + regulariser        (preference_losses.py)

by AdamW, gradients clipped, with the learning rate at share t of the steps

    cosine    0.1 + 0.9 (1 + cos(pi t)) / 2   times its peak
    step      1, 0.1, 0.01 times its peak, by thirds

Every `eval_steps` steps, and at the end, the held-out pairs are scored (their loss is without regulariser) and a
checkpoint is written. The checkpoint with the lowest held-out loss is kept: its weights are the result; without
held-out pairs the last weights are. After `early_stopping_patience` evaluations without a better one the training ends.

What the trainer carries from step to step beside transformers' own state stands in the checkpoint's `loop_state.json`:
sums since the last log event, the best evaluation, the evaluations since. So a resumed run is the undisturbed one.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from model_training import preference_losses
from model_training.checkpoints import (
    LOOP_STATE,
    loop_state,
    restore_loop_state,
    save_checkpoint,
    save_weights,
)
from model_training.logs import COIN_EVALUATIONS, RunLog
from model_training.pair_order import SortedBatches
from model_training.pairs import Pair, collate_pairs, pair_outputs, row_length
from model_training.preference_config import TrainPreferenceConfig
from model_training.preference_losses import Kind, mean_and_spread
from model_training.reward_model import outputs_of_pairs
from model_training.stage import common_options


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


@dataclass
class Best:
    """The best evaluation so far, and how many were not better since."""

    loss: float = math.inf
    step: int = 0
    since: int = 0
    above_coin: int = 0
    """Evaluations in a row with a loss above log 2."""

    def ends(self, patience: int) -> bool:
        """Whether early stopping ends the training now."""
        return 0 < patience <= self.since


def best_at(checkpoint: Path) -> Best:
    """The best evaluation at the time of a checkpoint."""
    return Best(**json.loads((checkpoint / LOOP_STATE).read_text(encoding="utf-8"))["best"])


class EvaluateAndSave(TrainerCallback):  # type: ignore[misc]
    """Asks for an evaluation and a checkpoint every so many steps and at the last step."""

    def __init__(self, every: int, evaluate: bool) -> None:
        self.every, self.evaluate = every, evaluate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            control.should_save = True
            control.should_evaluate = self.evaluate


class PairTrainer(Trainer):  # type: ignore[misc]
    """transformers' trainer with our forward, loss, order, evaluation and checkpoints."""

    config: TrainPreferenceConfig
    held_out: Sequence[Pair]
    pad_id: int
    run_log: RunLog
    best: Best
    control: Any
    seconds: float = 0.0
    """Spent in training steps since the last log event."""
    pairs_met: int = 0
    resumed_from: Path | None = None

    # --- order, loss, learning rate ---

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        config = self.config
        lengths = [row_length(pair, config.shared_prompt) for pair in self.train_dataset]
        batches = self.args.max_steps * config.gradient_accumulation_steps
        return SortedBatches(lengths, config.per_device_train_batch_size, config.seed, batches)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        config, kind = self.config, self.config.reward_model_type
        chosen, rejected = pair_outputs(model, inputs["pairs"])
        loss = preference_losses.training_loss(
            kind,
            chosen,
            rejected,
            likelihood=config.likelihood,
            variance_penalty=config.variance_penalty,
            entropy_coeff=config.entropy_coeff,
            entropy_bonus=config.entropy_bonus,
        )
        self.run_log.stop_unless_finite(self.state.global_step + 1, {"loss": loss.item()})
        for name, value in measure(kind, chosen.detach(), rejected.detach()).items():
            self._metrics["train"][name].append(value)
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        schedule = self.config.lr_scheduler_type
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: rate_at(schedule, step / num_training_steps),
        )
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    # --- log events, evaluation ---

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        begin = time.perf_counter()
        loss: Tensor = super().training_step(*args, **kwargs)
        self.seconds += time.perf_counter() - begin
        self.pairs_met += self.config.per_device_train_batch_size
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            metrics = self._metrics["train"]
            logs |= {name: math.fsum(values) / len(values) for name, values in metrics.items()}
            logs["pairs_per_s"] = self.pairs_met / self.seconds
            metrics.clear()
            self.seconds, self.pairs_met = 0.0, 0
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the held-out pairs, remember the best, and end the training when patience does."""
        config, step = self.config, self.state.global_step
        self.model.eval()
        chosen, rejected = outputs_of_pairs(
            self.model_wrapped, self.held_out, self.pad_id, config.shared_prompt, config.per_device_eval_batch_size
        )
        kind, likelihood = config.reward_model_type, config.likelihood
        loss = preference_losses.loss(kind, chosen, rejected, likelihood).mean().item()
        row = {"loss": loss} | measure(kind, chosen, rejected) | {"pairs": len(self.held_out)}
        self.run_log.evaluated(step, row)
        self.log({f"eval_{name}": value for name, value in row.items()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, row)
        best = self.best
        if loss < best.loss:
            best.loss, best.step, best.since = loss, step, 0
        else:
            best.since += 1
        best.above_coin = best.above_coin + 1 if loss > math.log(2) else 0
        if best.above_coin == COIN_EVALUATIONS:
            text = f"worse than a coin: for {COIN_EVALUATIONS} evaluations the held-out loss was above log 2; lower "
            self.run_log.raise_alarms(step, {"worse than a coin": text + "--learning_rate, or look at the data"})
        if best.ends(config.early_stopping_patience):
            self.control.should_training_stop = True
        return row

    # --- checkpoints ---

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.resumed_from is not None:
            restore_loop_state(self, self.resumed_from)
            self.best = best_at(self.resumed_from)
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        save_checkpoint(self, loop_state(self) | {"best": asdict(self.best)}, self.best.step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_weights(self.model, output_dir or self.args.output_dir)


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
    cuda = model.device.type == "cuda"
    options = common_options(config, folder, steps, config.eval_steps, cuda)
    args = TrainingArguments(
        **options,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        bf16=cuda or config.bf16,
        remove_unused_columns=False,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one device, not torch's DataParallel
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=cast(Any, pairs),
        data_collator=lambda batch: {"pairs": collate_pairs(batch, pad_id, config.shared_prompt)},
        callbacks=[log, EvaluateAndSave(config.eval_steps, evaluate=bool(held_out))],
    )
    trainer.config, trainer.held_out, trainer.pad_id, trainer.run_log = config, held_out, pad_id, log
    trainer._metrics = {"train": defaultdict(list)}
    trainer.best = Best()
    trainer.remove_callback(PrinterCallback)
    return trainer
