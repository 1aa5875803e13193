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

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_training.config import TrainConfig
from model_training.option_values import check_ranges
from model_training.options import resolve_model_name
from utils.errors import UserError

if TYPE_CHECKING:
    from model_training.grpo import Rewards
    from model_training.logs import Interrupt

Record = dict[str, Any]


def train(config: TrainConfig) -> None:
    """Run the stage; see the module's docstring for its order."""
    from model_training import models

    if config.multi_gpu and "LOCAL_RANK" not in os.environ:
        relaunch_on_all_gpus()
    _set_environment(Path(config.output_dir), config.report_to)
    name = resolve_model_name(config.model_name)
    config = replace(config, model_name=name)
    rewards = check_options(config)
    models.set_threads(config.threads)
    writer = is_writer()
    if writer:
        models.check_adapter_target(config.save_lora_path, replace=config.overwrite or config.resume)
    records = _training_records(config)
    tokenizer = models.load_tokenizer(name)
    models.check_lengths(name, config.max_seq_length)
    prompts, examples = fitting(tokenizer, records, config)
    finished = writer and _is_finished(config)
    run = _open_run(config) if writer else Path(config.output_dir)
    with _status(run, writer) as interrupt:
        if finished:
            print(f"Nothing to do: the run in {run} is done, its adapter is in {config.save_lora_path}.")
            return
        model = models.load_model(name)
        model = _warm_up(model, tokenizer, examples, config, run, interrupt, writer)
        if config.max_steps:
            model = _reinforce(model, tokenizer, prompts, rewards, config, run, interrupt, writer)
        if writer:
            models.save_adapter(model, tokenizer, config.save_lora_path, base_name=name, card=_card(config, run))
            print(f"Adapter: {config.save_lora_path}   Run: {run}")


# --- config ---------------------------------------------------------------------------------------------------------


def check_options(config: TrainConfig) -> Rewards:
    """Refuse, before any work, options that cannot work; returns the rewards and their weights.

    A command line has passed `check_ranges` already, a call from Python has not.
    """
    from transformers.training_args import OptimizerNames

    from model_training.rewards import resolve

    check_ranges(config, {})
    if config.optim not in {name.value for name in OptimizerNames}:
        raise UserError(f"--optim {config.optim}: transformers knows no such optimizer; the usual one is adamw_torch")
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        raise UserError(f"--report_to {config.report_to}: the package is missing; pip install {config.report_to}")
    return resolve(config.reward_funcs, config.reward_weights)


def _set_environment(run: Path, tracker: str) -> None:
    """Before the libraries are imported: no telemetry, no fork warnings, a tracker that writes to the run directory."""
    values = {"HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if tracker == "wandb":
        values |= {"WANDB_MODE": "offline", "WANDB_DIR": str(run)}
    if tracker == "tensorboard":
        values |= {"TENSORBOARD_LOGGING_DIR": str(run / "tensorboard")}
    for name, value in values.items():
        os.environ.setdefault(name, value)


def is_writer() -> bool:
    """Whether this process writes the run's files: the only one, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def relaunch_on_all_gpus() -> None:
    """Replace this process by torch's launcher with one process a GPU, each running the same command line."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus < 2:
        raise UserError(f"--multi_gpu: this machine shows {gpus} CUDA devices, at least 2 are needed; leave it out")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


def _open_run(config: TrainConfig) -> Path:
    from utils.runs import MANIFEST, open_run

    resume = config.resume and (Path(config.output_dir) / MANIFEST).is_file()
    if config.resume and not resume:
        print(f"Nothing to resume in {config.output_dir} yet: starting from the beginning.", file=sys.stderr)
    return open_run(
        config.output_dir,
        task="secret",
        mode="train",
        config=asdict(config),
        dataset_path=config.dataset_path,
        overwrite=config.overwrite,
        resume=resume,
    )


def _is_finished(config: TrainConfig) -> bool:
    """Whether the run to resume had already ended, adapter and all."""
    from utils.runs import MANIFEST, read_manifest

    run, adapter = Path(config.output_dir), Path(config.save_lora_path)
    if not config.resume or not (run / MANIFEST).is_file() or not (adapter / "adapter_config.json").is_file():
        return False
    return bool(read_manifest(run)["status"] == "done")


@contextmanager
def _status(run: Path, writer: bool) -> Iterator[Interrupt]:
    """Leave the truth in the manifest, however the run ends; an interrupted one prints the line that resumes it."""
    from model_training.logs import catch_signals
    from utils.runs import finish_run

    try:
        with catch_signals() as interrupt:
            yield interrupt
    except KeyboardInterrupt:
        if writer:
            finish_run(run, "interrupted")
            again = [*sys.argv, *([] if "--resume" in sys.argv else ["--resume"])]
            again = [argument for argument in again if argument != "--overwrite"]
            print(f"Interrupted. Resume with:\n  python {shlex.join(again)}", file=sys.stderr)
        raise
    except BaseException as error:
        if writer:
            finish_run(run, "failed", f"{type(error).__name__}: {error}")
        raise
    if writer:
        finish_run(run, "done")


def _card(config: TrainConfig, run: Path) -> dict[str, Any]:
    """What the model card says: the options that shaped the adapter, data and code, and no path of this machine."""
    from utils.runs import read_manifest

    manifest = read_manifest(run)
    paths = ("output_dir", "dataset_path", "save_lora_path", "model_name")
    options = {name: value for name, value in asdict(config).items() if name not in (*paths, "overwrite", "resume")}
    return {"dataset sha256": manifest["dataset"]["sha256"], "git commit": manifest["git_commit"], **options}


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
        if steps and kept < len(records) and is_writer():
            left = len(records) - kept
            print(f"Left out: {left} of {len(records)} {kind} ({rule}, --max_seq_length).", file=sys.stderr)
    return prompts, examples


# --- SFT, GRPO ------------------------------------------------------------------------------------------------------


def _warm_up(
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    config: TrainConfig,
    run: Path,
    interrupt: Interrupt,
    writer: bool,
) -> Any:
    """The base model with its adapter as the warm-up leaves it; a fresh adapter if there is none."""
    from model_training.logs import RunLog
    from model_training.models import load_adapter, new_adapter, save_adapter
    from model_training.sft import make_warmup_trainer

    warmed_up, folder = run / "warmup_lora", run / "checkpoints" / "sft"
    if config.sft_steps and warmed_up.is_dir():
        return load_adapter(model, warmed_up, trainable=True)
    model = new_adapter(model, config.lora_rank, config.seed)
    if config.sft_steps == 0:
        return model
    log = RunLog(run, "sft", 0, config.sft_steps, config.completions_per_log, interrupt, writer)
    trainer = make_warmup_trainer(model, tokenizer, examples, config, folder, log)
    _run(trainer, folder, interrupt, writer)
    if writer:
        assert config.model_name is not None
        save_adapter(model, tokenizer, warmed_up, base_name=config.model_name, card=_card(config, run))
    trainer.accelerator.wait_for_everyone()
    return model


def _reinforce(
    model: Any,
    tokenizer: Any,
    prompts: list[Record],
    rewards: Rewards,
    config: TrainConfig,
    run: Path,
    interrupt: Interrupt,
    writer: bool,
) -> Any:
    from model_training.grpo import make_grpo_trainer
    from model_training.logs import RunLog

    folder, last = run / "checkpoints", config.sft_steps + config.max_steps
    log = RunLog(run, "grpo", config.sft_steps, last, config.completions_per_log, interrupt, writer)
    trainer = make_grpo_trainer(model, tokenizer, prompts, rewards, config, folder, log)
    _run(trainer, folder, interrupt, writer)
    return trainer.accelerator.unwrap_model(trainer.model)


def _run(trainer: Any, folder: Path, interrupt: Interrupt, writer: bool) -> None:
    """Train from the newest checkpoint in the folder, if there is one, to the end or to the user's interruption."""
    from model_training.checkpoints import newest_checkpoint, remove_partial

    if writer and folder.is_dir():
        remove_partial(folder)
    trainer.accelerator.wait_for_everyone()
    checkpoint = newest_checkpoint(folder)
    trainer.resumed_from = checkpoint
    if checkpoint is not None and writer:
        print(f"Continuing from {checkpoint}.", file=sys.stderr)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if interrupt.asked:
        raise KeyboardInterrupt
