"""Steps in order, each run only if something it depends on has changed, as `make` does, but by content.

A step is done if it has run to its end with the same options and the same input files (SHA-256), and its outputs are
still what it wrote. The state stands in one JSON file, replaced atomically before and after each step, so that a killed
pipeline goes on with the step it was in; that step is told so (`again`), to continue or replace what is its own.
Options are stored as hashes: enough to say which one changed, and no secret can leak.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import sha256_file, write_json_atomic

ABSENT = "absent"


@dataclass(frozen=True)
class Step:
    """`function(again)` does the work; `again` says that all that stands in the outputs is this pipeline's own.

    Inputs and outputs are files or directories by a name that does not depend on where they lie; inputs are looked at
    when the step's turn has come.
    """

    name: str
    function: Callable[[bool], None]
    options: dict[str, Any]
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    always: bool = False


def run_steps(
    steps: Sequence[Step], state_path: Path, *, start_step: int = 1, end_step: int | None = None, afresh: bool = False
) -> None:
    """Run what is not done of the steps from `start_step` to `end_step`, counted from 1; with `afresh` all of these."""
    last = len(steps) if end_step is None else end_step
    if not 1 <= start_step <= last <= len(steps):
        raise UserError(f"--start_step {start_step} and --end_step {last}: there are steps 1 to {len(steps)}")
    state = _read_state(state_path)
    for number in range(start_step, last + 1):
        step = steps[number - 1]
        title = f"[{number}/{len(steps)}] {step.name}"
        before = state.get(step.name)
        inputs = _inputs(step)
        why = "as asked" if afresh or step.always else _why(before, inputs, step)
        if why is None:
            print(f"{title}: nothing has changed, skipped", flush=True)
            continue
        print(f"{title}: runs ({why})", flush=True)
        again = _is_own(before, step)
        state[step.name] = {
            "status": "running",
            "created": [name for name, path in step.outputs.items() if again or not path.exists()],
            "outputs": (before or {}).get("outputs", {}),
        }
        write_json_atomic(state_path, {"steps": state})
        started = time.time()
        try:
            step.function(again)
        except BaseException as error:
            state[step.name]["created"] = [n for n in state[step.name]["created"] if step.outputs[n].exists()]
            write_json_atomic(state_path, {"steps": state})
            if isinstance(error, KeyboardInterrupt):
                print(f"{title}: interrupted; the same command goes on from here", file=sys.stderr)
            raise
        state[step.name] = {
            "status": "done",
            "inputs": inputs,
            "outputs": {name: _written(step, path) for name, path in step.outputs.items()},
            "seconds": round(time.time() - started, 1),
        }
        write_json_atomic(state_path, {"steps": state})


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a directory."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "".join(f"{file.relative_to(path)}\0{sha256_file(file)}\n" for file in files)
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    return sha256_file(path) if path.exists() else ABSENT


def _written(step: Step, path: Path) -> str:
    if not path.exists():
        raise AssertionError(f"step {step.name} ended without writing {path}")
    return fingerprint(path)


def _inputs(step: Step) -> dict[str, str]:
    options = {
        f"--{name}": hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for name, value in step.options.items()
    }
    return options | {name: fingerprint(path) for name, path in step.inputs.items()}


def _why(before: dict[str, Any] | None, inputs: dict[str, str], step: Step) -> str | None:
    """Why a step has to run; None if it is done."""
    if before is None:
        return "not run yet"
    if before["status"] != "done":
        return "it did not end"
    names = [*inputs, *(name for name in before["inputs"] if name not in inputs)]
    changed = [name for name in names if inputs.get(name) != before["inputs"].get(name)]
    if changed:
        return f"changed: {', '.join(changed)}"
    for name, path in step.outputs.items():
        now = fingerprint(path)
        if now != before["outputs"].get(name):
            return f"{path} is {'missing' if now == ABSENT else 'not what this step wrote'}"
    return None


def _is_own(before: dict[str, Any] | None, step: Step) -> bool:
    """Whether every output that stands there was written by this step: the very bytes, or made since it began."""
    if before is None:
        return False
    return all(
        not path.exists() or name in before.get("created", []) or fingerprint(path) == before["outputs"].get(name)
        for name, path in step.outputs.items()
    )


def _read_state(path: Path) -> dict[str, Any]:
    try:
        steps = json.loads(path.read_bytes())["steps"]
        if not all(entry["status"] in ("running", "done") for entry in steps.values()):
            raise ValueError("a step of unknown status")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no state of a pipeline ({error}); remove it to run every step again") from error
    return dict(steps)
