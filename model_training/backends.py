"""What loads, trains and samples: decided here, once, before any work, from the options and the machine.

    backend    unsloth, or transformers (with TRL and peft)      --backend
    engine     what samples completions: vllm, or transformers   --engine
    dtype      bfloat16 with CUDA, else float32                  --dtype

`settle` puts in what `auto` stands for and says, in one line, which packages that are and why; the run's manifest holds
what was chosen, so that a resumed run cannot choose otherwise. What was asked for and cannot be had is an error that
names the way out. Nothing is decided later: what fails once the work has begun ends it.

unsloth rewrites transformers, peft and TRL when it is imported. So it must be first of them, and an import of it that
fails leaves them half rewritten: it is tried only where nothing speaks against it, and its failure ends the command.
"""

from __future__ import annotations

import atexit
import importlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from model_training import processes
from model_training.options import say
from utils.errors import UserError
from utils.machine import version

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements-gpu.txt"
INSTALL = f"pip install -r {REQUIREMENTS.name} installs what works together"
REWRITTEN = ("transformers", "trl", "peft")
"""What unsloth must be imported before."""
NO_CUDA = "no CUDA device"

Config = TypeVar("Config", bound=Any)


class Obstacle(NamedTuple):
    """Why something cannot be had, and what to do who asked for it."""

    reason: str
    way_out: str


@dataclass(frozen=True)
class Machine:
    """What the decision looks at: versions are of installed packages (None: missing), `imported` of those REWRITTEN."""

    cuda: bool
    versions: Mapping[str, str | None]
    imported: tuple[str, ...] = ()
    processes: int = 1


def this_machine() -> Machine:
    import torch

    return Machine(
        cuda=torch.cuda.is_available(),
        versions={name: version(name) for name in pins()},
        imported=tuple(name for name in REWRITTEN if name in sys.modules),
        processes=processes.count(),
    )


@cache
def pins() -> dict[str, str]:
    """The version of each package that requirements-gpu.txt adds."""
    return dict(re.findall(r"^([\w-]+)==(\S+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE))


# --- the decision ---------------------------------------------------------------------------------------------------


def settle(
    config: Config,
    *,
    not_unsloth: Obstacle | None = None,
    not_vllm: Obstacle | None = None,
    machine: Machine | None = None,
) -> Config:
    """The configuration with what its `auto` options stand for; unsloth and vLLM are imported if they are chosen.

    `not_unsloth` and `not_vllm` say what in the task itself speaks against them.

    Raises:
        UserError: an option asks for what cannot be had.
    """
    machine, options = machine or this_machine(), vars(config)
    if config.quantization != "none":
        check_bitsandbytes(f"--quantization {config.quantization}", machine)
    chosen: dict[str, str] = {}
    whys: dict[str, list[str]] = {}

    def choose(option: str, value: str, why: str) -> None:
        chosen[option] = value
        if options[option] == "auto":
            whys.setdefault(why, []).append(f"{option}: {value}")

    if "backend" in options:
        if config.dtype == "float16":
            raise UserError("--dtype float16 trains nothing: its gradients overflow; use bfloat16 or float32")
        obstacle = _missing(("unsloth", "unsloth_zoo"), machine) or not_unsloth or _too_late(machine)
        choose("backend", *_choice("backend", config.backend, "unsloth", obstacle, machine))
        if chosen["backend"] == "unsloth":
            import_unsloth()
    if "engine" in options:
        obstacle = _missing(("vllm",), machine) or not_vllm or _quantized(config)
        if obstacle is None and config.engine != "transformers":
            obstacle = _broken("vllm", machine)
        choose("engine", *_choice("engine", config.engine, "vllm", obstacle, machine))
    if config.dtype == "auto":
        chosen["dtype"] = "bfloat16" if machine.cuda else "float32"
    if whys:
        say("; ".join(f"{', '.join(of_one)} ({why})" for why, of_one in whys.items()))
    return replace(config, **chosen)


def _choice(option: str, wanted: str, special: str, obstacle: Obstacle | None, machine: Machine) -> tuple[str, str]:
    """The special value or `transformers`, and why; `special` is the name of its package, too."""
    if wanted == special and obstacle is not None:
        raise UserError(f"--{option} {special}: {obstacle.reason}; {obstacle.way_out}")
    if wanted == "transformers" or obstacle is not None:
        return "transformers", "" if obstacle is None else obstacle.reason
    return special, f"{special} {machine.versions[special]} is installed"


def _missing(packages: tuple[str, ...], machine: Machine) -> Obstacle | None:
    if not machine.cuda:
        return Obstacle(NO_CUDA, "leave it out, or run this where torch sees a GPU")
    for package in packages:
        found, pinned = machine.versions[package], pins()[package]
        if found is None:
            return Obstacle(f"{package} is not installed", INSTALL)
        if found.partition("+")[0] != pinned:
            return Obstacle(f"{package} is {found} here, and {pinned} is what works with the rest", INSTALL)
    return None


def _too_late(machine: Machine) -> Obstacle | None:
    if machine.processes > 1:
        return Obstacle("unsloth trains in one process", "start one, or use --backend transformers")
    if machine.imported:
        modules = " and ".join(machine.imported)
        return Obstacle(f"{modules} came before unsloth in this process", "start the training by a command of its own")
    return None


def _quantized(config: Any) -> Obstacle | None:
    if config.quantization == "none":
        return None
    return Obstacle(
        "vLLM serves bases that are not quantized", "leave --quantization out, or use --engine transformers"
    )


def _broken(package: str, machine: Machine) -> Obstacle | None:
    """Whether an installed package can be imported at all."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        importlib.import_module(package)
    except Exception as error:  # whatever a broken installation raises
        return Obstacle(f"{package} {machine.versions[package]} cannot be imported: {_first_line(error)}", INSTALL)
    return None


def import_unsloth() -> None:
    """Import unsloth before what it rewrites; the modules it writes go to a directory that ends with this process."""
    if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
        folder = tempfile.mkdtemp(prefix="unsloth-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["UNSLOTH_COMPILE_LOCATION"] = folder
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    try:
        importlib.import_module("unsloth")
    except Exception as error:  # whatever a broken installation raises; nothing can go on after it
        raise UserError(
            f"unsloth {version('unsloth')} cannot be imported: {_first_line(error)}; {INSTALL}, and --backend "
            "transformers does without it"
        ) from error


def check_bitsandbytes(option: str, machine: Machine | None = None) -> None:
    """Refuse an option that takes bitsandbytes and a GPU where one of them is missing."""
    machine = machine or this_machine()
    if not machine.cuda:
        raise UserError(f"{option} needs a CUDA GPU, and there is none; leave it out")
    if machine.versions["bitsandbytes"] is None:
        raise UserError(f"{option} needs bitsandbytes, which is missing; {INSTALL}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
