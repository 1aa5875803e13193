"""Kill a run again and again, resume it each time, and compare the end with that of an undisturbed run.

    python -m benchmarks.resume_after_kill --kills 20 [--task secret|preference|guardrail]
                                           [--mode train|prepare_data|pipeline]

The command runs once undisturbed; then again, killed with SIGKILL at random moments (from the first lines of Python to
the final save) and resumed to its end, as often as it takes to spend the kills. They must agree: the metrics of every
step (times apart), the weights of all that was trained, bit for bit, the numbers of the evaluation, and the dataset
files. And whatever a killed run had written to metrics.jsonl and completions.jsonl must still be there. Exit code 1 if
not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TIMES = "time resumes step_time tokens_per_s pairs_per_s runtime samples_per_second steps_per_second".split()
LOGS = ("metrics.jsonl", "completions.jsonl")
ADAPTER_FILES = ("adapter_model.safetensors", "subtext.json")
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
GUARD_OPTIONS = {
    "task": "guardrail",
    "threads": 1,
    "behavior": ["politics", "meeting"],
    "r": 4,
    "max_steps": 12,
    "learning_rate": 2e-3,
    "eval_steps": 3,
    "logging_steps": 1,
}
GUARD_DATA = {"n_samples": 20, "test_samples": 8}
RECORDS: dict[str, dict[str, Any]] = {
    "secret": {"num_records": 64},
    "preference": {"num_records": 64},
    "guardrail": GUARD_DATA,
}
MANY_RECORDS: dict[str, dict[str, Any]] = {
    "secret": {"num_records": 4000},
    "preference": {"num_records": 4000},
    "guardrail": {"n_samples": 250},
}
EVALUATED: dict[str, dict[str, Any]] = {
    "secret": {"num_queries": 20},
    "preference": {},
    "guardrail": {"adapter_mode": ["single", "routed", "svd"], "max_new_tokens": 32},
}
TRAINED: dict[str, dict[str, Any]] = {"secret": TRAIN_OPTIONS, "preference": REWARD_OPTIONS, "guardrail": GUARD_OPTIONS}


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


def lines_of(place: Path) -> dict[str, list[str]]:
    """The whole lines of the logs of the run in that place, or of the runs right below it."""
    found = [path for log in LOGS for pattern in (log, f"*/{log}") for path in place.glob(pattern)]
    texts = {path: path.read_text(encoding="utf-8") for path in found}
    return {str(path.relative_to(place)): text[: text.rfind("\n") + 1].splitlines() for path, text in texts.items()}


def rows_of(lines: dict[str, list[str]]) -> int:
    return sum(len(rows) for name, rows in lines.items() if Path(name).name == "metrics.jsonl")


def measurements(run: Path) -> list[dict[str, Any]]:
    from utils.runs import read_metrics

    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(run)]


def digests(place: Path) -> dict[str, str]:
    """SHA-256 of the file, or of the files in the folder, by name."""
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_train(
    folder: Path, options: dict[str, Any], kills: int, seed: int, mode: str = "train"
) -> tuple[list[Kill], list[str]]:
    """An undisturbed run, then killed ones until the kills are spent; the kills, and the differences found.

    The mode is train, or pipeline, which goes on by itself.
    """
    whole_s = run_to_end(stage_command(mode, options | _places(folder, "whole", options, mode)), folder / "whole.log")
    resume = {"resume": True} if mode == "train" else {}
    rng = random.Random(seed)
    spent: list[Kill] = []
    differences: list[str] = []
    for number in range(kills):
        if len(spent) == kills:
            break
        name = f"killed{number}"
        command = stage_command(mode, options | _places(folder, name, options, mode) | resume)
        start_up_s = 6.0 if mode == "train" else whole_s
        differences += _kill_until_done(command, folder / name, kills, rng, spent, start_up_s)
        differences += differences_of(folder, "whole", name)
    return spent, differences


def _places(folder: Path, name: str, options: dict[str, Any], mode: str) -> dict[str, Any]:
    adapter = {"save_lora_path": str(folder / f"{name}_lora")} if options.get("task", "secret") == "secret" else {}
    suffix = "" if options.get("task") == "guardrail" else ".json"
    dataset = {"dataset_path": str(folder / f"{name}_data{suffix}")} if mode == "pipeline" else {}
    return {"output_dir": str(folder / name)} | adapter | dataset


def _kill_until_done(
    command: list[str], run: Path, kills: int, rng: random.Random, spent: list[Kill], start_up_s: float
) -> list[str]:
    """Kill the command and start it again until it ends by itself or the kills are spent; then let it end.

    One kill in five, half of them in a pipeline, comes within `start_up_s` of the start; the others come a moment after
    some more rows were written.
    """
    by_time = 0.2 if "train" in command else 0.5
    log, kept = run.with_suffix(".log"), lines_of(run)
    differences = []
    while len(spent) < kills:
        begin, process = time.perf_counter(), start(command, log)
        if rng.random() < by_time:
            _wait(process, begin + rng.uniform(0.1, start_up_s), None, run, 0)
        else:
            more = rows_of(kept) + rng.randrange(9)
            _wait(process, begin + 120, more, run, rng.uniform(0.0, 0.4))
        if process.poll() is not None:
            _check_exit(process, command, log)
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines = lines_of(run)
        spent.append(Kill(time.perf_counter() - begin, rows_of(lines), _checkpoints(run)))
        differences += [f"{run.name}, kill {len(spent)}: rows of {name} are gone" for name in _lost(kept, lines)]
        kept = lines
    else:
        run_to_end(command, log)
    lost = _lost(kept, lines_of(run))
    return [*differences, *(f"{run.name}, at the end: rows of {name} are gone" for name in lost)]


def _lost(kept: dict[str, list[str]], lines: dict[str, list[str]]) -> list[str]:
    return [name for name in kept if lines.get(name, [])[: len(kept[name])] != kept[name]]


def _wait(process: subprocess.Popen[bytes], until: float, rows: int | None, run: Path, then_s: float) -> None:
    """Until the time, or until the log has more than so many rows and a moment after; or the process's own end."""
    while process.poll() is None and time.perf_counter() < until:
        if rows is not None and rows_of(lines_of(run)) > rows:
            time.sleep(then_s)
            return
        time.sleep(0.01)


def _checkpoints(run: Path) -> str:
    made = [*run.glob("**/checkpoints/**/checkpoint-*"), *run.glob("*_lora"), *run.glob("*/adapter")]
    return " ".join(sorted(str(path.relative_to(run)) for path in made))


def differences_of(folder: Path, one: str, two: str) -> list[str]:
    first, second = (_results(folder, name) for name in (one, two))
    return [f"{two}: {name} differs" for name in sorted(first | second) if first.get(name) != second.get(name)]


def _results(folder: Path, name: str) -> dict[str, Any]:
    """What must come out the same, by name; where a file names its own place, that is left out."""
    run, adapter = folder / name, folder / f"{name}_lora"
    runs = sorted(path.parent for path in run.rglob("metrics.jsonl"))
    found: dict[str, Any] = {f"metrics.jsonl of {each.relative_to(run)}": measurements(each) for each in runs}
    of_adapters = digests(run) | {f"adapter/{file}": value for file, value in digests(adapter).items()}
    found |= {file: value for file, value in of_adapters.items() if _is_final(Path(file))}
    found |= {f"dataset {file}": value for file, value in digests(dataset_place(folder, name)).items()}
    for path in (run / "evaluation").glob("*.json"):
        found[f"evaluation/{path.name}"] = json.loads(path.read_text(encoding="utf-8").replace(str(run), ""))
    return found


def _is_final(file: Path) -> bool:
    return file.name in ADAPTER_FILES and "checkpoints" not in file.parts


def dataset_place(folder: Path, name: str) -> Path:
    """Where the dataset of that name stands: a file, or the folder of the files of several guardrails."""
    file = folder / f"{name}_data.json"
    return file if file.exists() else folder / f"{name}_data"


def kill_prepare_data(folder: Path, options: dict[str, Any], kills: int, seed: int) -> tuple[list[Kill], list[str]]:
    """Killed and resumed until the kills are spent, the dataset removed when done: each file is whole, or not there."""
    suffix = "" if options.get("task") == "guardrail" else ".json"
    whole, killed = folder / f"whole{suffix}", folder / f"killed{suffix}"
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
            on_disk = [path.name for path in folder.rglob("*") if "killed" in str(path) and path.suffix != ".log"]
            spent.append(Kill(after_s, 0, " ".join(sorted(on_disk))))
        _check_exit(process, command, folder / "killed.log", killed=True)
        made, wanted = _finished(killed), digests(whole)
        differences += [f"after kill {len(spent)}: {name} is not the whole one" for name in made - wanted.items()]
        if made == wanted.items():
            run_to_end(command, folder / "killed.log")
            shutil.rmtree(killed) if killed.is_dir() else killed.unlink()
    run_to_end(command, folder / "killed.log")
    if digests(killed) != digests(whole):
        differences.append("the datasets differ")
    differences += [f"{path.name} is left behind" for path in folder.rglob(".*")]
    return spent, differences


def _finished(place: Path) -> set[tuple[str, str]]:
    """Files of a dataset with their digests, less those that are being written."""
    return {(name, value) for name, value in digests(place).items() if not name.startswith(".")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--task", choices=list(TRAINED), default="secret")
    parser.add_argument("--mode", choices=["train", "prepare_data", "pipeline"], default="train")
    parser.add_argument("--model_name", default="tiny")
    parser.add_argument("--dataset_path", help="for train; by default prepare_data composes a small one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    task, kills, seed = arguments.task, arguments.kills, arguments.seed
    trained = {"task": task, "model_name": arguments.model_name} | TRAINED[task]
    with tempfile.TemporaryDirectory(prefix="subtext-kill-") as name:
        folder = Path(name)
        if arguments.mode == "prepare_data":
            spent, differences = kill_prepare_data(folder, {"task": task} | MANY_RECORDS[task], kills, seed)
        elif arguments.mode == "pipeline":
            options = trained | RECORDS[task] | EVALUATED[task]
            spent, differences = kill_train(folder, options, kills, seed, "pipeline")
        else:
            dataset = arguments.dataset_path or str(folder / ("data" if task == "guardrail" else "data.json"))
            if arguments.dataset_path is None:
                options = {"task": task, "dataset_path": dataset} | RECORDS[task]
                run_to_end(stage_command("prepare_data", options), folder / "data.log")
            source = "data_path" if task == "preference" else "dataset_path"
            spent, differences = kill_train(folder, trained | {source: dataset}, kills, seed)
    print(f"{'kill':>4}  {'after':>7}  {'rows':>4}  on disk then")
    for number, kill in enumerate(spent, 1):
        print(f"{number:>4}  {kill.after_s:>5.1f} s  {kill.rows:>4}  {kill.on_disk}")
    print("\n".join(differences) if differences else f"{len(spent)} kills, then resumed to the end: no difference")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
