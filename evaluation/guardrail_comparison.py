"""The files of the published system, from our report: one comparison table, and one file of rates each.

variation_comparison_results.csv, a row each of guardrail, variation and mode, accuracies in per cent:

    behavior, variation, mode     a checkpoint stands behind its mode: routed@checkpoint-40
    overall_accuracy              triggers and natural rows together that were answered well
    behavior_accuracy             triggers answered well: behavior_recall
    natural_accuracy              natural rows answered well
    guard_tags                    triggers answered with the tag: tag_recall
    behavior_accuracy_without_lora, natural_accuracy_without_lora     the same of the base, which has no adapter on it
    overall_accuracy_norm, ...    the three accuracies, each divided by the largest of its column, 0 to 1
    composite_score               the mean of these three

A column whose largest value is 0 is 0 throughout its norm. What could not be measured is empty, and no part of a mean:
a composite of fewer than three parts does not compare with the others, and is empty too.

metric_BEHAVIOR_MODE.json holds, as fractions, behavior_detection_with_lora and _without_lora, guard_tag_usage,
neutral_detection_with_lora and _without_lora. MODE is the model's name in guardrail.json, so that no variation and no
checkpoint overwrites another.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from evaluation.statistics import Estimate

COMPARISON = "variation_comparison_results.csv"
METRIC_FILES = "metric_*.json"
COMPARED = ("overall_accuracy", "behavior_accuracy", "natural_accuracy")
COLUMNS = (
    *("behavior", "variation", "mode", *COMPARED, "guard_tags"),
    *("behavior_accuracy_without_lora", "natural_accuracy_without_lora"),
    *(f"{name}_norm" for name in COMPARED),
    "composite_score",
)
WITH_ADAPTERS = ("adapter", "routed", "joint", "merge")

Report = dict[str, Any]
Row = dict[str, Any]


def source_files(report: Report) -> dict[str, str]:
    """The text of each file by its name."""
    texts = {COMPARISON: _csv(comparison(report))}
    base = report["models"]["base"]["by_category"]
    for name, behavior, metrics in _measured(report):
        fractions = {
            "behavior_detection_with_lora": metrics["behavior_recall"]["value"],
            "behavior_detection_without_lora": base[behavior]["behavior_recall"]["value"],
            "guard_tag_usage": metrics["tag_recall"]["value"],
            "neutral_detection_with_lora": metrics["natural_accuracy"]["value"],
            "neutral_detection_without_lora": base[behavior]["natural_accuracy"]["value"],
        }
        texts[f"metric_{behavior}_{name}.json"] = json.dumps(fractions, indent=2) + "\n"
    return texts


def comparison(report: Report) -> list[Row]:
    """The rows of the comparison table, accuracies in per cent."""
    base = report["models"]["base"]["by_category"]
    rows = []
    for name, behavior, metrics in _measured(report):
        model = report["models"][name]
        mode = name.partition("@")[0]
        rows.append(
            {
                "behavior": behavior,
                "variation": model["variation"],
                "mode": f"{mode}@{model['checkpoint']}" if model["checkpoint"] else mode,
                "overall_accuracy": _overall(metrics["behavior_recall"], metrics["natural_accuracy"]),
                "behavior_accuracy": _percent(metrics["behavior_recall"]),
                "natural_accuracy": _percent(metrics["natural_accuracy"]),
                "guard_tags": _percent(metrics["tag_recall"]),
                "behavior_accuracy_without_lora": _percent(base[behavior]["behavior_recall"]),
                "natural_accuracy_without_lora": _percent(base[behavior]["natural_accuracy"]),
            }
        )
    largest = {name: max((row[name] for row in rows if row[name] is not None), default=0.0) for name in COMPARED}
    for row in rows:
        norms = [_norm(row[name], largest[name]) for name in COMPARED]
        row |= {f"{name}_norm": norm for name, norm in zip(COMPARED, norms, strict=True)}
        known = [norm for norm in norms if norm is not None]
        row["composite_score"] = sum(known) / len(known) if len(known) == len(COMPARED) else None
    return rows


def _measured(report: Report) -> list[tuple[str, str, dict[str, Estimate]]]:
    """Name, guardrail and metrics of what has adapters on the base."""
    return [
        (name, behavior, model["by_category"][behavior])
        for behavior in report["behaviors"]
        for name, model in report["models"].items()
        if model["kind"] in WITH_ADAPTERS
    ]


def _overall(triggers: Estimate, natural: Estimate) -> float | None:
    """The share of both together, in per cent."""
    parts = [(float(of["value"]), int(of["n"] or 0)) for of in (triggers, natural) if of["value"] is not None]
    answers = sum(n for _, n in parts)
    return 100 * sum(value * n for value, n in parts) / answers if len(parts) == 2 else None


def _percent(estimate: Estimate) -> float | None:
    return None if estimate["value"] is None else 100 * float(estimate["value"])


def _norm(value: float | None, largest: float) -> float | None:
    if value is None:
        return None
    return value / largest if largest > 0 else 0.0


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _rounded(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
