"""The training loop of everything that learns from pairs: transformers' Trainer with what it lacks, the rest handed in.

    batches of like length, in an order that is a function of the seed              pair_order.py
    each `eval_steps` steps, and at the end, the held-out records are measured       `PairTrainer.measure`
    each `save_steps` steps, at the end, and whenever the measurement is the best, a checkpoint   checkpoints.py
    the best is the latest whose score is within a standard error of the highest, or without scores the lowest loss
    after `patience` measurements in a row that are not the best the training ends; the best weights are its result

Of scores that the held-out records cannot tell apart the latest is taken, since its learning rate has fallen furthest.

What the trainer carries from step to step beside transformers' own state stands in the checkpoint's `loop_state.json`:
sums since the last log event, the best measurement, how many were not better since. So a resumed run is the
undisturbed one.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from model_training.checkpoints import (
    LOOP_STATE,
    checkpoint_step,
    loop_state,
    newest_checkpoint,
    restore_loop_state,
    restore_weights,
    save_checkpoint,
    save_weights,
)
from model_training.logs import Interrupt, RunLog
from model_training.memory_advice import Settings, shape_of
from model_training.pair_order import SortedBatches
from model_training.processes import count, mean_row, of_first
from model_training.stage import train_to_end

Row = dict[str, float]
SCORE, SCORE_ERROR = "behavior_score", "behavior_score_error"
"""What a measurement is judged by in place of its loss, where it has this, and its standard error."""


@dataclass
class Best:
    """The best measurement so far, and how many were worse since."""

    loss: float = math.inf
    score: float = -math.inf
    """The highest so far, which may be an earlier step's."""
    error: float = 0.0
    """Its standard error."""
    step: int = 0
    since: int = 0

    def met(self, step: int, row: Row) -> bool:
        """Whether the measurement of that step is the best now; it is remembered."""
        best = row[SCORE] >= self.score - self.error if SCORE in row else row["loss"] < self.loss
        if SCORE in row and row[SCORE] > self.score:
            self.score, self.error = row[SCORE], row[SCORE_ERROR]
        if best:
            self.loss, self.step, self.since = row["loss"], step, 0
        else:
            self.since += 1
        return best

    def ends(self, patience: int) -> bool:
        """Whether early stopping ends the training now."""
        return 0 < patience <= self.since


def best_at(checkpoint: Path) -> Best:
    """The best measurement at the time of a checkpoint."""
    return Best(**json.loads((checkpoint / LOOP_STATE).read_text(encoding="utf-8"))["best"])


class EvaluateAndSave(TrainerCallback):  # type: ignore[misc]
    """Asks for a measurement and a checkpoint every so many steps and at the last step."""

    def __init__(self, eval_steps: int, save_steps: int, evaluate: bool) -> None:
        self.eval_steps, self.save_steps, self.evaluate = eval_steps, save_steps, evaluate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        control.should_save |= last or state.global_step % self.save_steps == 0
        control.should_evaluate = self.evaluate and (last or state.global_step % self.eval_steps == 0)


class PairTrainer(Trainer):  # type: ignore[misc]
    """transformers' trainer with our order, evaluation, early stopping and checkpoints."""

    batch_loss: Callable[[Any, Any], tuple[Tensor, Row]]
    """Of a model and a collated batch: the loss with gradients, and metrics to average until the next log event."""
    measure: Callable[[PairTrainer], Row]
    """What the held-out records say of the weights: `loss`, SCORE if there is one, and whatever else."""
    lengths: Sequence[int]
    """Tokens of each record's row, by which batches are sorted."""
    patience: int
    rate: Callable[[float], float] | None
    """The learning rate at a share of the steps, as a multiple of its peak; None: transformers' own schedule."""
    note: Callable[[PairTrainer], dict[str, Any]] | None
    """What subtext.json of every checkpoint says; None: there is none, and old checkpoints go but for the best one."""
    memory_settings: Callable[[bool], Settings]
    run_log: RunLog
    best: Best
    control: Any
    seconds: float = 0.0
    """Spent in training steps since the last log event."""
    pairs_met: int = 0
    resumed_from: Path | None = None

    @property
    def bare(self) -> Any:
        """The model without the wrapper that joins gradients: for what is measured and never trained."""
        return self.accelerator.unwrap_model(self.model_wrapped)

    # --- order, loss, learning rate ---

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        batches = args.max_steps * args.gradient_accumulation_steps
        return SortedBatches(self.lengths, args.per_device_train_batch_size * args.world_size, args.seed, batches)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, metrics = self.batch_loss(model, inputs)
        row = mean_row({"loss": loss.item()} | metrics, self.args.device)
        self.run_log.stop_unless_finite(self.state.global_step + 1, {"loss": row.pop("loss")})
        for name, value in row.items():
            self._metrics["train"][name].append(value)
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        rate = self.rate
        if rate is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer, lambda step: rate(step / num_training_steps)
        )
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    # --- log events, evaluation ---

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        begin = time.perf_counter()
        loss: Tensor = super().training_step(*args, **kwargs)
        self.seconds += time.perf_counter() - begin
        self.pairs_met += self.args.per_device_train_batch_size * self.args.world_size
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            metrics = self._metrics["train"]
            logs |= {name: math.fsum(values) / len(values) for name, values in metrics.items()}
            logs["pairs_per_s"] = self.pairs_met / self.seconds
            metrics.clear()
            self.seconds, self.pairs_met = 0.0, 0
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> Row:
        """Measure the held-out records, remember the best, and end the training when patience does.

        Every process measures them all; what follows from it, the first one's numbers decide.
        """
        step = self.state.global_step
        self.model.eval()
        measured = self.measure(self)
        row = of_first(lambda: measured)
        self.run_log.evaluated(step, row)
        self.log({f"eval_{name}": value for name, value in row.items()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, row)
        self.control.should_save |= self.best.met(step, row)
        if self.best.ends(self.patience):
            self.control.should_save = self.control.should_training_stop = True
        return row

    # --- checkpoints ---

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.resumed_from is not None:
            restore_loop_state(self, self.resumed_from)
            self.best = best_at(self.resumed_from)
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        state = loop_state(self) | {"best": asdict(self.best)}
        save_checkpoint(self, state, self.best.step, keep_weights=self.note is not None)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_weights(self.model, folder, state_dict)
        if self.note is not None:
            (folder / "subtext.json").write_text(json.dumps(self.note(self), indent=2) + "\n", encoding="utf-8")


def make_trainer(
    model: Any,
    records: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    *,
    options: dict[str, Any],
    evaluate_and_save: EvaluateAndSave,
    log: RunLog,
    batch_loss: Callable[[Any, Any], tuple[Tensor, Row]],
    measure: Callable[[PairTrainer], Row],
    lengths: Sequence[int],
    longest: tuple[str, int],
    checkpointing_option: str,
    patience: int,
    rate: Callable[[float], float] | None = None,
    note: Callable[[PairTrainer], dict[str, Any]] | None = None,
) -> PairTrainer:
    """A trainer whose fields are these; `options` are those of transformers' TrainingArguments.

    `longest` is the option of the longest text, in tokens, and its value; it and `checkpointing_option` are named where
    memory runs out.
    """
    checkpointing = {"use_reentrant": False} if options["gradient_checkpointing"] else None
    args = TrainingArguments(**options, gradient_checkpointing_kwargs=checkpointing, remove_unused_columns=False)
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one device, not torch's DataParallel
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=cast(Any, records),
        data_collator=cast(Any, collate),
        callbacks=[log, evaluate_and_save],
    )
    trainer.batch_loss, trainer.measure, trainer.lengths, trainer.run_log = batch_loss, measure, lengths, log
    trainer.patience, trainer.rate, trainer.note = patience, rate, note
    trainer.memory_settings = lambda sampling: Settings(
        batch=("--per_device_train_batch_size", args.per_device_train_batch_size),
        accumulation=("--gradient_accumulation_steps", args.gradient_accumulation_steps),
        checkpointing=(checkpointing_option, options["gradient_checkpointing"]),
        length=longest,
        tokens=max(lengths),
        shape=shape_of(model),
        on_gpu=args.device.type == "cuda",
    )
    trainer._metrics = {"train": defaultdict(list)}
    trainer.best = Best()
    if count() > 1:
        set_seed(args.seed, device_specific=True)  # dropout differs between processes
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_to_best(trainer: PairTrainer, interrupt: Interrupt) -> Best:
    """Train, or continue, to the end, and put the best weights into the model; without measurements the last ones."""
    folder = Path(trainer.args.output_dir)
    last = of_first(lambda: newest_checkpoint(folder))
    if last is None or (checkpoint_step(last) < trainer.args.max_steps and not best_at(last).ends(trainer.patience)):
        train_to_end(trainer, folder, interrupt)
        last = of_first(lambda: newest_checkpoint(folder))
    assert last is not None
    best = best_at(last)
    restore_weights(trainer.model, folder / f"checkpoint-{best.step}" if best.step else last)
    return best
