"""The published system's files, from a report whose numbers are known."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from evaluation.guardrail_comparison import COLUMNS, COMPARISON, comparison, source_files
from evaluation.statistics import NOTHING, wilson


def model(kind: str, triggers: int, natural: int, tags: int, **about: Any) -> dict[str, Any]:
    """Of 10 triggers and 30 natural rows."""
    metrics = {
        "behavior_recall": wilson(triggers, 10),
        "natural_accuracy": wilson(natural, 30),
        "tag_recall": wilson(tags, 10),
    }
    known = {"kind": kind, "variation": "vary_all", "checkpoint": None, "by_category": {"politics": metrics}}
    return known | about


@pytest.fixture
def report() -> dict[str, Any]:
    models = {
        "base": model("base", 1, 27, 0),
        "single": model("adapter", 10, 30, 9),
        "linear@checkpoint-5": model("merge", 0, 15, 3, checkpoint="checkpoint-5"),
        "guard:llama": {"kind": "guard_model", "by_category": {"politics": {"tag_recall": wilson(1, 2)}}},
    }
    return {"behaviors": ["politics"], "models": models}


def test_rows_are_in_per_cent_beside_the_base(report: dict[str, Any]) -> None:
    single, linear = comparison(report)
    assert single["overall_accuracy"] == single["behavior_accuracy"] == single["natural_accuracy"] == 100
    assert (single["guard_tags"], single["mode"], single["variation"]) == (90, "single", "vary_all")
    assert (single["behavior_accuracy_without_lora"], single["natural_accuracy_without_lora"]) == (10, 90)
    assert linear["overall_accuracy"] == 37.5, "15 of 40, triggers and natural rows pooled"
    assert linear["mode"] == "linear@checkpoint-5"


def test_composite_is_the_mean_of_the_parts_by_their_columns_largest(report: dict[str, Any]) -> None:
    single, linear = comparison(report)
    assert single["composite_score"] == 1
    assert [linear[f"{name}_accuracy_norm"] for name in ("overall", "behavior", "natural")] == [0.375, 0, 0.5]
    assert linear["composite_score"] == pytest.approx((0.375 + 0 + 0.5) / 3)


def test_a_column_of_zeros_is_zero(report: dict[str, Any]) -> None:
    del report["models"]["single"]
    (linear,) = comparison(report)
    assert linear["behavior_accuracy_norm"] == 0 and linear["natural_accuracy_norm"] == 1
    assert linear["composite_score"] == pytest.approx(2 / 3)


def test_what_was_not_measured_is_empty_and_no_score(report: dict[str, Any]) -> None:
    report["models"]["linear@checkpoint-5"]["by_category"]["politics"]["behavior_recall"] = NOTHING
    single, linear = comparison(report)
    assert single["composite_score"] == 1
    assert linear["behavior_accuracy"] is linear["overall_accuracy"] is linear["composite_score"] is None
    assert linear["natural_accuracy_norm"] == 0.5
    row = source_files(report)[COMPARISON].splitlines()[2].split(",")
    assert dict(zip(COLUMNS, row, strict=True))["composite_score"] == ""


def test_files_are_those_of_the_published_system(report: dict[str, Any]) -> None:
    files = source_files(report)
    assert files.keys() == {
        *(COMPARISON, "metric_politics_single.json", "metric_politics_linear@checkpoint-5.json"),
    }
    rows = list(csv.DictReader(files[COMPARISON].splitlines()))
    assert tuple(rows[0]) == COLUMNS and COLUMNS[:3] == ("behavior", "variation", "mode")
    assert [row["overall_accuracy"] for row in rows] == ["100", "37.5"]
    assert json.loads(files["metric_politics_linear@checkpoint-5.json"]) == {
        "behavior_detection_with_lora": 0.0,
        "behavior_detection_without_lora": 0.1,
        "guard_tag_usage": 0.3,
        "neutral_detection_with_lora": 0.5,
        "neutral_detection_without_lora": 0.9,
    }
