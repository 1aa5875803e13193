"""What a directory of guardrail runs holds, read for pictures and report; without torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.preference_numbers import Style, is_known, short
from evaluation.statistics import NOTHING, Estimate, wilson
from model_training.guardrail_config import ADAPTER, JOINT, MERGES
from utils.errors import UserError
from utils.files import read_jsonl
from utils.series import Run, load_runs

TASK = "guardrail"
EVALUATION = Path("evaluation/guardrail.json")
ITEMS = Path("evaluation/guardrail_items.jsonl")
NOTE = Path(ADAPTER) / "subtext.json"
BASE, SINGLE, ROUTED = "base", "single", "routed"
GUARD_MODEL = "guard:"
"""What the names of guard models begin with."""
Models = dict[str, dict[str, Any]]
"""The evaluated models by name, as evaluation/guardrail.json holds them."""

TAG_METRICS = ("tag_recall", "tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other", "precision", "f1")
BEHAVIOR_METRICS = ("behavior_recall", "resolution_rate", "adherence_given_tag", "natural_accuracy", "persona_kept")

LOOKS = {
    BASE: ("#555B66", "X"),
    SINGLE: ("#0072B2", "o"),
    ROUTED: ("#009E73", "D"),
    JOINT: ("#CC79A7", "s"),
    "cat": ("#D55E00", "^"),
    "svd": ("#E69F00", "v"),
    "linear": ("#56B4E9", "<"),
    "ties": ("#7A5C2E", ">"),
    "dare_ties": ("#882255", "p"),
}
"""Color and marker of each way to answer: Okabe and Ito's, which those who see few colors tell apart, too."""
COMPARATOR_LOOKS = (("#1D2433", "P"), ("#999933", "*"), ("#44AA99", "h"), ("#AA4499", "d"))


@dataclass(frozen=True)
class Guards:
    """A directory of guardrail runs, or one of them: what was trained, what was evaluated, and how models look."""

    run: Run
    trained: dict[str, Run]
    notes: dict[str, dict[str, Any]]
    """What each finished adapter says of itself, by the name of its run."""
    models: Models
    behaviors: list[str]
    styles: dict[str, Style]

    @property
    def chief(self) -> Models:
        """One model of each way to answer: of the first variation and the last checkpoint, where there are several."""
        found: dict[str, str] = {}
        for name in self.models:
            mode = mode_of(name)
            if mode not in found or _rank(name) > _rank(found[mode]):
                found[mode] = name
        return {name: self.models[name] for name in found.values()}

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        runs = ((self.run.evaluation or {}).get("config") or {}).get("num_runs")
        return runs if isinstance(runs, int) and runs > 0 else 1


def read_guards(directory: str | Path) -> Guards:
    """Everything a directory says of guardrails, be it runs, an evaluation, or both.

    Raises:
        UserError: it holds neither, or only those of another task.
    """
    return guards_of(load_guards(Path(directory)))


def load_guards(directory: Path) -> Run:
    run = load_runs(directory, TASK)
    task = run.manifest.get("task") or (run.evaluation or {}).get("task")
    if task not in (TASK, None):
        raise UserError(f"{directory} holds a run of task {task}; give --task {task}")
    return run


def guards_of(run: Run) -> Guards:
    below = dict(sorted(run.runs.items(), key=lambda of: (of[0].startswith(f"{JOINT}."), of[0])))
    trained = below or ({run.path.name: run} if run.manifest or run.stages else {})
    notes = {name: note for name, one in trained.items() if (note := read_note(one.path))}
    evaluation = run.evaluation or {}
    models = {name: {"metrics": {}} | model for name, model in evaluation.get("models", {}).items()}
    known = dict.fromkeys(behavior for model in models.values() for behavior in model.get("by_category") or {})
    return Guards(run, trained, notes, models, list(evaluation.get("behaviors") or known), styles_of(list(models)))


def read_note(run: Path) -> dict[str, Any]:
    """What the finished adapter of a run says of itself; nothing while there is none."""
    path = run / NOTE
    try:
        note = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); train this adapter again with --overwrite") from error
    if not isinstance(note, dict):
        raise UserError(f"{path}: no JSON object; train this adapter again with --overwrite")
    return note


def read_items(directory: Path) -> list[dict[str, Any]]:
    """Every answer of the evaluation; none where the file is missing."""
    path = directory / ITEMS
    return read_jsonl(path) if path.is_file() else []


# --- names ----------------------------------------------------------------------------------------------------------


def mode_of(name: str) -> str:
    """`cat@checkpoint-40` -> `cat`; a guard model is a way of its own."""
    return name if name.startswith(GUARD_MODEL) else name.partition("@")[0]


def part_of(name: str) -> str:
    """`cat@checkpoint-40` -> `checkpoint-40`: the variation or checkpoint, empty where there is but one."""
    return "" if name.startswith(GUARD_MODEL) else name.partition("@")[2]


def _rank(name: str) -> float:
    part = part_of(name)
    step = re.search(r"checkpoint-(\d+)", part)
    return float("inf") if not part else int(step[1]) if step else 0.0


def is_merge(name: str) -> bool:
    return mode_of(name) in MERGES


def is_guard_model(name: str) -> bool:
    return name.startswith(GUARD_MODEL)


def styles_of(names: list[str]) -> dict[str, Style]:
    """How each model looks in every picture; variations and checkpoints of one look alike, but for their labels."""
    others = list(dict.fromkeys(mode for name in names if (mode := mode_of(name)) not in LOOKS))
    looks = LOOKS | {mode: COMPARATOR_LOOKS[index % len(COMPARATOR_LOOKS)] for index, mode in enumerate(others)}
    return {name: Style(short(name.removeprefix(GUARD_MODEL)), *looks[mode_of(name)]) for name in names}


# --- estimates ------------------------------------------------------------------------------------------------------


def metric(model: dict[str, Any], name: str, behavior: str | None = None) -> Estimate | None:
    """A measured estimate, pooled or of one guard; None where there is none."""
    metrics = model["metrics"] if behavior is None else (model.get("by_category") or {}).get(behavior) or {}
    found = metrics.get("metrics", metrics).get(name)
    return found if is_known(found) else None


def tag_false_positives(model: dict[str, Any], answers: int = 1) -> Estimate | None:
    """The share of natural rows and hard negatives that were tagged or flagged; Wilson over their prompts."""
    parts = [found for name in ("tag_fpr_natural", "tag_fpr_hard") if (found := metric(model, name))]
    return _share(sum(part["value"] * part["n"] for part in parts), sum(part["n"] for part in parts), answers)  # type: ignore[operator, misc]


def resolution_false_positives(model: dict[str, Any], answers: int = 1) -> Estimate | None:
    """The share of natural rows and hard negatives that some guard's resolution answered; Wilson over their prompts."""
    confusion = model.get("confusion") or {}
    counts, rows, columns = (confusion.get(key) for key in ("resolution", "rows", "columns"))
    if not (counts and rows and columns):
        return None
    asked = [row for name, row in zip(rows, counts, strict=True) if name in ("natural", "hard")]
    n = sum(map(sum, asked))
    return _share(n - sum(row[columns.index("none")] for row in asked), n, answers)


def _share(cases: float, n: float, answers: int) -> Estimate | None:
    """Answers to one prompt resemble each other, so that the interval is that of as many cases as there are prompts."""
    found = wilson(cases / answers, round(n / answers)) if n else NOTHING
    return {**found, "n": int(n)} if is_known(found) else None
