from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from tests.evaluation.make_preference_run import make_training
from tests.utils.make_run import make_run
from utils.panels import panels
from utils.plots import plot, write_plots
from utils.series import Series, load_run


def test_a_png_takes_any_reward_name(tmp_path: Path) -> None:
    make_run(tmp_path, sft_steps=0, grpo_steps=3, alarms=False)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        for name in ("$\\frac{", "\ud800\u202e"):
            row = {"step": 4, "time": 1.0, "split": "grpo", "resumes": 0, f"rewards/{name}/mean": math.pi}
            log.write(json.dumps(row) + "\n")
    assert len(write_plots(load_run(tmp_path), tmp_path)) == 2


def test_held_out_values_change_the_picture(tmp_path: Path) -> None:
    run = load_run(make_training(tmp_path))
    loss = next(panel for panel in panels(run) if panel.key == "loss/train")
    assert loss.held_out is not None and loss.held_out.steps == (20, 40, 60)
    first, second = (
        plot(run, [replace(loss, held_out=Series((20, 40, 60), (0.6, value, 0.6)))], 1) for value in (0.6, 0.65)
    )
    assert first != second, "within the range of the training loss, so nothing else of the picture changes"
