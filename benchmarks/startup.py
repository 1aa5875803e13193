"""How long a user waits for an answer that needs no model, and whether torch was imported for it.

    python -m benchmarks.startup

Each command is a fresh process; median of 5. The goal for `--help` is 0.5 s.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
COMMANDS = {
    "--help": ["--help"],
    "--mode train --help": ["--mode", "train", "--help"],
    "--mode visualize --help": ["--mode", "visualize", "--help"],
    "--mode train --print_config": ["--mode", "train", "--print_config"],
}
TORCH = "import sys, main; main.main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr)"


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"Python {platform.python_version()}, {platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'command':<30}{'median':>10}{'slowest':>10}  torch")
    for name, arguments in COMMANDS.items():
        times = [seconds(arguments) for _ in range(REPEATS)]
        torch = "imported" if imports_torch(arguments) else "not imported"
        print(f"{name:<30}{statistics.median(times):>8.3f} s{max(times):>8.3f} s  {torch}")


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def imports_torch(arguments: list[str]) -> bool:
    command = [sys.executable, "-c", TORCH, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr.strip().endswith("True")


if __name__ == "__main__":
    main()
