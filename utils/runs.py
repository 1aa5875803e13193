"""A run directory: everything a run wrote, and what it would take to repeat it.

    manifest.json        task, mode, config, seed, versions, git commit, dataset hash, hardware, times, status
    metrics.jsonl        one row a log event: step, time, split, resumes, then metric keys as the trainer names them
    completions.jsonl    sampled completions with each reward

    run = open_run("outputs", task="secret", mode="train", config=asdict(config), dataset_path="data.json")
    log_metrics(run, {"step": 1, "split": "sft", "loss": 2.31})
    finish_run(run, "done")

Two runs never mix: a directory that is not empty is refused unless the run in it is resumed or overwritten, and so is
one whose process still lives. Only other runs below it do not count: `outputs` may hold `outputs/demo`, and the
overwriting of the one never touches the other. A run killed between checkpoints repeats some steps after `--resume`;
nothing is deleted: each row carries `resumes`, how often the run had been resumed, and readers keep the newest rows of
each step.
Keys and tokens never reach the manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from utils import machine
from utils.api.options import RequestOptions
from utils.errors import UserError
from utils.files import (
    LEFTOVER,
    NON_FINITE,
    append_jsonl,
    disk_error,
    read_jsonl,
    sha256_file,
    write_json_atomic,
)

MANIFEST, METRICS, COMPLETIONS = "manifest.json", "metrics.jsonl", "completions.jsonl"

RUN_FILES = (
    METRICS,
    "metrics.csv",
    COMPLETIONS,
    "checkpoints",
    "evaluation",
    "warmup_lora",
    "reward_model",
    "adapter",
    "loss_curve.png",
    "reward_components.png",
    "model_comparison.png",
    "reward_distributions.png",
    "spread_by_subset.png",
    "risk_curve.png",
    "reliability.png",
    "figure.png",
    "learning_curves.png",
    "detection_efficiency.png",
    "recall_vs_fpr.png",
    "confusion_matrix.png",
    "guard_models.png",
    "variations.png",
    "training_report.html",
    "tensorboard",
    "wandb",
)
"""What a run writes beside its manifest: `--overwrite` removes these and replaces the manifest last, so that a removal
that was killed can be repeated."""

PIPELINE_FILE = "pipeline.json"
"""Written by the pipeline before its first run; it alone leaves a directory empty."""

SECRET_OPTIONS = frozenset(
    {
        "api_key",
        "openai_api_key",
        "anthropic_api_key",
        "together_api_key",
        "judge_api_key",
        "teacher_api_key",
        "guard_api_key",
        "wandb_api_key",
        "token",
        "api_token",
        "auth_token",
        "hf_token",
        "hub_token",
    }
)
"""Options that are never stored, by exact name: `max_new_tokens` is none of them."""

FREE_OPTIONS = frozenset(
    {
        "resume",
        "overwrite",
        "output_dir",
        "save_lora_path",
        "dataset_path",
        "data_path",
        "guardrails",
        "report_to",
        "wandb_project",
        "wandb_entity",
        "wandb_run_name",
        "wandb_tags",
        "threads",
        "completions_per_log",
        "vllm_server_base_url",
        "vllm_gpu_memory_utilization",
        "debug",
        "dry_run",
        "gradient_checkpointing",
        "use_gradient_checkpointing",
        "multi_gpu",
        *(option.name for option in fields(RequestOptions) if option.name != "base_url"),
    }
)
"""Options that may change on `--resume`: none alters a training step. A dataset is compared by its hash instead."""

PER_PROCESS = ("per_device_train_batch_size", "sft_batch_size")
"""Options that count the records of one process; on `--resume` with another number of processes those of all count."""

MANIFEST_KEYS = {"task", "mode", "config", "versions", "dataset", "process", "started", "status", "resumes"}


def open_run(
    output_dir: str | Path,
    *,
    task: str,
    mode: str,
    config: dict[str, Any],
    dataset_path: str | Path | None = None,
    dataset_sha256: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    processes: int = 1,
) -> Path:
    """Claim a run directory and write its manifest; every refusal comes before anything is changed.

    `dataset_sha256` is given where the dataset is no single file, whose bytes would be hashed here; `processes` is how
    many train together, of which the one that calls this writes.
    """
    run = Path(output_dir)
    if overwrite and resume:
        raise UserError("--overwrite and --resume exclude each other: start afresh, or continue")
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file, not a directory; choose another --output_dir")
    if resume and not (run / MANIFEST).is_file():
        raise UserError(f"{run} holds no run to resume ({MANIFEST} is missing); leave --resume out to start one")
    dataset = None
    if dataset_path is not None:
        dataset = {"path": str(dataset_path), "sha256": dataset_sha256 or sha256_file(Path(dataset_path))}
    manifest: dict[str, Any] = {
        "task": task,
        "mode": mode,
        "config": _without_secrets(config),
        "seed": config.get("seed"),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
        "dataset": dataset,
        "hardware": machine.hardware(),
        "process": machine.process(),
        "processes": processes,
        "started": _now(),
        "ended": None,
        "status": "running",
        "reason": None,
        "resumes": 0,
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
        with _claimed(run):
            if resume:
                manifest = _continued(run, manifest)
            elif overwrite:
                _remove_run(run)
            else:
                _refuse_unless_empty(run)
            write_json_atomic(run / MANIFEST, manifest)
    except OSError as error:
        raise disk_error(run, error) from error
    return run


def check_unused(output_dir: str | Path) -> None:
    """Refuse, before any work, a directory that `open_run` would refuse since it is not empty."""
    if Path(output_dir).is_dir():
        _refuse_unless_empty(Path(output_dir))


def finish_run(run: Path, status: Literal["done", "failed", "interrupted"], reason: str | None = None) -> None:
    """State in the manifest how the run ended."""
    write_json_atomic(run / MANIFEST, read_manifest(run) | {"status": status, "reason": reason, "ended": _now()})


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run directory; a UserError where there is none that can be read."""
    path = Path(run) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{run} holds no run: {path} is missing; check --output_dir") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; choose another --output_dir") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} holds no JSON object; choose another --output_dir")
    return manifest


def processes_of(manifest: dict[str, Any]) -> int:
    """How many processes trained together; manifests from before there could be several do not say."""
    return int(manifest.get("processes", 1))


def log_metrics(run: Path, row: dict[str, Any]) -> None:
    """Append one log event; `time` and `resumes` are filled in, `step` and `split` are the caller's."""
    head = {"step": row["step"], "time": row.get("time", time.time()), "split": row["split"]}
    append_jsonl(run / METRICS, head | {"resumes": read_manifest(run)["resumes"]} | row)


def log_completion(run: Path, row: dict[str, Any]) -> None:
    """Append one sampled completion; `resumes` is filled in, `step` is the caller's."""
    append_jsonl(run / COMPLETIONS, {"step": row["step"], "resumes": read_manifest(run)["resumes"]} | row)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Metrics and alarms in order of their steps, each (split, step) from the newest resume only, non-finite values as
    floats; empty while nothing was logged."""
    rows = _newest(_rows_of(run, METRICS), ("split", "step"))
    return [{key: value if key in ("split", "alarm") else _number(value) for key, value in row.items()} for row in rows]


def read_completions(run: Path) -> list[dict[str, Any]]:
    """Sampled completions in order of their steps, each step from the newest resume only; empty while there is none."""
    rows = _newest(_rows_of(run, COMPLETIONS), ("step",))
    for row in rows:
        row["rewards"] = {name: _number(value) for name, value in row.get("rewards", {}).items()}
        row["total"] = _number(row.get("total"))
    return rows


# --- what a directory holds -----------------------------------------------------------------------------------------


def _refuse_unless_empty(run: Path) -> None:
    found = _entries(run)
    if MANIFEST in found:
        _refuse_if_alive(run, _own_manifest(run))
    if MANIFEST in found:
        raise UserError(
            f"{run} is not empty (it holds {_some(found)}); continue its run with --resume, start afresh with "
            "--overwrite, or choose another --output_dir"
        )
    if found:
        raise UserError(f"{run} is not empty: it holds {_some(found)} and no run; choose another --output_dir")


def _own_manifest(run: Path) -> dict[str, Any]:
    """The manifest, if a run of this project wrote it: other tools write files of that name, too."""
    manifest = read_manifest(run)
    if not manifest.keys() >= MANIFEST_KEYS:
        raise UserError(
            f"{run} is not empty, and its {MANIFEST} was not written by this project; choose another --output_dir"
        )
    return manifest


def _remove_run(run: Path) -> None:
    found = _entries(run)
    if not found:
        return
    if MANIFEST not in found:
        raise UserError(
            f"{run} is not a run directory: it holds {_some(found)} and no {MANIFEST}; nothing was removed; "
            "choose another --output_dir"
        )
    manifest = _own_manifest(run)
    _refuse_if_alive(run, manifest)
    write_json_atomic(run / MANIFEST, manifest | {"status": "removing"})
    leftovers = [entry.name for entry in run.iterdir() if LEFTOVER.fullmatch(entry.name)]
    for name in [*leftovers, *RUN_FILES]:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    kept = [name for name in found if name not in (*RUN_FILES, MANIFEST, PIPELINE_FILE)]
    if kept:
        print(f"{run}: left in place, since no run wrote it: {_some(kept)}", file=sys.stderr)


def _continued(run: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a resumed run: the new one, with the old one's start and one resume more."""
    old = _own_manifest(run)
    _refuse_if_alive(run, old)
    if old["status"] == "removing":
        raise UserError(f"{run} was being removed by --overwrite; give --overwrite again to start afresh")
    if old["task"] != manifest["task"]:
        raise UserError(f"{run} holds a run of task {old['task']}, not {manifest['task']}; choose another --output_dir")
    changes = _changes(old, manifest)
    if changes:
        raise UserError(
            f"cannot resume {run}: {'; '.join(changes)}; give the run's own values, or start afresh with --overwrite"
        )
    for package, version in manifest["versions"].items():
        before = old["versions"].get(package)
        if before != version:
            print(f"{run}: {package} was {before} and is {version} now; steps may differ slightly", file=sys.stderr)
    return manifest | {"started": old["started"], "resumes": old["resumes"] + 1}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    names = (old["config"].keys() | new["config"].keys()) - FREE_OPTIONS
    changes = []
    for name in sorted(names):
        before, now = (json.loads(json.dumps(side["config"].get(name, "(absent)"))) for side in (old, new))
        if name in PER_PROCESS and processes_of(old) != processes_of(new):
            changes += _other_batch(name, before, processes_of(old), now, processes_of(new))
        elif before != now:
            changes.append(f"--{name} was {before} and is {now} now")
    before, now = ((side["dataset"] or {}).get("sha256") for side in (old, new))
    if before != now:
        paths = [(side["dataset"] or {"path": "no dataset"})["path"] for side in (old, new)]
        changes.append(f"the dataset changed: {paths[0]} had SHA-256 {before}, {paths[1]} has {now}")
    return changes


def _other_batch(name: str, before: int, processes_before: int, now: int, processes: int) -> list[str]:
    """What is wrong with a batch that other processes share now, if anything."""
    whole = before * processes_before
    if now * processes == whole:
        return []
    works = f"{whole // processes} works" if whole % processes == 0 else f"{processes} processes cannot share it"
    return [f"--{name} was {before} x {processes_before} processes and is {now} x {processes} now ({works})"]


def _entries(run: Path) -> list[str]:
    """What counts as content: neither what a killed write left behind nor other runs that lie below."""
    names = sorted(
        entry.name for entry in run.iterdir() if not LEFTOVER.fullmatch(entry.name) and not _holds_other_runs(entry)
    )
    return [] if names == [PIPELINE_FILE] else names


def _holds_other_runs(entry: Path) -> bool:
    """Whether a directory is a run of its own or, as a benchmark's, has runs in it."""
    if entry.name in RUN_FILES or not entry.is_dir():
        return False
    folders = [entry, *(folder for folder in entry.iterdir() if folder.is_dir())]
    return any((folder / name).is_file() for folder in folders for name in (MANIFEST, PIPELINE_FILE))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    if not Path(run).is_dir():
        raise UserError(f"{run} is not a directory; check --output_dir")
    path = Path(run) / name
    return read_jsonl(path) if path.exists() else []


def _newest(rows: list[dict[str, Any]], key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of each key the rows of its highest `resumes`, in order of steps and, within one, as written."""
    newest: dict[tuple[Any, ...], int] = {}
    for row in rows:
        name = tuple(row.get(part) for part in key)
        newest[name] = max(newest.get(name, 0), row.get("resumes", 0))
    kept = [row for row in rows if row.get("resumes", 0) == newest[tuple(row.get(part) for part in key)]]
    return sorted(kept, key=lambda row: row["step"])


def _number(value: Any) -> Any:
    return float(value) if value in NON_FINITE else value


def _without_secrets(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in SECRET_OPTIONS}
    return {name: _without_secrets(value) if isinstance(value, dict) else value for name, value in kept.items()}


# --- who writes a run -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _claimed(run: Path) -> Iterator[None]:
    """Let one process at a time look at a directory and write its manifest. Some network file systems know no locks;
    there the manifest's process is the only guard."""
    descriptor = os.open(run, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_if_alive(run: Path, manifest: dict[str, Any]) -> None:
    """Refuse a run whose process lives. A process number is used again after a while, hence the start time with it."""
    process = manifest["process"]
    if manifest["status"] != "running" or process == machine.process():
        return
    if process["host"] != socket.gethostname():
        print(
            f"{run}: {MANIFEST} says that process {process['pid']} on {process['host']} is writing it; "
            "this machine cannot see whether it still does",
            file=sys.stderr,
        )
        return
    if machine.process_exists(process["pid"]) and machine.process_start(process["pid"]) == process["start"]:
        raise UserError(
            f"{run} is being written by process {process['pid']}; wait for it, stop it, or choose another --output_dir"
        )
