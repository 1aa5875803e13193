"""SFT warm-up: teach the format by the reference answers, so that GRPO has something to choose from.

A base model that never writes the two blocks earns the same reward for every completion of a group, and GRPO learns
nothing from equals. A few hundred steps of cross-entropy on the answer's tokens alone,

    loss = - sum over answer tokens log p(token | what stands before) / number of answer tokens,

give it the format; the prompt's tokens carry no loss. An answer is `format_response(visible, hidden)` and the token
that ends the turn, behind exactly the prompt that GRPO and sampling use (`models.encode_prompt`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from model_training.checkpoints import loop_state, restore_loop_state, save_checkpoint, save_weights
from model_training.config import TrainConfig
from model_training.logs import RunLog
from model_training.memory_advice import Settings, shape_of
from model_training.order import Stream
from model_training.stage import common_options, in_bfloat16
from utils.extraction import format_response

Record = dict[str, Any]


def answer_example(tokenizer: Any, prompt: list[int], record: Record, end: int) -> dict[str, list[int]]:
    """One conversation as `input_ids` and `labels`: no loss (-100) on the prompt; `end` is the id that ends a turn."""
    text = format_response(record["visible"], record["hidden"])
    answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


class WarmupTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with our data order and our checkpoints."""

    stream_seed: int
    memory_settings: Callable[[bool], Settings]
    resumed_from: Path | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return Stream(len(self.train_dataset), self.stream_seed, rounds=self.args.max_steps, prompts_per_round=batch)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.resumed_from is not None:
            self._total_train_tokens = restore_loop_state(self, self.resumed_from)["num_tokens"]
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        save_checkpoint(self, loop_state(self) | {"num_tokens": self._total_train_tokens})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_weights(self.model, output_dir or self.args.output_dir, state_dict)


def trainer_options(config: TrainConfig, folder: Path, steps: int, cuda: bool) -> dict[str, Any]:
    """What both trainers of the task are told alike."""
    return common_options(config, folder, steps, config.save_steps, cuda, config.gradient_checkpointing) | {
        "optim": config.optim,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(config.warmup_ratio * steps),
        "bf16": in_bfloat16(config.dtype, cuda),
    }


def make_warmup_trainer(
    model: Any, tokenizer: Any, examples: list[dict[str, list[int]]], config: TrainConfig, folder: Path, log: RunLog
) -> WarmupTrainer:
    """The warm-up's trainer on examples of `answer_example`."""
    cuda = model.device.type == "cuda"
    options = trainer_options(config, folder, config.sft_steps, cuda)
    args = SFTConfig(
        **options,
        learning_rate=config.sft_learning_rate,
        per_device_train_batch_size=config.sft_batch_size,
        max_length=None,
        shuffle_dataset=False,
    )
    trainer = WarmupTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[log],
    )
    trainer.stream_seed = config.seed
    trainer.memory_settings = lambda sampling: Settings(
        batch=("--sft_batch_size", config.sft_batch_size),
        accumulation=None,
        checkpointing=("--gradient_checkpointing", config.gradient_checkpointing),
        length=("--max_seq_length", config.max_seq_length),
        tokens=max(len(example["input_ids"]) for example in examples),
        shape=shape_of(model),
        on_gpu=cuda,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
