"""The report of a synthetic experiment, from its result file: numbers beside the truth, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation import synthetic_report
from evaluation.preference_plots import visualize
from evaluation.synthetic_report import contents_of, fixed_points, losses_table, numbers_table, points_table
from tests.evaluation.make_preference_run import make_training
from tests.utils.page import Page
from utils.errors import UserError
from utils.series import load_run
from utils.visualization import render_report

NETWORKS = ("base", "mean_and_variance", "categorical", "classifier")
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40


def result_of(env: str) -> dict[str, Any]:
    """A result whose numbers tell networks and states apart: network k says k/10 of everything."""
    line = [index / 20 + 0.025 for index in range(20)]
    states = [[a] for a in line] if env == "1d" else [[x, y] for x in line[::4] for y in line[::4]]
    numbers: dict[str, dict[str, float]] = {
        "truth": {"spearman_borda_count": 1.0, "r2": 0.34, "auroc_spread": 1.0, "low_mass": 0.5, "high_mass": 0.5}
    }
    for k, name in enumerate(NETWORKS):
        numbers[name] = {"spearman_borda_count": 0.9 + k / 100, "spearman_expected_utility": 0.7 + k / 100}
    for name in NETWORKS[1:3]:
        numbers[name] |= {"r2": 0.3, "auroc_spread" if env == "1d" else "spearman_spread": 0.95}
    if env == "1d":
        numbers["categorical"] |= {"low_mass": 0.47, "high_mass": 0.44}
    learned = {
        name: {"borda_count": [k / 10] * len(states), "rank_spread": [k / 10 + 0.05] * len(states)}
        for k, name in enumerate(NETWORKS, start=1)
    }
    truth = {key: [0.5] * len(states) for key in ("expected_utility", "borda_count", "rank_spread")}
    return {
        "task": "preference",
        "env": env,
        "states": states,
        "truth": truth,
        "learned": learned,
        "numbers": numbers,
        "population_loss": {name: 0.5 + k / 100 for k, name in enumerate(NETWORKS)},
        "least_loss": dict.fromkeys(NETWORKS, 0.48),
    }


def make_experiment(run: Path, env: str, *, done: bool = True) -> Path:
    make_training(run)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"env": env, "model_name": None}
    (run / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {"step": 100 * place + step, "time": 1.0, "split": name, "resumes": 0, "loss": 0.5}
        for place, name in enumerate(NETWORKS)
        for step in (50, 100)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (run / "evaluation").mkdir()
        (run / "evaluation" / "synthetic.json").write_text(json.dumps(result_of(env)))
    return run


@pytest.mark.parametrize("env", ["1d", "2d"])
def test_figure_and_report_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: str
) -> None:
    run = make_experiment(tmp_path, env)

    def draw_figure(directory: Path) -> list[Path]:
        (directory / "figure.png").write_bytes(PNG)
        return [directory / "figure.png"]

    monkeypatch.setattr(synthetic_report, "draw_figure", draw_figure)
    visualize(str(run), start_server=False, server_port=8000, host="127.0.0.1")
    assert capsys.readouterr().out.splitlines() == [str(run / name) for name in ("figure.png", "training_report.html")]
    page = Page((run / "training_report.html").read_text())
    assert page.tags.count("img") == 1
    for expected in (
        f"synthetic experiment {env}",
        "rank correlation 0.900 with Borda count, 0.700 with expected utility",
        "categorical" if env == "2d" else "gives the lower one 0.47",
        "Loss, mean and variance",
        "the least there can be",
        "there is no interval",
    ):
        assert expected in page.text, expected
    for absent in ("Not evaluated yet", "Sampled completions", "Held-out result"):
        assert absent not in page.text, absent


def test_an_experiment_that_has_not_ended_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_experiment(tmp_path, "1d", done=False)
    visualize(str(run), start_server=False, server_port=8000, host="127.0.0.1")
    assert "figure.png: not drawn, the experiment has not ended" in capsys.readouterr().out
    page = Page((run / "training_report.html").read_text())
    assert "has not ended" in page.text and "Loss, classifier" in page.text and "img" not in page.tags


@pytest.mark.parametrize("text", ["{", "[]", '{"numbers": 3}'])
def test_a_broken_result_is_named(tmp_path: Path, text: str) -> None:
    run = make_experiment(tmp_path, "1d")
    (run / "evaluation" / "synthetic.json").write_text(text)
    with pytest.raises(UserError, match=r"synthetic\.json"):
        contents_of(load_run(run), {})


def test_numbers_stand_in_the_column_of_their_network() -> None:
    grid = numbers_table(result_of("1d"))
    rows = dict(grid.rows)
    assert grid.columns == ["Measure", "truth", "base", "mean and variance", "categorical", "classifier"]
    assert rows["Rank correlation with Borda count"] == ["1.000", "0.900", "0.910", "0.920", "0.930"]
    assert rows["Contested states: probability of the lower branch"] == ["0.500", "–", "–", "0.470", "–"]
    assert dict(losses_table(result_of("1d")).rows)["above it"] == ["0.0200", "0.0300", "0.0400", "0.0500"]


def test_fixed_points_are_the_nearest_states() -> None:
    line, square = result_of("1d"), result_of("2d")
    assert [line["states"][index][0] for index in fixed_points(line)] == pytest.approx(
        [0.025, 0.175, 0.375, 0.575, 0.725, 0.825, 0.875, 0.975], abs=0.051
    )
    assert len(set(fixed_points(square))) == 9
    label, cells = points_table(square).rows[0]
    assert label == ", ".join(f"{part:.3f}" for part in square["states"][fixed_points(square)[0]])
    assert cells == ["0.500", "0.500", "0.100", "0.200", "0.300", "0.400", "0.500", "0.250", "0.350"]


def test_the_tables_fit_their_heads(tmp_path: Path) -> None:
    run = load_run(make_experiment(tmp_path, "2d"))
    contents = contents_of(run, {})
    for grid in (grid for section in contents.sections for grid in section.grids):
        assert {len(cells) for _, cells in grid.rows} == {len(grid.columns) - 1}
    assert "At fixed points" in Page(render_report(run, contents=contents)).text
