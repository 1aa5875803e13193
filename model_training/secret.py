"""Train the `secret` adapter: a warm-up on the reference answers, then GRPO with credit by segment.

    python main.py --mode train --dataset_path secret_conversations.json --output_dir outputs \
        --save_lora_path secret_conversations_lora --sft_steps 150 --max_steps 200

    config -> data -> model -> SFT (sft.py) -> GRPO (grpo.py, credit.py) -> adapter

The run directory holds metrics, sampled completions and checkpoints; `warmup_lora/` in it is the adapter at the end of
the warm-up, to compare GRPO with. Every step is a function of the options, the data and the seed, so `--resume`
continues from whatever a killed run left and ends with the same adapter: from the start if there is no checkpoint, in
the warm-up, between warm-up and GRPO, in GRPO, or with only the adapter left to save.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_training import processes
from model_training.config import JUDGE, TrainConfig
from model_training.option_values import check_ranges
from model_training.options import resolve_model_name
from model_training.stage import (
    card_rows,
    check_tracker,
    is_finished,
    open_stage,
    set_environment,
    stage_status,
    train_to_end,
)
from utils.errors import UserError

if TYPE_CHECKING:
    from model_training.grpo import Rewards
    from model_training.logs import Interrupt

Record = dict[str, Any]


def train(config: TrainConfig) -> None:
    """Run the stage; see the module's docstring for its order."""
    from model_training import adapter_directory, models

    set_environment(Path(config.output_dir), config.report_to)
    processes.start(config.multi_gpu)
    name = resolve_model_name(config.model_name)
    config = settled(replace(config, model_name=name))
    rewards = check_options(config)
    models.set_threads(config.threads)
    processes.of_first(
        lambda: adapter_directory.check_adapter_target(config.save_lora_path, replace=config.overwrite or config.resume)
    )
    records = _training_records(config)
    tokenizer = models.load_tokenizer(name)
    models.check_lengths(name, config.max_seq_length)
    prompts, examples = fitting(tokenizer, records, config)
    if config.dry_run:
        _rehearse(config, tokenizer, prompts, examples, rewards)
        return
    finished = is_finished(config, config.save_lora_path)
    run = open_stage("secret", config, config.dataset_path)
    with stage_status(run) as interrupt:
        if finished:
            print(f"Nothing to do: the run in {run} is done, its adapter is in {config.save_lora_path}.")
            return
        model = _warm_up(tokenizer, examples, config, run, interrupt)
        if config.max_steps:
            model = _reinforce(model, tokenizer, prompts, rewards, config, run, interrupt)
        card = card_rows(config, run)
        adapter_directory.save_adapter(model, tokenizer, config.save_lora_path, base_name=name, card=card)
        print(f"Adapter: {config.save_lora_path}   Run: {run}")


def _rehearse(
    config: TrainConfig,
    tokenizer: Any,
    prompts: list[Record],
    examples: list[dict[str, list[int]]],
    rewards: Rewards,
) -> None:
    """--dry_run: both trainings of the run, on what takes most."""
    from model_training.dry_run import STEPS, longest, quiet_log, rehearse, report, to_full_length
    from model_training.grpo import make_grpo_trainer
    from model_training.models import encode_prompt
    from model_training.sft import make_warmup_trainer
    from model_training.sharding import is_sharded

    short = replace(config, sft_steps=STEPS, max_steps=STEPS, report_to="none")
    model = _with_adapter(config)
    found = []
    if config.sft_steps:
        chosen = longest(examples, lambda example: len(example["input_ids"]), config.sft_batch_size * processes.count())
        with quiet_log() as (folder, log):
            warmup = make_warmup_trainer(model, tokenizer, chosen, short, folder, log)
            found.append((rehearse(warmup, "warm-up"), config.sft_steps, 0))
    if config.max_steps:
        if is_sharded(model):
            model = _with_adapter(config)
        completions = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes.count()
        count = completions // config.num_generations
        kept = longest(prompts, lambda record: len(encode_prompt(tokenizer, record["prompt"])), count)
        with quiet_log() as (folder, log):
            trainer = make_grpo_trainer(model, tokenizer, kept, rewards, short, folder, log)
            to_full_length(trainer, config.max_completion_length)
            found.append((rehearse(trainer, "GRPO"), config.max_steps, 0))
    print(report(found))


# --- config ---------------------------------------------------------------------------------------------------------


def settled(config: TrainConfig) -> TrainConfig:
    """The options with what `auto` stands for; before transformers is imported, which unsloth must precede."""
    from model_training import backends, unsloth_backend, vllm_arguments

    config = vllm_arguments.with_server(config)
    config = backends.settle(
        config, not_unsloth=unsloth_backend.obstacle(config), not_vllm=vllm_arguments.obstacle(config)
    )
    if config.vllm_mode == "server":
        vllm_arguments.check_server(config)
    return config


def check_options(config: TrainConfig) -> Rewards:
    """Refuse, before any work, options that cannot work; returns the rewards and their weights.

    A command line has passed `check_ranges` already, a call from Python has not.
    """
    from transformers.training_args import OptimizerNames

    from model_training.judge_reward import open_bench
    from model_training.rewards import resolve

    check_ranges(config, {})
    if config.optim not in {name.value for name in OptimizerNames}:
        raise UserError(f"--optim {config.optim}: transformers knows no such optimizer; the usual one is adamw_torch")
    check_tracker(config.report_to)
    if config.judge is not None and not any(name.startswith(JUDGE) for name in config.reward_funcs):
        raise UserError(
            f"--judge {config.judge}: no reward asks it; add {JUDGE}secret to --reward_funcs, or leave it out"
        )
    return resolve(config.reward_funcs, config.reward_weights, open_bench(config))


# --- data -----------------------------------------------------------------------------------------------------------


def _training_records(config: TrainConfig) -> list[Record]:
    from dataset.records import load_records, validate_secret

    records = load_records(config.dataset_path, validate_secret, skip_invalid=config.skip_invalid)
    chosen = [record for record in records if record.get("split", "train") == "train"]
    if not chosen:
        raise UserError(f"{config.dataset_path}: none of its {len(records)} records is of the split `train`")
    return chosen


def fitting(
    tokenizer: Any, records: list[Record], config: TrainConfig
) -> tuple[list[Record], list[dict[str, list[int]]]]:
    """The records whose prompt leaves room for a completion, and the warm-up's examples that are short enough."""
    from model_training.models import encode_prompt, end_of_turn_id
    from model_training.sft import answer_example

    longest = config.max_seq_length - config.max_completion_length
    end = end_of_turn_id(tokenizer)
    prompts, examples = [], []
    for record in records:
        prompt = encode_prompt(tokenizer, record["prompt"])
        example = answer_example(tokenizer, prompt, record, end) if config.sft_steps else None
        if len(prompt) <= longest:
            prompts.append(record)
        if example is not None and len(example["input_ids"]) <= config.max_seq_length:
            examples.append(example)
    for kind, steps, kept, rule in (
        ("prompts", config.max_steps, len(prompts), f"prompt of at most {longest} tokens"),
        ("reference answers", config.sft_steps, len(examples), f"prompt and answer of at most {config.max_seq_length}"),
    ):
        if steps and not kept:
            raise UserError(
                f"{config.dataset_path}: none of {len(records)} records has a {rule}; raise --max_seq_length"
            )
        if steps and kept < len(records):
            left = len(records) - kept
            print(f"Left out: {left} of {len(records)} {kind} ({rule}, --max_seq_length).", file=sys.stderr)
    return prompts, examples


# --- SFT, GRPO ------------------------------------------------------------------------------------------------------


def _with_adapter(config: TrainConfig, adapter: Path | None = None) -> Any:
    """The base model with a fresh adapter on it, or with the one of that directory."""
    from model_training import models

    assert config.model_name is not None
    if config.backend == "unsloth":
        from model_training.unsloth_backend import load_with_adapter

        return load_with_adapter(config, adapter)
    base = models.load_model(config.model_name, config.dtype, config.quantization)
    if adapter is None:
        return models.new_adapter(base, config.lora_rank, config.seed)
    return models.load_adapter(base, adapter, trainable=True)


def _warm_up(
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    config: TrainConfig,
    run: Path,
    interrupt: Interrupt,
) -> Any:
    """The base model with its adapter as the warm-up leaves it; a fresh adapter if there is none."""
    warmed_up, folder = run / "warmup_lora", run / "checkpoints" / "sft"
    if config.sft_steps and warmed_up.is_dir():
        return _with_adapter(config, warmed_up)
    model = _with_adapter(config)
    if config.sft_steps == 0:
        return model
    from model_training.adapter_directory import save_adapter
    from model_training.logs import RunLog
    from model_training.sft import make_warmup_trainer
    from model_training.sharding import is_sharded

    log = RunLog(run, "sft", 0, config.sft_steps, config.completions_per_log, interrupt, processes.is_writer())
    trainer = make_warmup_trainer(model, tokenizer, examples, config, folder, log)
    train_to_end(trainer, folder, interrupt)
    assert config.model_name is not None
    save_adapter(model, tokenizer, warmed_up, base_name=config.model_name, card=card_rows(config, run))
    trainer.accelerator.wait_for_everyone()
    if is_sharded(model):  # GRPO's trainer shards a model that is whole
        return _with_adapter(config, warmed_up)
    return model


def _reinforce(
    model: Any,
    tokenizer: Any,
    prompts: list[Record],
    rewards: Rewards,
    config: TrainConfig,
    run: Path,
    interrupt: Interrupt,
) -> Any:
    from model_training.grpo import make_grpo_trainer
    from model_training.logs import RunLog

    folder, last = run / "checkpoints", config.sft_steps + config.max_steps
    log = RunLog(run, "grpo", config.sft_steps, last, config.completions_per_log, interrupt, processes.is_writer())
    trainer = make_grpo_trainer(model, tokenizer, prompts, rewards, config, folder, log)
    train_to_end(trainer, folder, interrupt)
    return trainer.accelerator.unwrap_model(trainer.model)
