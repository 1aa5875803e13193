"""The JSON files of a run, read so that a report can be made of whatever they hold.

    manifest, faults = sound_manifest(run)
    evaluation, faults = sound_evaluation(sorted(run.glob("evaluation/*.json")), task)

A run may be of an older or newer version, cut short, or edited by hand. What has the type that readers count on is
kept, unknown fields too; the rest is left out. `faults` says so, one line each: what is wrong, where, what to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.runs import MANIFEST

Facts = dict[str, Any]

MANIFEST_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "task": ((str,), "a name"),
    "mode": ((str,), "a name"),
    "status": ((str,), "a name"),
    "reason": ((str,), "text"),
    "started": ((str, int, float), "a time"),
    "ended": ((str, int, float), "a time"),
    "resumes": ((int,), "a number"),
    "config": ((dict,), "an object"),
    "dataset": ((dict,), "an object"),
}
NEEDED = {
    "task": "what was trained is not known",
    "config": "the options, and with them the command to repeat the run, are not known",
    "status": "whether the run has ended is not known",
}
AGAIN = "run --mode evaluate again"


def sound_manifest(run: Path) -> tuple[Facts, tuple[str, ...]]:
    """The manifest as far as it can be used; empty where there is none."""
    path = run / MANIFEST
    manifest, faults = _read(path, "the page does without; restore it, or train again")
    if manifest is None:
        missing = f"{MANIFEST} is missing: what made this run is not known"
        has_log = (run / "metrics.jsonl").is_file()
        return {}, faults or ((missing,) if has_log else ())
    kept = {name: value for name, value in manifest.items() if value is not None or name not in NEEDED}
    for name, (types, expected) in MANIFEST_TYPES.items():
        value = manifest.get(name)
        wrong = value is not None and (not isinstance(value, types) or isinstance(value, bool))
        if wrong or (name in ("started", "ended") and value is not None and unix_time(value) is None):
            faults += (f'{MANIFEST}: "{name}" is not {expected}, left out; written by another version?',)
            del kept[name]
    if isinstance(kept.get("dataset"), dict):
        kept["dataset"] = {name: str(value) for name, value in kept["dataset"].items() if value is not None}
    faults += tuple(
        f'{MANIFEST} has no "{name}": {loss}' for name, loss in NEEDED.items() if manifest.get(name) is None
    )
    return kept, faults


def sound_evaluation(files: Sequence[Path], task: str | None) -> tuple[Facts | None, tuple[str, ...]]:
    """The evaluation of the run's own task; without a manifest, the first there is."""
    of_task = [file for file in files if task in (None, file.stem)]
    if not of_task:
        return None, ()
    file = of_task[0]
    found, faults = _read(file, AGAIN)
    if found is None:
        return None, faults
    name = f"{file.parent.name}/{file.name}"
    if not isinstance(found.get("models"), dict):
        return None, (f'{name}: no evaluation (expected an object with "models"); {AGAIN}',)
    kept = found | {"models": _objects(found["models"])}
    dropped = len(found["models"]) - len(kept["models"])
    for model in kept["models"].values():
        for part in ("metrics", "by_category"):
            if part in model and not isinstance(model[part], dict):
                del model[part]
                dropped += 1
        if "by_category" in model:
            model["by_category"] = _objects(model["by_category"])
    if "paired" in found:
        kept["paired"] = _objects(found["paired"]) if isinstance(found["paired"], dict) else {}
    if dropped:
        faults += (f"{name}: {dropped} entries are not what this version reads, left out; {AGAIN}",)
    return kept, faults


def unix_time(moment: object) -> float | None:
    """A manifest's time stamp in Unix seconds; None for what is none."""
    try:
        if isinstance(moment, str):
            return datetime.fromisoformat(moment).timestamp()
        if isinstance(moment, int | float) and not isinstance(moment, bool):
            return datetime.fromtimestamp(moment).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _objects(value: Facts) -> Facts:
    return {name: part for name, part in value.items() if isinstance(part, dict)}


def _read(path: Path, remedy: str) -> tuple[Facts | None, tuple[str, ...]]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None, ()
    except OSError as fault:
        return None, (f"{path.name}: cannot be read ({fault.strerror}); {remedy}",)
    except (ValueError, RecursionError) as fault:
        return None, (f"{path.name}: not valid JSON ({fault}); {remedy}",)
    return (value, ()) if isinstance(value, dict) else (None, (f"{path.name}: holds no JSON object; {remedy}",))
