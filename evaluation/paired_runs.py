"""Two evaluated models of different runs on the prompts that both answered: paired differences, without torch.

    rows = read_rows("secret", Path("runs/a"))           model -> what it wrote to each prompt, from ..._items.jsonl
    paired("secret", rows["adapter"], others["adapter"])  first - second of every metric that the rows tell

Only prompts that both models answered count, whatever else either was asked; a pair of texts counts as a prompt where
rewards are compared. secret: every score of a completion, and distinct thoughts. preference: accuracy by the mean and
by the risk-averse reward. guardrail: tag and behavior, as guardrail_measures defines them. Intervals are those of
statistics.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.guardrail_measures import Answer, differences
from evaluation.secret_measures import normal_thought
from evaluation.statistics import Estimate, bootstrap, cells, difference, distinct_difference
from utils.files import read_jsonl

Row = dict[str, Any]
Metrics = dict[str, Estimate]
Values = dict[str, list[float | None]]
"""Of each prompt, by its key, the value of each of its rows."""
SEED = 0
DISTINCT = "distinct_hidden_rate"


@dataclass(frozen=True)
class Paired:
    """Differences of two models, and how many prompts they were told from."""

    metrics: Metrics
    prompts: int
    of_first: int
    of_second: int


@dataclass(frozen=True)
class Answered:
    """What one model wrote, by prompt; `tags` are the guardrails' own."""

    rows: dict[str, list[Row]]
    tags: dict[str, str]


def read_rows(task: str, directory: Path) -> dict[str, Answered]:
    """The rows of each model; none where there is no file. Rows that cannot be told apart or scored are left out.

    Raises:
        UserError: the file cannot be read.
    """
    path = directory / "evaluation" / f"{task}_items.jsonl"
    if task not in TASKS or not path.is_file():
        return {}
    key_of, tags = TASKS[task].key, _tags(directory / "evaluation" / f"{task}.json")
    found: dict[str, dict[str, list[Row]]] = {}
    for row in read_jsonl(path):
        key = key_of(row)
        if key is not None and isinstance(row.get("model"), str):
            found.setdefault(row["model"], {}).setdefault(key, []).append(row)
    return {model: Answered(rows, tags) for model, rows in found.items()}


def _tags(path: Path) -> dict[str, str]:
    try:
        tags = json.loads(path.read_bytes()).get("tags")
    except (OSError, ValueError, AttributeError):
        return {}
    return {str(guard): tag for guard, tag in tags.items() if isinstance(tag, str)} if isinstance(tags, dict) else {}


def paired(task: str, first: Answered, second: Answered) -> Paired:
    """first - second on the prompts that both answered, which both sides have in the same order."""
    common = [key for key in first.rows if key in second.rows]
    sides = [Answered({key: of.rows[key] for key in common}, of.tags) for of in (first, second)]
    metrics = TASKS[task].differences(*sides) if common else {}
    told = {name: found for name, found in metrics.items() if found["value"] is not None}
    return Paired(told, len(common), len(first.rows), len(second.rows))


# ------------------------------------------------------------------------------------------------------ secret


def _secret_key(row: Row) -> str | None:
    if not isinstance(row.get("scores"), dict) or not isinstance(row.get("completion"), str):
        return None
    return _text(row.get("query_id"), row.get("prompt"))


def _secret_differences(first: Answered, second: Answered) -> Metrics:
    names = dict.fromkeys(name for rows in first.rows.values() for row in rows for name in row["scores"])
    found: Metrics = {}
    for name in names:
        values = [
            [[_number(row["scores"].get(name)) for row in rows] for rows in side.rows.values()]
            for side in (first, second)
        ]
        zero_or_one = all(value in (None, 0.0, 1.0) for side in values for of in side for value in of)
        found[name] = difference(cells(values[0]), cells(values[1]), SEED, is_rate=zero_or_one)
    thoughts = [
        [[thought for row in rows if (thought := normal_thought(row["completion"]))] for rows in side.rows.values()]
        for side in (first, second)
    ]
    return found | {DISTINCT: distinct_difference(*thoughts)}


# -------------------------------------------------------------------------------------------------- preference


SIDES = ("chosen", "rejected")
CHOICES = {"accuracy": "mean", "accuracy_risk": "risk"}
"""Metric, and which of a text's scores orders the pair."""


def _preference_key(row: Row) -> str | None:
    scores = [_number(row.get(f"{score}_{side}")) for score in CHOICES.values() for side in SIDES]
    if None in scores:
        return None
    return _text(row.get("prompt"), row.get("chosen"), row.get("rejected"))


def _preference_differences(first: Answered, second: Answered) -> Metrics:
    found: Metrics = {}
    for metric, score in CHOICES.items():

        def is_right(row: Row, score: str = score) -> float:
            return float(row[f"{score}_chosen"] >= row[f"{score}_rejected"])

        shares = [
            np.array([np.mean([is_right(row) for row in rows]) for rows in side.rows.values()])
            for side in (first, second)
        ]
        gaps = shares[0] - shares[1]
        if gaps.min() == gaps.max():
            ones = np.ones(len(gaps))
            sides = [np.stack([share, ones], axis=1) for share in shares]
            found[metric] = difference(sides[0], sides[1], SEED, is_rate=True)
        else:
            found[metric] = _mean(gaps)
    return found


def _mean(gaps: Any) -> Estimate:
    return bootstrap(lambda drawn: gaps[drawn].mean(axis=1), len(gaps), SEED)


# --------------------------------------------------------------------------------------------------- guardrail


def _guardrail_key(row: Row) -> str | None:
    if not isinstance(row.get("behavior"), str) or not isinstance(row.get("kind"), str):
        return None
    return _text(row["behavior"], row["kind"], row.get("prompt"))


def _guardrail_differences(first: Answered, second: Answered) -> Metrics:
    numbers = {key: number for number, key in enumerate(first.rows)}
    return differences(list(_answers(first, numbers)), list(_answers(second, numbers)), SEED)


def _answers(side: Answered, numbers: dict[str, int]) -> Iterable[Answer]:
    """The measured answers again, from the rows that evaluate wrote of them."""
    for key, rows in side.rows.items():
        for row in rows:
            yield _answer(row, numbers[key], side.tags)


def _answer(row: Row, prompt: int, tags: dict[str, str]) -> Answer:
    behavior, kind = row["behavior"], row["kind"]
    if "flagged" in row:
        flagged = bool(row["flagged"])
        return Answer(prompt, behavior, kind, flagged, flagged, True, behavior if flagged else None, None, None, None)
    tag, adapter, own_tag = row.get("tag"), row.get("adapter"), tags.get(behavior)
    speakers = [guard for guard, known in tags.items() if known == tag]
    fired = adapter if adapter in speakers else next(iter(speakers), None)
    told_apart = own_tag is not None and (adapter is not None or list(tags.values()).count(own_tag) < 2)
    own = tag is not None and tag == own_tag and (not told_apart or fired == behavior)
    good, kept = (value if isinstance(value := row.get(name), bool) else None for name in ("good", "persona_kept"))
    resolved = row.get("resolved")
    return Answer(prompt, behavior, kind, tag is not None, own, told_apart, fired, resolved, good, kept)


# ------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """How the rows of a task are told apart by prompt (None: a row is unusable), and compared."""

    key: Callable[[Row], str | None]
    differences: Callable[[Answered, Answered], Metrics]


TASKS = {
    "secret": Task(_secret_key, _secret_differences),
    "preference": Task(_preference_key, _preference_differences),
    "guardrail": Task(_guardrail_key, _guardrail_differences),
}


def _text(*parts: object) -> str:
    return json.dumps(parts, sort_keys=True)


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
