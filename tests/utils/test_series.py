from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.utils.make_run import make_run
from utils.errors import UserError
from utils.panels import Panel, ends, is_count, is_rate, panels, reward_title, sample_completions, smooth, thin, trace
from utils.series import Run, Series, Stage, load_run, load_runs


def run_of(tmp_path: Path, rows: list[dict[str, object]]) -> Run:
    head = {"time": 1.0, "split": "grpo", "resumes": 0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(head | row) + "\n" for row in rows))
    return load_run(tmp_path)


def test_a_whole_run_is_read(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", sft_steps=30, grpo_steps=20))
    assert run.stages == (Stage("sft", 1, 30), Stage("grpo", 31, 50))
    assert run.last_step == run.planned_steps == 50
    assert len(run.series["loss"].steps) == 50
    assert run.series["reward"].steps == tuple(range(31, 51))
    assert [alarm.step for alarm in run.alarms] == [71]
    assert len(run.completions) == 40
    assert run.evaluation is not None and run.evaluation["task"] == "secret"
    assert run.seconds == 345.0


def test_null_nan_and_infinite_values_are_gaps(tmp_path: Path) -> None:
    values = [1.5, None, "NaN", float("nan"), float("inf"), "-Infinity", 2]
    run = run_of(tmp_path, [{"step": step, "kl": value} for step, value in enumerate(values, 1)])
    assert run.series["kl"] == Series(tuple(range(1, 8)), (1.5, None, None, None, None, None, 2.0))


def test_a_step_that_logged_no_such_metric_is_not_a_gap(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, [{"step": 1, "loss": 0.0, "reward": 1.0}, {"step": 2, "loss": 0.0}, {"step": 3, "reward": 2.0}]
    )
    assert run.series["reward"] == Series((1, 3), (1.0, 2.0))


def test_text_and_bookkeeping_are_no_series(tmp_path: Path) -> None:
    run = run_of(tmp_path, [{"step": 1, "loss": 1.0, "note": "hello", "flag": True, "epoch": 0.1}])
    assert set(run.series) == {"loss"}


def test_rows_that_a_resumed_run_repeated_count_once(tmp_path: Path) -> None:
    run = run_of(tmp_path, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0, "resumes": 1}])
    assert run.series["loss"] == Series((1, 2), (1.0, 2.0))


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path, sft_steps=0, grpo_steps=5, alarms=False, status="running")
    for name in ("metrics.jsonl", "completions.jsonl"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + '{"step": 6, "time": 3')
    run = load_run(tmp_path)
    assert run.last_step == 5 and len(run.completions) == 10


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    make_run(tmp_path, status="running")
    for name in ("metrics.jsonl", "completions.jsonl", "evaluation/secret.json"):
        (tmp_path / name).unlink()
    run = load_run(tmp_path)
    assert (run.series, run.stages, run.alarms, run.completions, run.evaluation) == ({}, (), (), [], None)
    assert run.last_step == 0 and panels(run) == []


def test_an_evaluation_alone_is_a_run(tmp_path: Path) -> None:
    make_run(tmp_path)
    for name in ("metrics.jsonl", "completions.jsonl", "manifest.json"):
        (tmp_path / name).unlink()
    run = load_run(tmp_path)
    assert run.evaluation is not None and run.manifest == {} and run.planned_steps is None


def test_a_directory_without_a_run_is_named_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no run here .*holds notes\.txt.*train or evaluate with this --output_dir"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        load_run(tmp_path / "absent")
    with pytest.raises(UserError, match="a file, not a run directory"):
        load_run(tmp_path / "notes.txt")


@pytest.mark.parametrize("text", ["{", "[]", '{"models": 3}', "\x00", "[" * 100_000])
def test_a_broken_evaluation_is_named_and_the_rest_is_shown(tmp_path: Path, text: str) -> None:
    make_run(tmp_path, sft_steps=3, grpo_steps=0)
    (tmp_path / "evaluation" / "secret.json").write_text(text)
    run = load_run(tmp_path)
    assert run.evaluation is None and run.last_step == 3
    assert len(run.faults) == 1 and "secret.json" in run.faults[0] and "run --mode evaluate again" in run.faults[0]


def test_panels_pair_every_reward_with_its_spread(tmp_path: Path) -> None:
    found = {panel.key: panel for panel in panels(load_run(make_run(tmp_path)))}
    assert list(found)[:4] == ["loss/sft", "loss/grpo", "reward", "rewards/format/mean"]
    for key in ("reward", "rewards/format/mean", "rewards/safe_hidden/mean"):
        assert found[key].spread is not None
    assert {"strict_format_rate", "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std",
            "entropy", "learning_rate", "step_time", "tokens_per_s"} <= set(found)  # fmt: skip
    assert "kl" not in found
    assert found["loss/grpo"].series.steps[0] == 101 and "near zero by construction" in found["loss/grpo"].note
    assert [stage.name for stage in found["learning_rate"].stages] == ["warm-up", "GRPO"]


def test_moving_average_by_hand() -> None:
    series = Series((1, 2, 3, 4), (1.0, 2.0, None, 4.0))
    assert smooth(series, 3).values == (1.5, 1.5, None, 4.0)
    assert smooth(series, 0) == series


def test_thinning_keeps_means_and_gaps() -> None:
    series = Series(tuple(range(1, 8)), (1.0, 3.0, None, 5.0, None, None, 7.0))
    assert thin(series, 4) == Series((2, 4, 6, 7), (2.0, 5.0, None, 7.0))
    assert thin(series, 7) == series


def test_a_trace_never_averages_over_two_stages() -> None:
    stages = (Stage("sft", 1, 60), Stage("grpo", 61, 120))
    values = (1.0,) * 60 + (5.0,) * 60
    drawn = trace(Panel("x", "X", "", "health", Series(tuple(range(1, 121)), values), None, "", stages))
    assert set(drawn.line.numbers()) == {1.0, 5.0}
    assert drawn.line.values[60] is None and drawn.low.numbers() == []


def test_spread_of_a_bounded_reward_stays_in_its_scale() -> None:
    series, spread = Series((1, 2), (0.9, 0.1)), Series((1, 2), (0.3, 0.3))
    stages = (Stage("grpo", 1, 2),)
    bounded = trace(Panel("rewards/f/mean", "F", "", "reward", series, spread, "", stages))
    free = trace(Panel("reward", "R", "", "reward", series, spread, "", stages))
    assert bounded.high.values[:2] == pytest.approx((1.0, 0.4)) and bounded.low.values[:2] == pytest.approx((0.6, 0.0))
    assert free.high.values[:2] == pytest.approx((1.2, 0.4)) and free.low.values[:2] == pytest.approx((0.6, -0.2))


def test_ends_are_means_of_a_tenth() -> None:
    assert ends(Series(tuple(range(20)), tuple(float(step) for step in range(20)))) == (0.5, 18.5)
    assert ends(Series((1,), (None,))) is None


@pytest.mark.parametrize(("count", "most"), [(0, 5), (3, 5), (5, 5), (100, 5), (1000, 24), (25, 24)])
def test_completions_are_sampled_evenly(count: int, most: int) -> None:
    rows = [{"step": step} for step in range(count)]
    steps = [row["step"] for row in sample_completions(rows, most)]
    assert len(steps) == min(count, most) and len(set(steps)) == len(steps)
    if count > most:
        gaps = [b - a for a, b in pairwise(steps)]
        assert (steps[0], steps[-1]) == (0, count - 1) and max(gaps) - min(gaps) <= 1


def test_held_out_rows_make_series_of_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": 10, "split": "train", "loss": 0.7, "accuracy": 0.5},
        {"step": 20, "split": "train", "loss": 0.6, "accuracy": 0.6, "pairs_per_s": 12.0},
        {"step": 20, "split": "eval", "loss": 0.65, "accuracy": 0.55},
    ]
    run = run_of(tmp_path, rows)
    assert run.series["loss"] == Series((10, 20), (0.7, 0.6))
    assert run.series["eval/loss"] == Series((20,), (0.65,))
    assert run.stages == (Stage("train", 10, 20),)
    found = {panel.key: panel for panel in panels(run)}
    assert list(found) == ["loss/train", "accuracy", "pairs_per_s"]
    assert found["loss/train"].held_out == Series((20,), (0.65,)) and found["loss/train"].title == "Loss"
    assert found["accuracy"].held_out == Series((20,), (0.55,)) and found["accuracy"].step_range == (10, 20)
    assert found["pairs_per_s"].held_out is None


def test_a_run_shows_the_evaluation_of_its_own_task_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, sft_steps=1, grpo_steps=1)
    (run / "evaluation" / "aaa.json").write_text("no evaluation at all")
    assert load_run(run).evaluation is not None
    (run / "evaluation" / "secret.json").unlink()
    assert load_run(run).evaluation is None


def test_runs_below_a_directory_are_read_with_the_evaluation_of_all(tmp_path: Path) -> None:
    for name in ("b", "a"):
        make_run(tmp_path / name, sft_steps=4, grpo_steps=44)
    make_run(tmp_path / "c", sft_steps=2, grpo_steps=2)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"task": "preference"}))
    (tmp_path / "notes").mkdir()
    run = load_runs(tmp_path, "secret")
    assert list(run.runs) == ["a", "b"] and run.runs["a"].last_step == 48 and run.evaluation is None
    assert [alarm.text[:2] for alarm in run.alarms] == ["a:", "b:"] and not run.series and not run.manifest
    (tmp_path / "evaluation").mkdir()
    for task in ("another", "secret"):
        (tmp_path / "evaluation" / f"{task}.json").write_text(json.dumps({"task": task, "models": {}}))
    assert load_runs(tmp_path, "secret").evaluation == {"task": "secret", "models": {}}
    assert load_runs(tmp_path / "a", "secret").manifest["task"] == "secret"
    with pytest.raises(UserError, match="no such directory"):
        load_runs(tmp_path / "absent", "secret")


def test_panels_of_held_out_metrics_stand_alone(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"step": step, "split": "train", "nll_loss": 1.0 / step} for step in range(1, 5)]
    rows.append({"step": 4, "split": "eval", "nll_loss": 0.5, "tag_recall": 0.9, "tag_fpr_hard": 0.1})
    found = {panel.key: panel for panel in panels(run_of(tmp_path, rows))}
    assert list(found) == ["nll_loss", "eval/tag_recall", "eval/tag_fpr_hard"]
    assert found["eval/tag_recall"].series == Series((4,), (0.9,)) and found["eval/tag_recall"].held_out is None
    assert found["nll_loss"].held_out == Series((4,), (0.5,))


def test_names() -> None:
    assert reward_title("visible_quality_reward_func") == "Visible quality"
    assert reward_title("format") == "Format" and reward_title("_reward_func") == "_reward_func"
    assert is_rate("strict_format_rate") and is_rate("tag_recall") and is_rate("tag_fpr_hard")
    assert is_rate("accuracy_risk") and is_rate("jailbreak_rate_risk") and not is_rate("r2") and not is_rate("ece")
    assert is_count("ties") and is_count("jailbreak_ties_risk") and not is_count("properties")
    assert is_rate("adherence_given_tag") and is_rate("persona_kept") and is_rate("f1")
    assert not is_rate("mean_reward") and not is_rate("generated_words")


def test_reading_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'matplotlib', 'pandas', 'jinja2', 'starlette', 'yaml'}"
    code = f"import sys, utils.series; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
