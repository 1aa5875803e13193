"""What the evaluation of guardrails prints of a report."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.guardrail_tables import WIDTH, printed
from evaluation.statistics import NOTHING, wilson

NAMES = ["politics", "expert_opinion", "meeting"]
RATES = ("tag_recall", "resolution_rate", "behavior_recall", "tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other")


def model(kind: str, **changes: Any) -> dict[str, Any]:
    metrics = {name: wilson(200 - place, 200) for place, name in enumerate((*RATES, "natural_accuracy"))}
    counts = [[200 if row == column else 0 for column in range(4)] for row in range(3)] + [[0, 0, 0, 200]] * 2
    confusion = {"rows": [*NAMES, "natural", "hard"], "columns": [*NAMES, "none"], "tag": counts, "resolution": counts}
    about = {"kind": kind, "relative_error": None, "prompt_forwards": 1, "failures": 0}
    numbers = {"metrics": metrics, "by_category": dict.fromkeys(NAMES, metrics), "confusion": confusion}
    return {**about, **numbers, **changes}


@pytest.fixture
def report() -> dict[str, Any]:
    models = {name: model(kind) for name, kind in (("base", "base"), ("single", "adapter"), ("routed", "routed"))}
    models |= {"dare_ties@fixed_character@checkpoint-40": model("merge", relative_error=1.0612)}
    models["guard:llama"] = model("guard_model", failures=3, metrics={"tag_recall": wilson(5, 197)})
    return {
        "test_variation": "vary_all",
        "config": {"num_runs": 1},
        "behaviors": NAMES,
        "prompts": {name: {"trigger": 200, "natural": 300} for name in NAMES},
        "base_check": {"largest_logit_difference": 0.0},
        "models": models,
        "paired": {"routed - single": {name: NOTHING | {"n": 0} for name in (*RATES, "natural_accuracy")}},
    }


def test_lines_fit_a_terminal(report: dict[str, Any]) -> None:
    lines = printed(report).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == (
        "Test prompts (vary_all): politics 500, expert_opinion 500, meeting 500. Per cent with 95 % intervals."
    )


def test_models_stand_below_each_other_with_error_and_cost(report: dict[str, Any]) -> None:
    text = printed(report)
    rows = [line for line in text.splitlines() if line.startswith("dare_ties@")]
    assert sum(row.endswith("1.06         1") for row in rows) == 4, "all guards, and each"
    assert any(line.startswith("all guards") and "tag_recall n=200" in line for line in text.splitlines())
    assert all(any(line.startswith(name) and "behavior_recall" in line for line in text.splitlines()) for name in NAMES)
    assert "100.0 [98.1, 100.0]" in text


def test_a_cell_of_another_n_says_so(report: dict[str, Any]) -> None:
    text = printed(report)
    assert "2.5 [1.1, 5.8] n=197" in text
    assert text.endswith("Prompts without a verdict, in none of the rates: guard:llama 3.")


def test_only_stacked_models_have_a_confusion_table(report: dict[str, Any]) -> None:
    lines = printed(report).splitlines()
    heads = [line.split()[0] for line in lines if line.split()[-1:] == ["none"]]
    assert heads == ["routed", "dare_ties@fixed_character@checkpoint-40"]
    assert sum("200 | 200" in line for line in lines) == 2 * 5
    report["models"]["routed"]["confusion"]["tag"] = None
    assert sum("- | 200" in line for line in printed(report).splitlines()) == 5


def test_differences_are_from_the_single_adapters_of_the_same_stack(report: dict[str, Any]) -> None:
    lower = {name: {"value": -0.25, "n": 200, "low": -0.5, "high": 0.125} for name in (*RATES, "natural_accuracy")}
    report["paired"] = {"routed@fixed_history - single@fixed_history": lower}
    lines = printed(report).splitlines()
    assert sum(line.startswith("minus single, points") for line in lines) == 2
    assert sum(line.startswith("routed@fixed_history  ") and "-25.0 [-50.0, +12.5]" in line for line in lines) == 2


def test_what_was_not_measured_has_no_column(report: dict[str, Any]) -> None:
    for one in report["models"].values():
        one["metrics"] = one["metrics"] | {"behavior_recall": NOTHING}
        one["by_category"] = {name: {"tag_recall": wilson(1, 2)} for name in NAMES}
    report["paired"] = {}
    text = printed(report)
    assert "behavior_recall" not in text and "minus single" not in text
