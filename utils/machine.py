"""The machine and the process a run ran on, without importing any heavy library."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def versions() -> dict[str, str | None]:
    """Python and the packages that training rests on; None for one that is not installed."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def version(package: str) -> str | None:
    """Of an installed package; None for one that is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit this code stands at; None outside of a git checkout."""
    return _output(["git", "-C", str(Path(__file__).resolve().parents[1]), "rev-parse", "HEAD"])


def hardware() -> dict[str, Any]:
    """The machine: name, platform, processor, memory, GPUs."""
    gpus = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [] if gpus is None else gpus.splitlines(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _output(command: list[str]) -> str | None:
    """What a command prints; None where it is absent, fails or hangs: a manifest is no reason to stop a run."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def process() -> dict[str, Any]:
    """This process, told apart from a later one of the same number by its start."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "start": process_start(os.getpid())}


def process_exists(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def process_start(pid: int) -> str | None:
    """When a process started, as the boot's identity and clock ticks since; "ended" for one that is dead but not yet
    collected by its parent; None where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else f"{boot}:{fields[19]}"
