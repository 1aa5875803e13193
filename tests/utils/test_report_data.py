from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import utils.panels
import utils.series
from tests.utils.make_run import REWARDS, make_run
from utils.columns import read_metrics_table
from utils.report_data import LONGEST_TEXT, report_data
from utils.series import Run, Series, load_run, load_runs


def standard_json(data: object) -> str:
    return json.dumps(data, allow_nan=False)


def chart_of(data: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(chart for chart in data["charts"] if chart["key"] == key)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(make_run(tmp_path_factory.mktemp("run"), sft_steps=30, grpo_steps=60))


def test_a_run_as_the_page_takes_it(run: Run) -> None:
    data = report_data([run])
    standard_json(data)
    about = data["runs"][0]
    assert (about["task"], about["status"], about["step"], about["planned_steps"]) == ("secret", "done", 90, 90)
    assert about["stages"] == [
        {"name": "warm-up", "first_step": 1, "last_step": 30}, {"name": "GRPO", "first_step": 31, "last_step": 90},
    ]  # fmt: skip
    assert about["alarms"][0]["step"] == 71 and about["faults"] == []
    assert {"loss/sft", "reward", "rewards/format/mean", "strict_format_rate", "entropy", "completions/mean_length",
            "completions/clipped_ratio", "frac_reward_zero_std", "learning_rate", "step_time", "tokens_per_s"} <= {
        chart["key"] for chart in data["charts"]}  # fmt: skip


def test_the_band_is_one_standard_deviation_and_stays_in_its_scale(run: Run) -> None:
    line = chart_of(report_data([run]), "reward")["lines"][0]
    step = 40
    place, deviation = line["steps"].index(step), run.series["reward_std"].values[step - 31]
    assert deviation is not None
    assert line["high"][place] - line["values"][place] == pytest.approx(deviation, abs=1e-4)
    assert line["values"][place] - line["low"][place] == pytest.approx(deviation, abs=1e-4)
    bounded = chart_of(report_data([run]), "rewards/format/mean")["lines"][0]
    assert max(bounded["high"]) == 1.0 and min(bounded["low"]) >= 0.0


def test_several_runs_share_a_chart_and_name_their_lines(run: Run) -> None:
    other = replace(run, series={"reward": Series((31, 32), (1.0, None))})
    data = report_data([run, other], ["mine", "other"])
    assert [one["name"] for one in data["runs"]] == ["mine", "other"]
    assert [line["run"] for line in chart_of(data, "reward")["lines"]] == [0, 1]
    assert chart_of(data, "reward")["lines"][1]["values"] == [1.0, None]
    assert [line["run"] for line in chart_of(data, "entropy")["lines"]] == [0]
    assert {row["run"] for row in data["completions"]["rows"]} == {0, 1}


def test_held_out_points_are_a_line_of_their_own(run: Run) -> None:
    series = {"accuracy": Series((1, 2), (0.5, 0.6)), "eval/accuracy": Series((2,), (0.55,))}
    lines = chart_of(report_data([replace(run, series=series)]), "accuracy")["lines"]
    assert [(line["kind"], line["values"]) for line in lines] == [("value", [0.5, 0.6]), ("held_out", [0.55])]


def test_runs_below_a_directory_stand_for_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, sft_steps=3, grpo_steps=0)
    data = report_data([load_runs(tmp_path, "secret")])
    assert [one["name"] for one in data["runs"]] == ["a", "b"]
    assert [line["run"] for line in chart_of(data, "loss/sft")["lines"]] == [0, 1]


def long_run(folder: Path, steps: int) -> Path:
    rows = []
    for step in range(1, steps + 1):
        value = 100.0 if step == 777 else -100.0 if step == 4321 else math.sin(step)
        row = {"step": step, "time": step, "split": "grpo", "resumes": 0, "reward": value, "reward_std": 2.0}
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


def test_a_thinned_line_says_so_and_keeps_its_extremes(tmp_path: Path) -> None:
    data = report_data([load_run(long_run(tmp_path, 9000))])
    line = chart_of(data, "reward")["lines"][0]
    assert line["thinned"] == {"from": 9000, "kept": len(line["steps"]), "how": "min-max"}
    assert len(line["steps"]) <= 4000 and line["steps"] == sorted(line["steps"])
    at = dict(zip(line["steps"], line["values"], strict=True))
    assert at[777] == 100.0 and at[4321] == -100.0 and {1, 9000} <= set(at)
    spreads = {round(high - mean, 2) for high, mean in zip(line["high"], line["means"], strict=True)}
    assert spreads == {2.0}
    assert max(line["means"]) < 40 and chart_of(report_data([load_run(tmp_path)], None, 500), "reward")["lines"][0][
        "thinned"
    ]["from"] == 9000  # fmt: skip


def test_averages_are_made_of_all_points_though_few_are_kept(tmp_path: Path) -> None:
    rows = [{"step": step, "split": "grpo", "kl": 100.0 if step % 100 == 0 else 0.0} for step in range(1, 2001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    series = utils.series.series_of(read_metrics_table(tmp_path / "metrics.jsonl"), 42)["kl"]
    assert series.logged == 2000 and len(series.steps) <= 42 and set(series.numbers()) == {0.0, 100.0}
    ends = utils.panels.ends(series)
    assert ends is not None and ends[0] == pytest.approx(1.0) and ends[1] == pytest.approx(1.0)
    assert utils.panels.smooth(series, 5).values[20] == pytest.approx(1.0)
    again = series.thinned(12)
    assert again.logged == 2000 and len(again.steps) <= 12 and again.averages()[3] == pytest.approx(1.0)


def test_completions_with_their_parts_or_raw_where_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 3, "visible": "v", "hidden": "h", "failure": None, "completion": "whole", "total": 1.5},
        {"step": 4, "visible": None, "hidden": None, "failure": "no_tags", "completion": "raw \ud800 text"},
        {"step": 5, "rewards": {"extra": "NaN", "format": 0.5}, "visible": 7, "prompt": None},
        {"step": 6, "rewards": [1, 2], "prompt": {"a": 1}},
        {"step": 7, "visible": "x" * (LONGEST_TEXT + 5), "hidden": "h"},
    ]
    run = load_run(make_run(tmp_path, completions=rows))
    data = report_data([run])["completions"]
    standard_json(data)
    assert (data["total"], data["kept"]) == (5, 5) and data["rewards"] == [*REWARDS, "extra"]
    accepted, refused, odd, odder, long = data["rows"]
    assert "completion" not in accepted and (accepted["visible"], accepted["total"]) == ("v", 1.5)
    assert refused["completion"] == "raw \ud800 text" and refused["failure"] == "no_tags"
    assert odd["rewards"][-1] is None and odd["rewards"][0] == 0.5 and odd["visible"] == "7" and odd["prompt"] == ""
    assert odder["rewards"] == [None] * 7 and odder["prompt"] == "{'a': 1}"
    assert len(long["visible"]) == LONGEST_TEXT and long["cut"] == 5 and accepted["cut"] is None


def test_of_too_many_completions_those_evenly_over_the_steps(run: Run) -> None:
    data = report_data([run], most_rows=12)["completions"]
    steps = [row["step"] for row in data["rows"]]
    assert (data["total"], data["kept"], len(steps)) == (120, 12, 12) and steps[0] == 31 and steps[-1] == 90


def test_an_empty_run_has_a_payload(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    data = report_data([load_run(tmp_path)])
    assert data["charts"] == [] and data["completions"]["rows"] == [] and data["runs"][0]["step"] == 0
    assert len(data["runs"][0]["faults"]) == 3
