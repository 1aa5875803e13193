"""Checkpoints that are either whole or not there, and that continue a run exactly.

A checkpoint is written to `.partial-N/`, forced to disk, and renamed to `checkpoint-N/`: a reader can meet no half of
one. What a killed process left under the temporary name is removed at the next start. The newest two are kept,
and the best one where a training picks its weights by held-out records; or all are kept, for their weights to be
compared, and only the newest keeps what resuming takes.

Beside the trainer's own state (adapter, optimizer, schedule, random generators) it holds `loop_state.json`: the sums
that the trainer collects between two log events, which it would otherwise forget, so that a resumed run logs the same
numbers. Resuming is bit-exact on a CPU: order.py gives the data order; a checkpoint lies between two optimizer steps,
and each step samples its own completions (one generation batch an optimizer step), so no half-used batch is lost.

    checkpoints/sft/checkpoint-N     warm-up, N = its optimizer steps
    checkpoints/checkpoint-N         GRPO, or pairs, N = its optimizer steps
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_training import processes
from utils.errors import WorkError

PARTIAL = ".partial-"
LOOP_STATE = "loop_state.json"
WEIGHTS = {"adapter_config.json", "adapter_model.safetensors", "subtext.json", "README.md"}
KEEP = 2


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=checkpoint_step)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest one from which a run can be resumed: it has its state, beside its weights."""
    return next((path for path in reversed(list_checkpoints(folder)) if (path / LOOP_STATE).is_file()), None)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half-written or half-replaced in the folder."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path)


def publish_directory(temporary: Path, target: Path) -> None:
    """Force a finished directory to disk and give it its name; a directory that holds the name makes way."""
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            _fsync(path)
    _fsync(temporary)
    old = target.parent / f"{PARTIAL}old-{target.name}"
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    temporary.rename(target)
    _fsync(target.parent)
    if old.exists():
        shutil.rmtree(old)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """A full or read-only disk, by whichever library it is met, is one line that says what was being written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WorkError(f"cannot write {what}: {error}; free the disk, then add --resume") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise WorkError(f"cannot write {what}: the disk is full or read-only; free it, then add --resume") from error


def save_checkpoint(
    trainer: Any, loop_state: dict[str, Any], best_step: int | None = None, keep_weights: bool = False
) -> None:
    """Write the trainer's checkpoint of this step; every process calls it, the first one publishes.

    That of `best_step` is kept beside the newest; with `keep_weights` the weights of all are.
    """
    from transformers import Trainer

    folder, step = Path(trainer.args.output_dir), trainer.state.global_step
    partial, target = folder / f"{PARTIAL}{step}", folder / f"checkpoint-{step}"
    first = trainer.accelerator.is_main_process
    with disk_errors(f"checkpoint {target}"):
        if first and partial.exists():
            shutil.rmtree(partial)
        trainer.accelerator.wait_for_everyone()
        trainer.args.output_dir = str(partial)
        try:
            Trainer._save_checkpoint(trainer, trainer.model, None)
        finally:
            trainer.args.output_dir = str(folder)
        trainer.accelerator.wait_for_everyone()
        if first:
            written = partial / target.name
            (written / LOOP_STATE).write_text(json.dumps(loop_state), encoding="utf-8")
            publish_directory(written, target)
            shutil.rmtree(partial)
            if keep_weights:
                for old in list_checkpoints(folder)[:-1]:
                    _strip(old)
            else:
                for old in list_checkpoints(folder)[:-KEEP]:
                    if checkpoint_step(old) != best_step:
                        shutil.rmtree(old)
        trainer.accelerator.wait_for_everyone()


def _strip(checkpoint: Path) -> None:
    """Leave the weights alone of a checkpoint; its loop state goes first, without which nothing resumes from it."""
    (checkpoint / LOOP_STATE).unlink(missing_ok=True)
    for path in checkpoint.iterdir():
        if path.is_dir():  # DeepSpeed's
            shutil.rmtree(path)
        elif path.name not in WEIGHTS:
            path.unlink()


def restore_weights(model: Any, checkpoint: Path) -> None:
    """Put what was trained, of a checkpoint, into the model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from model_training.sharding import sharded_like, writable

    weights = load_file(checkpoint / "adapter_model.safetensors", device=str(model.device))
    with writable(model):
        unknown = set_peft_model_state_dict(model, sharded_like(model, weights)).unexpected_keys
    assert not unknown, unknown


def save_weights(model: Any, folder: str | Path, weights: dict[str, Any] | None = None) -> None:
    """The trained adapter alone: not the frozen copy `ref` that a KL penalty compares with, and no pickled options.

    `weights` are given where the model does not hold them whole. Embeddings are never resized here; peft would ask the
    hub whether they were."""
    from model_training.sharding import check_whole

    check_whole(model, weights)
    given = {} if weights is None else {"state_dict": weights}
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False, **given)


def restart_noise(trainer: Any, checkpoint: Path) -> None:
    """Seed the random draws (sampling, dropout) of a process that the checkpoint has no generators of.

    With as many processes as wrote it, there is none. With others the order of the records is the same, and so are
    weights and optimizer; the draws are new ones, a function of seed, step and process.
    """
    from accelerate.utils import set_seed

    name = "rng_state.pth" if processes.count() == 1 else f"rng_state_{processes.rank()}.pth"
    if not (checkpoint / name).is_file():
        set_seed(trainer.args.seed + checkpoint_step(checkpoint), device_specific=True)


def loop_state(trainer: Any) -> dict[str, Any]:
    """What the trainer has summed since its last log event (floats survive JSON exactly); asked of every process."""
    return {
        "loss_sum": processes.mean(trainer._tr_loss).item(),
        "last_logged": trainer._globalstep_last_logged,
        "metrics": {key: list(values) for key, values in trainer._metrics["train"].items()},
    }


def restore_loop_state(trainer: Any, checkpoint: Path) -> dict[str, Any]:
    """Undo the trainer's reset at the start of its loop; returns the whole state for what else was kept in it."""
    state: dict[str, Any] = json.loads((checkpoint / LOOP_STATE).read_text(encoding="utf-8"))
    trainer._tr_loss.fill_(state["loss_sum"])
    trainer._globalstep_last_logged = state["last_logged"]
    for key, values in state["metrics"].items():
        trainer._metrics["train"][key] = list(values)
    return state
