"""How long a user waits for an answer that needs no model, and what a training imports before its first step.

    python -m benchmarks.startup

Each command is a fresh process; median of 5, or 3. The goal for `--help` is 0.5 s by the clock, without torch. Below it
the imports of each task's trainer, and of TRL's trainer for the same: the `secret` task's trainer is made of TRL's, the
others are not. The clock and the processor time of all threads; other programs on the machine count in the first alone.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATS, IMPORT_REPEATS = 5, 3
COMMANDS = {
    "--help": ["--help"],
    "--mode train --help": ["--mode", "train", "--help"],
    "--mode visualize --help": ["--mode", "visualize", "--help"],
    "--mode train --print_config": ["--mode", "train", "--print_config"],
}
IMPORTS = {
    "secret: ours": "import model_training.sft, model_training.grpo",
    "secret: TRL": "from trl import SFTTrainer, GRPOTrainer",
    "preference: ours": "import model_training.pair_trainer",
    "preference: TRL": "from trl import RewardTrainer",
    "guardrail: ours": "import model_training.orpo_trainer",
    "guardrail: TRL": "from trl.experimental.orpo import ORPOTrainer",
}
TORCH = "import sys, main; main.main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr)"


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"Python {platform.python_version()}, {platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'command':<30}{'median':>10}{'slowest':>10}{'processor':>11}  torch")
    for name, arguments in COMMANDS.items():
        torch = "imported" if imports_torch(arguments) else "not imported"
        print(f"{name:<30}{times(['main.py', *arguments])}  {torch}")
    print(f"\n{'imports of a training':<30}{'median':>10}{'slowest':>10}{'processor':>11}")
    for name, statement in IMPORTS.items():
        print(f"{name:<30}{times(['-c', statement], IMPORT_REPEATS)}")


def times(arguments: list[str], repeats: int = REPEATS) -> str:
    """Of a Python process: median and slowest by the clock, median of the processor's."""
    runs = [seconds(arguments) for _ in range(repeats)]
    clock, processor = ([run[which] for run in runs] for which in (0, 1))
    return f"{statistics.median(clock):>8.3f} s{max(clock):>8.3f} s{statistics.median(processor):>9.3f} s"


def seconds(arguments: list[str]) -> tuple[float, float]:
    """By the clock and by the processor."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1"}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, processor


def imports_torch(arguments: list[str]) -> bool:
    command = [sys.executable, "-c", TORCH, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr.strip().endswith("True")


if __name__ == "__main__":
    main()
