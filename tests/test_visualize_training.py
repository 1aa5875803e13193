"""The command line of reports: one run, several, or one that is followed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import visualize_training
from tests.utils.make_run import make_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [str(make_run(tmp_path / name, sft_steps=4, grpo_steps=4, seed=seed)) for seed, name in enumerate("ab")]


def test_several_runs_make_one_report_in_the_working_directory(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visualize_training.main(["--metrics_dir", *runs, "--best_by", "leak_rate"]) == 0
    told = capsys.readouterr().out
    assert "Leak rate" in told and told.splitlines()[-1] == "Report: comparison_report.html"
    page = (tmp_path / "comparison_report.html").read_text(encoding="utf-8")
    assert "secret · a, b" in page and "Ranked by Leak rate" in page
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
    assert not (tmp_path / "a/training_report.html").exists(), "the runs themselves are left alone"


def test_the_report_of_a_comparison_goes_where_the_user_says(runs: list[str], tmp_path: Path) -> None:
    assert visualize_training.main(["--metrics_dir", *runs, "--output", str(tmp_path / "mine.html")]) == 0
    assert (tmp_path / "mine.html").is_file() and not (tmp_path / "comparison_report.html").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--best_by", "no_such"], "--best_by no_such: no run has this metric"),
        (["--best_by", "visible_words"], "visible_words:max or visible_words:min"),
        (["--mode", "plot"], "--mode plot draws one run"),
        (["--follow"], "--follow goes with one --metrics_dir"),
    ],
)
def test_what_several_runs_cannot_do_is_one_line(
    runs: list[str], options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visualize_training.main(["--metrics_dir", *runs, *options]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_options_that_would_do_nothing_for_one_run_are_refused(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert visualize_training.main(["--metrics_dir", runs[0], "--best_by", "reward"]) == 2
    assert "--best_by ranks several runs" in capsys.readouterr().err
    assert visualize_training.main(["--metrics_dir", runs[0], "--follow", "--mode", "plot"]) == 2
    assert "--follow goes with" in capsys.readouterr().err


def test_a_run_that_has_ended_is_followed_to_its_end_at_once(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert visualize_training.main(["--metrics_dir", runs[0], "--follow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("grpo 8/8  reward") and lines[-1] == f"{runs[0]}: done at step 8"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == before
    failed = make_run(tmp_path / "failed", sft_steps=2, grpo_steps=0, status="failed")
    assert visualize_training.main(["--metrics_dir", str(failed), "--follow"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {failed} failed:")


def test_comparing_and_following_load_no_torch(runs: list[str]) -> None:
    code = (
        "import sys, visualize_training\n"
        f"assert visualize_training.main(['--metrics_dir', *{runs!r}]) == 0\n"
        f"assert visualize_training.main(['--metrics_dir', {runs[0]!r}, '--follow']) == 0\n"
        "print('torch' in sys.modules)\n"
    )
    root = Path(visualize_training.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)}
    )
    assert done.stdout.splitlines()[-1] == "False"
