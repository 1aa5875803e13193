"""What every training stage does alike: environment, run directory, status, trainer options, resuming, interruption."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_training import processes
from model_training.config import TrainConfig
from model_training.guardrail_config import TrainGuardrailConfig
from model_training.preference_config import TrainPreferenceConfig
from utils.api.options import RequestOptions
from utils.errors import UserError, WorkError

if TYPE_CHECKING:
    from model_training.logs import Interrupt

StageConfig = TrainConfig | TrainPreferenceConfig | TrainGuardrailConfig
PLACES = (
    *("output_dir", "dataset_path", "data_path", "save_lora_path", "model_name", "vllm_server_base_url"),
    *("overwrite", "resume", "dry_run"),
)
"""Options that a model card leaves out: where things lay, and how the command was started. How a judge was reached, its
key among that, is left out, too."""


# --- before the run -------------------------------------------------------------------------------------------------


OURS: set[str] = set()
"""Variables that were set here, and not by the user."""


def set_environment(run: Path, tracker: str, given: Mapping[str, str] | None = None) -> None:
    """Before the libraries are imported: no telemetry, no fork warnings, a tracker that writes to the run directory.

    The user's own variables stay as they are, but for those `given` by options. A process may train several runs, and
    calls this before each.
    """
    os.environ.update(given or {})
    values = {"HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if tracker == "wandb":
        values |= {"WANDB_MODE": "offline", "WANDB_DIR": str(run)}
    if tracker == "tensorboard":
        values |= {"TENSORBOARD_LOGGING_DIR": str(run / "tensorboard")}
    for name, value in values.items():
        if name not in os.environ or name in OURS:
            OURS.add(name)
            os.environ[name] = value


def check_tracker(tracker: str) -> None:
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UserError(f"--report_to {tracker}: the package is missing; pip install {tracker}")


# --- the run directory ----------------------------------------------------------------------------------------------


def open_stage(
    task: str,
    config: StageConfig,
    dataset_path: str | None,
    dataset_sha256: str | None = None,
) -> Path:
    """Claim the run directory: the run in it is continued if `--resume` finds one. For the dataset see `open_run`.

    Of several processes the first claims it for all.
    """
    if config.resume and processes.is_zero3():
        raise UserError("--resume: not under DeepSpeed's ZeRO-3, untried there; configs/accelerate/fsdp2.yaml resumes")
    return processes.of_first(lambda: _open(task, config, dataset_path, dataset_sha256))


def _open(task: str, config: StageConfig, dataset_path: str | None, dataset_sha256: str | None) -> Path:
    from utils.runs import MANIFEST, open_run

    resume = config.resume and (Path(config.output_dir) / MANIFEST).is_file()
    if config.resume and not resume:
        print(f"Nothing to resume in {config.output_dir} yet: starting from the beginning.", file=sys.stderr)
    return open_run(
        config.output_dir,
        task=task,
        mode="train",
        config=asdict(config),
        dataset_path=dataset_path,
        dataset_sha256=dataset_sha256,
        overwrite=config.overwrite,
        resume=resume,
        processes=processes.count(),
    )


def digest(parts: list[list[dict[str, Any]]]) -> str:
    """sha256 of the records: what a resumed run must meet again, wherever they are read from."""
    found = hashlib.sha256()
    for records in parts:
        for record in records:
            found.update(
                json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
            )
        found.update(b"\n")
    return found.hexdigest()


def is_finished(config: StageConfig, adapter: str | Path) -> bool:
    """Whether the run to resume had already ended, adapter and all; to be asked before it is claimed again."""
    return processes.of_first(lambda: _is_finished(config, adapter))


def _is_finished(config: StageConfig, adapter: str | Path) -> bool:
    from utils.runs import MANIFEST, read_manifest

    run = Path(config.output_dir)
    if not config.resume or not (run / MANIFEST).is_file() or not (Path(adapter) / "adapter_config.json").is_file():
        return False
    return bool(read_manifest(run)["status"] == "done")


@contextmanager
def stage_status(run: Path) -> Iterator[Interrupt]:
    """Leave the truth in the manifest, however the run ends; an interrupted one prints the line that resumes it."""
    from model_training.logs import catch_signals
    from model_training.memory import is_out_of_memory
    from model_training.memory_advice import UNMEASURED
    from utils.runs import finish_run, read_manifest

    try:
        with catch_signals(lambda: str(read_manifest(run)["status"]) == "running") as interrupt:
            yield interrupt
    except KeyboardInterrupt:
        if processes.is_writer():
            finish_run(run, "interrupted")
            launcher = processes.count() > 1 and not read_manifest(run)["config"]["multi_gpu"]
            how = "Resume with the same launcher and" if launcher else "Resume with"
            print(f"Interrupted. {how}:\n  {resume_command()}", file=sys.stderr)
        raise
    except BaseException as error:
        _state_failure(run, error)
        if is_out_of_memory(error):
            raise WorkError(UNMEASURED) from error
        raise
    if processes.is_writer():
        finish_run(run, "done")


def _state_failure(run: Path, error: BaseException) -> None:
    """State in the manifest why the run failed: of several processes any may know it, and one is enough.

    A process that only lost another one ends without a word: why that one ended it has said itself, or else the
    launcher does.
    """
    from utils.runs import finish_run, read_manifest

    is_running = read_manifest(run)["status"] == "running"
    lost = processes.is_broken_link(error)
    if lost:
        error = WorkError("another process ended without a word, for want of memory perhaps")
    if is_running or (processes.is_writer() and not lost):
        of_process = "" if processes.is_writer() else f"process {processes.rank()}: "
        finish_run(run, "failed", f"{of_process}{type(error).__name__}: {error}")
    if lost:
        raise SystemExit(1) from None


def resume_command() -> str:
    """The command line of this process, as it would go on with what it left."""
    again = [*sys.argv, *([] if "--resume" in sys.argv else ["--resume"])]
    return f"python {shlex.join(argument for argument in _without_key(again) if argument != '--overwrite')}"


def _without_key(arguments: list[str]) -> list[str]:
    """A command line without --api_key and its value."""
    kept: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before != "--api_key" and argument != "--api_key" and not argument.startswith("--api_key="):
            kept.append(argument)
    return kept


def card_rows(config: StageConfig, run: Path, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the model card says: the options that shaped the adapter, data and code, and no path of this machine."""
    from utils.runs import read_manifest

    manifest = read_manifest(run)
    hidden = {*PLACES, *leave_out, *(option.name for option in fields(RequestOptions))}
    options = {name: value for name, value in asdict(config).items() if name not in hidden}
    return {"dataset sha256": manifest["dataset"]["sha256"], "git commit": manifest["git_commit"], **options}


# --- trainers -------------------------------------------------------------------------------------------------------


def common_options(
    config: StageConfig, folder: Path, steps: int, save_steps: int, cuda: bool, gradient_checkpointing: bool
) -> dict[str, Any]:
    """What the trainers of all tasks are told alike."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "seed": config.seed,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "use_cpu": not cuda,
        "gradient_checkpointing": gradient_checkpointing,
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,
        "report_to": [] if config.report_to == "none" else [config.report_to],
        "disable_tqdm": True,
    }


def in_bfloat16(dtype: str, cuda: bool) -> bool:
    """Whether a trainer computes under autocast to bfloat16: with the base in it, by itself with CUDA."""
    return cuda if dtype == "auto" else dtype == "bfloat16"


def train_to_end(trainer: Any, folder: Path, interrupt: Interrupt) -> None:
    """Train from the newest checkpoint in the folder, if there is one, to the end or to the user's interruption."""
    from model_training.checkpoints import newest_checkpoint, remove_partial, restart_noise
    from model_training.memory import Meter, memory_errors

    def newest() -> Path | None:
        if folder.is_dir():
            remove_partial(folder)
        return newest_checkpoint(folder)

    checkpoint = processes.of_first(newest)
    trainer.resumed_from = checkpoint
    if checkpoint is not None:
        print(f"Continuing from {checkpoint}.", file=sys.stderr)
        restart_noise(trainer, checkpoint)
    meter = Meter(trainer.args.device)
    trainer.add_callback(meter)
    with memory_errors(trainer, meter):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if processes.any_of(interrupt.asked, trainer.args.device):
        raise KeyboardInterrupt
