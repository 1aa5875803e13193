"""What an evaluation of reward models left in a directory, read for pictures and report; without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import read_jsonl
from utils.formatting import neutralize
from utils.series import Run

Floats = NDArray[np.float64]
Models = dict[str, dict[str, Any]]
"""The evaluated models by name, as evaluation/preference.json holds them."""

ITEMS = Path("evaluation/preference_items.jsonl")
SIDES = ("chosen", "rejected")
SCORE_KEYS = [f"{score}_{side}" for score in ("mean", "spread") for side in SIDES]
RISK_AVERSE = {
    "accuracy": "accuracy_risk",
    "jailbreak_rate": "jailbreak_rate_risk",
    "compliance_rate": "compliance_rate_risk",
}
"""Metrics of choosing by the mean reward, and the same by the risk-averse one."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C2E", "#555B66")
"""Okabe and Ito's, which those who see few colors tell apart too; black and yellow, hard on paper, are replaced."""
MARKERS = "osD^vP"
LONGEST_NAME = 26


@dataclass(frozen=True)
class Items:
    """What one model says of N pairs; columns of the (N, 2) arrays: chosen, rejected."""

    mean: Floats
    spread: Floats
    subsets: list[str | None]
    kinds: list[str | None]

    @property
    def margin(self) -> Floats:
        """(N,)"""
        return np.asarray(self.mean[:, 0] - self.mean[:, 1])

    @property
    def pair_spread(self) -> Floats:
        """(N,), the spread of the difference of the two rewards."""
        return np.hypot(self.spread[:, 0], self.spread[:, 1])


@dataclass(frozen=True)
class Style:
    """How a model looks in every picture."""

    label: str
    color: str
    marker: str


@dataclass(frozen=True)
class Evaluated:
    """All models of an evaluation, and what those with pairs say of them; a style a model."""

    models: Models
    items: dict[str, Items]
    styles: dict[str, Style]


def evaluated(run: Run) -> Evaluated:
    """What the evaluation in a directory holds; nothing where there is none."""
    models = models_of(run)
    return Evaluated(models, read_items(run.path, models), styles_of(list(models)))


def models_of(run: Run) -> Models:
    """The evaluated models by name, each with its metrics, be they none."""
    found = (run.evaluation or {}).get("models", {})
    return {name: {"metrics": {}} | model for name, model in found.items() if isinstance(model, dict)}


def read_items(directory: Path, models: Models) -> dict[str, Items]:
    """The pairs of each evaluated model; none where the file is missing.

    Raises:
        UserError: a row lacks a score, or it is no finite number.
    """
    if not (directory / ITEMS).is_file():
        return {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for number, row in enumerate(read_jsonl(directory / ITEMS), start=1):
        if row.get("model") not in rows:
            continue
        missing = [key for key in SCORE_KEYS if not _is_number(row.get(key))]
        if missing:
            raise UserError(f"{directory / ITEMS}:{number}: {missing[0]} is no number; run --mode evaluate again")
        rows[row["model"]].append(row)
    return {name: _items(of_model) for name, of_model in rows.items() if of_model}


def _items(rows: list[dict[str, Any]]) -> Items:
    mean, spread = (
        np.array([[row[f"{score}_{side}"] for side in SIDES] for row in rows]) for score in ("mean", "spread")
    )
    subsets, kinds = ([_text(row.get(key)) for row in rows] for key in ("data_subset", "kind"))
    return Items(mean, spread, subsets, kinds)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_known(estimate: object) -> bool:
    """Whether there is an estimate, and it has a value."""
    return isinstance(estimate, dict) and _is_number(estimate.get("value"))


def has_spread(model: dict[str, Any]) -> bool:
    return bool(model.get("kind") != "base")


def measures_of(models: Models) -> list[str]:
    """What the risk curves hold, in order: accuracy, of each subset, jailbreak rate."""
    found = dict.fromkeys(
        key
        for model in models.values()
        for row in model["risk_curve"]
        for key, value in row.items()
        if key != "alpha" and is_known(value)
    )
    return list(found)


def measure_title(measure: str) -> str:
    """`helpful` -> `Accuracy, helpful`."""
    if measure in ("accuracy", "jailbreak_rate"):
        return {"accuracy": "Accuracy, all pairs", "jailbreak_rate": "Jailbreak rate"}[measure]
    return f"Accuracy, {short(measure)}"


def curve_of(model: dict[str, Any], *measures: str) -> list[dict[str, Any]]:
    """The rows of a model's risk curve that have all these measures, from the largest alpha down."""
    rows = [row for row in model["risk_curve"] if all(is_known(row.get(measure)) for measure in measures)]
    return sorted(rows, key=lambda row: -row["alpha"])


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    return {
        name: Style(short(name), COLORS[index % len(COLORS)], MARKERS[index // len(COLORS) % len(MARKERS)])
        for index, name in enumerate(names)
    }


def short(name: str) -> str:
    """A name as a label: made safe, and cut where it is too long."""
    plain = str(neutralize(name)).replace("\n", " ")
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 1] + "…"
