"""A short version of `python -m benchmarks.resume_after_kill --kills 20`, with real processes and SIGKILL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.resume_after_kill import TRAIN_OPTIONS, kill_prepare_data, kill_train
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import make_records


def test_a_killed_and_resumed_run_ends_like_the_undisturbed_one(tmp_path: Path, tiny_model: BuildModel) -> None:
    options = {
        "model_name": str(tiny_model("llama")),
        "dataset_path": str(make_records(tmp_path / "data.json")),
        "reward_funcs": ["format", "tests.model_training.tiny_models:letters_reward"],
        "max_completion_length": 16,
        "sft_steps": 8,
        "max_steps": 8,
    }
    kills, differences = kill_train(tmp_path, TRAIN_OPTIONS | options, kills=2, seed=3)
    assert differences == []
    assert len(kills) == 2 and max(kill.rows for kill in kills) > 0


SMALL: dict[str, dict[str, Any]] = {
    "secret": {"num_records": 200},
    "guardrail": {"task": "guardrail", "n_samples": 10, "test_samples": 4},
}


@pytest.mark.parametrize("task", SMALL)
def test_a_killed_prepare_data_leaves_all_or_nothing(tmp_path: Path, task: str) -> None:
    """One dataset file, or the several files of the guardrails, each whole."""
    kills, differences = kill_prepare_data(tmp_path, SMALL[task], kills=2, seed=0)
    assert differences == []
    assert len(kills) == 2
