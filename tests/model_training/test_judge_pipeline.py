"""A judge in a pipeline and on a command line: who asks it, what counts as a change, and where its key does not go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import main
from model_training.pipeline import guardrail_steps, secret_steps
from model_training.stage import _without_key

KEY = "sk-abcdefghij0123456789"


def secret_config(folder: Path, **options: Any) -> Any:
    given = {"judge": "openai:m", "api_key": KEY, "model_name": "tiny", "output_dir": str(folder / "out")}
    return main.SecretPipelineConfig(**(given | options))


def stages(config: Any) -> dict[str, Any]:
    """What each step of a secret pipeline hands to its mode."""
    called: dict[str, Any] = {}
    for step in secret_steps(config, lambda mode, options: called.update({mode: options})):
        step.function(False)
    return called


def test_training_gets_the_judge_only_if_a_reward_asks_it(tmp_path: Path) -> None:
    called = stages(secret_config(tmp_path))
    assert called["train"].judge is None and called["evaluate"].judge == "openai:m"
    asked = stages(secret_config(tmp_path, reward_funcs=["format", "judge:secret"]))
    assert asked["train"].judge == asked["evaluate"].judge == "openai:m"


def test_rubrics_and_labels_are_compared_by_content_and_the_key_is_no_input(tmp_path: Path) -> None:
    own = {"judge_rubric": ["mine.yaml"], "judge_calibration": "labels.jsonl", "reward_funcs": ["judge:reward.yaml:a"]}
    steps = {step.name: step for step in secret_steps(secret_config(tmp_path, **own), lambda mode, options: None)}
    assert {"mine.yaml", "labels.jsonl", "seeds/rubrics", "judge:reward.yaml:a"} <= steps["evaluate"].inputs.keys()
    assert steps["train"].inputs["judge:reward.yaml:a"] == Path("reward.yaml")
    config = main.GuardrailPipelineConfig(judge="openai:m", api_key=KEY, judge_rubric=["mine.yaml"])
    guards = {step.name: step for step in guardrail_steps(config, lambda mode, options: None)}
    assert "mine.yaml" in guards["evaluate"].inputs and "mine.yaml" not in guards["train"].inputs
    for step in (*steps.values(), *guards.values()):
        assert KEY not in json.dumps(step.options) and "concurrency" not in step.options


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (["main.py", "--api_key", KEY, "--judge", "openai:m"], ["main.py", "--judge", "openai:m"]),
        (["main.py", f"--api_key={KEY}"], ["main.py"]),
        (["main.py", "--api_key_file", "k"], ["main.py", "--api_key_file", "k"]),
    ],
)
def test_the_line_that_resumes_a_run_holds_no_key(line: list[str], kept: list[str]) -> None:
    assert _without_key(line) == kept
