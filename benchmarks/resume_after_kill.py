"""Kill a run again and again, resume it each time, and compare the end with that of an undisturbed run.

    python -m benchmarks.resume_after_kill --kills 20 [--task secret|preference] [--mode train|prepare_data]

The command runs once undisturbed; then again, killed with SIGKILL at random moments (from the first lines of Python to
the final save) and resumed to its end, as often as it takes to spend the kills. They must agree: the metrics of every
step (times apart), the weights of all that was trained, bit for bit (for prepare_data: the dataset file). And
whatever a killed run had written to metrics.jsonl and completions.jsonl must still be there. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TIMES = ("time", "resumes", "step_time", "tokens_per_s", "pairs_per_s")
WEIGHTS = ("{}_lora", "{}/warmup_lora", "{}/reward_model")
TRAIN_OPTIONS = {
    "threads": 1,
    "lora_rank": 8,
    "max_seq_length": 256,
    "max_completion_length": 48,
    "sft_steps": 20,
    "sft_batch_size": 4,
    "sft_learning_rate": 1e-3,
    "max_steps": 20,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "gradient_accumulation_steps": 2,
    "save_steps": 3,
    "logging_steps": 2,
}
REWARD_OPTIONS = {
    "task": "preference",
    "threads": 1,
    "max_steps": 40,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_dataset_size": 10,
    "eval_steps": 4,
    "early_stopping_patience": 4,
    "logging_steps": 1,
}


@dataclass(frozen=True)
class Kill:
    after_s: float
    rows: int
    on_disk: str


def stage_command(mode: str, options: dict[str, Any]) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "main.py", "--mode", mode, *(word for pair in options.items() for word in _flag(*pair))]


def _flag(name: str, value: Any) -> list[str]:
    if value is True or value is False:
        return [f"--{name}", str(value).lower()]
    if isinstance(value, list):
        return [f"--{name}", *(str(item) for item in value)]
    return [f"--{name}", str(value)]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)


def run_to_end(command: list[str], log: Path) -> float:
    """Seconds that the command took; a failure shows the end of its output."""
    begin = time.perf_counter()
    process = start(command, log)
    process.wait()
    _check_exit(process, command, log)
    return time.perf_counter() - begin


def _check_exit(process: subprocess.Popen[bytes], command: list[str], log: Path, killed: bool = False) -> None:
    if process.returncode and not (killed and process.returncode == -signal.SIGKILL):
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}\n{tail}")


def lines_of(run: Path) -> dict[str, list[str]]:
    """The whole lines of the run's logs."""
    files = {name: run / name for name in ("metrics.jsonl", "completions.jsonl")}
    texts = {name: path.read_text(encoding="utf-8") if path.exists() else "" for name, path in files.items()}
    return {name: text[: text.rfind("\n") + 1].splitlines() for name, text in texts.items()}


def measurements(run: Path) -> list[dict[str, Any]]:
    from utils.runs import read_metrics

    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(run)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_train(folder: Path, options: dict[str, Any], kills: int, seed: int) -> tuple[list[Kill], list[str]]:
    """An undisturbed run, then killed ones until the kills are spent; the kills, and the differences found."""
    run_to_end(stage_command("train", options | _places(folder, "whole", options)), folder / "whole.log")
    rng = random.Random(seed)
    spent: list[Kill] = []
    differences: list[str] = []
    for number in range(kills):
        if len(spent) == kills:
            break
        name = f"killed{number}"
        command = stage_command("train", options | _places(folder, name, options) | {"resume": True})
        differences += _kill_until_done(command, folder / name, kills, rng, spent)
        differences += _differences(folder, "whole", name)
    return spent, differences


def _places(folder: Path, name: str, options: dict[str, Any]) -> dict[str, Any]:
    adapter = {} if options.get("task") == "preference" else {"save_lora_path": str(folder / f"{name}_lora")}
    return {"output_dir": str(folder / name)} | adapter


def _kill_until_done(command: list[str], run: Path, kills: int, rng: random.Random, spent: list[Kill]) -> list[str]:
    """Kill the command and start it again until it ends by itself or the kills are spent; then let it end."""
    log, kept = run.with_suffix(".log"), lines_of(run)
    differences = []
    while len(spent) < kills:
        begin, process = time.perf_counter(), start(command, log)
        if rng.random() < 0.2:  # while it starts up, else a moment after it has written some more rows
            _wait(process, begin + rng.uniform(0.1, 6.0), None, run, 0)
        else:
            more = len(kept["metrics.jsonl"]) + rng.randrange(9)
            _wait(process, begin + 120, more, run, rng.uniform(0.0, 0.4))
        if process.poll() is not None:
            _check_exit(process, command, log)
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines = lines_of(run)
        spent.append(Kill(time.perf_counter() - begin, len(lines["metrics.jsonl"]), _checkpoints(run)))
        differences += [
            f"{run.name}, kill {len(spent)}: rows of {name} are gone"
            for name in kept
            if lines[name][: len(kept[name])] != kept[name]
        ]
        kept = lines
    else:
        run_to_end(command, log)
    lines = lines_of(run)
    lost = [name for name in kept if lines[name][: len(kept[name])] != kept[name]]
    return [*differences, *(f"{run.name}, at the end: rows of {name} are gone" for name in lost)]


def _wait(process: subprocess.Popen[bytes], until: float, rows: int | None, run: Path, then_s: float) -> None:
    """Until the time, or until the log has more than so many rows and a moment after; or the process's own end."""
    while process.poll() is None and time.perf_counter() < until:
        if rows is not None and len(lines_of(run)["metrics.jsonl"]) > rows:
            time.sleep(then_s)
            return
        time.sleep(0.01)


def _checkpoints(run: Path) -> str:
    names = [f"{path.parent.name}/{path.name}" for path in run.glob("checkpoints/**/checkpoint-*")]
    return " ".join(sorted(names)) + (" warmup_lora" if (run / "warmup_lora").exists() else "")


def _differences(folder: Path, one: str, two: str) -> list[str]:
    found = [] if measurements(folder / one) == measurements(folder / two) else [f"{two}: metrics differ"]
    for path in WEIGHTS:
        first, second = (folder / path.format(name) / "adapter_model.safetensors" for name in (one, two))
        if first.exists() and digest(first) != digest(second):
            found.append(f"{two}: the weights of {path.format(two)} differ")
    return found


def kill_prepare_data(folder: Path, options: dict[str, Any], kills: int, seed: int) -> tuple[list[Kill], list[str]]:
    """Killed and resumed until the kills are spent, the file removed when it is done: always no file or the whole."""
    whole, killed = folder / "whole.json", folder / "killed.json"
    whole_s = run_to_end(stage_command("prepare_data", options | {"dataset_path": str(whole)}), folder / "whole.log")
    command = stage_command("prepare_data", options | {"dataset_path": str(killed), "resume": True})
    rng = random.Random(seed)
    spent: list[Kill] = []
    differences: list[str] = []
    while len(spent) < kills:
        after_s = rng.uniform(0.1, 1.0) * whole_s
        process = start(command, folder / "killed.log")
        try:
            process.wait(timeout=after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            spent.append(Kill(after_s, 0, " ".join(sorted(path.name for path in folder.glob("*killed.json*")))))
        _check_exit(process, command, folder / "killed.log", killed=True)
        if killed.exists():
            if digest(killed) != digest(whole):
                differences.append(f"after kill {len(spent)} there is a dataset file that is not the whole one")
            run_to_end(command, folder / "killed.log")
            killed.unlink()
    run_to_end(command, folder / "killed.log")
    if digest(killed) != digest(whole):
        differences.append("the dataset files differ")
    differences += [f"{path.name} is left behind" for path in folder.glob(".killed.json.*")]
    return spent, differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--task", choices=["secret", "preference"], default="secret")
    parser.add_argument("--mode", choices=["train", "prepare_data"], default="train")
    parser.add_argument("--model_name", default="tiny")
    parser.add_argument("--dataset_path", help="for train; by default prepare_data composes 64 records")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    with tempfile.TemporaryDirectory(prefix="subtext-kill-") as name:
        folder, dataset = Path(name), arguments.dataset_path
        if arguments.mode == "prepare_data":
            options = {"task": arguments.task, "num_records": 4000}
            kills, differences = kill_prepare_data(folder, options, arguments.kills, arguments.seed)
        else:
            if dataset is None:
                dataset = str(folder / "data.json")
                options = {"task": arguments.task, "dataset_path": dataset, "num_records": 64}
                run_to_end(stage_command("prepare_data", options), folder / "data.log")
            trained = REWARD_OPTIONS if arguments.task == "preference" else TRAIN_OPTIONS
            source = "data_path" if arguments.task == "preference" else "dataset_path"
            options = trained | {"model_name": arguments.model_name, source: dataset}
            kills, differences = kill_train(folder, options, arguments.kills, arguments.seed)
    print(f"{'kill':>4}  {'after':>7}  {'rows':>4}  on disk then")
    for number, kill in enumerate(kills, 1):
        print(f"{number:>4}  {kill.after_s:>5.1f} s  {kill.rows:>4}  {kill.on_disk}")
    print("\n".join(differences) if differences else f"{len(kills)} kills, then resumed to the end: no difference")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
