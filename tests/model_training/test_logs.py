from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_training.logs import CLIPPED_LOGS, DEAD_LOGS, WINDOW, Interrupt, RunLog, alarms, catch_signals
from utils.errors import WorkError
from utils.runs import open_run, read_completions, read_manifest, read_metrics
from utils.terminal import take


def row(**changes: float) -> dict[str, Any]:
    return {
        "frac_reward_zero_std": 0.0,
        "completions/clipped_ratio": 0.0,
        "reward": 1.0,
        "strict_format_rate": 0.9,
    } | changes


def test_a_healthy_run_gives_no_alarm() -> None:
    assert alarms([row(reward=i / 100, strict_format_rate=i / 100) for i in range(2 * WINDOW)]) == {}
    assert alarms([]) == {}


def test_dead_groups_need_every_one_of_the_last_log_events() -> None:
    dead = [row(frac_reward_zero_std=1.0)] * DEAD_LOGS
    assert set(alarms(dead)) == {"dead groups"}
    assert alarms(dead[1:]) == {}
    assert alarms([*dead[1:], row(frac_reward_zero_std=0.5)]) == {}


def test_all_completions_clipped() -> None:
    clipped = [row(**{"completions/clipped_ratio": 1.0})] * CLIPPED_LOGS
    assert set(alarms(clipped)) == {"all clipped"}
    assert alarms([*clipped, row()]) == {}


def test_reward_up_while_the_format_falls() -> None:
    before, after = [row()] * WINDOW, [row(reward=1.2, strict_format_rate=0.8)] * WINDOW
    assert set(alarms(before + after)) == {"reward up, format down"}
    assert alarms(after + before) == {}, "reward down, format up"
    assert alarms(before + [row(reward=1.2, strict_format_rate=0.88)] * WINDOW) == {}, "within the noise"
    assert alarms(before[1:] + after) == {}, "not enough rows yet"


def make_log(tmp_path: Path) -> RunLog:
    run = open_run(tmp_path / "run", task="secret", mode="train", config={})
    log = RunLog(run, "grpo", 10, 40, 2, Interrupt(), is_writer=True)
    log.on_train_begin(None, SimpleNamespace(global_step=0), None)
    return log


ARGS = SimpleNamespace(logging_steps=1, world_size=1)


def log_event(log: RunLog, step: int, **changes: Any) -> None:
    log.on_log(ARGS, SimpleNamespace(global_step=step, max_steps=30), None, logs={"loss": 0.0} | row() | changes)


def test_an_alarm_is_raised_once_as_a_row_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = make_log(tmp_path)
    for step in range(1, DEAD_LOGS + 5):
        log_event(log, step, frac_reward_zero_std=1.0)
    rows = [row for row in read_metrics(log.run) if "alarm" in row]
    assert [row["step"] for row in rows] == [10 + DEAD_LOGS]
    assert rows[0]["alarm"].startswith("dead groups")
    assert capsys.readouterr().err.count("ALARM") == 1


def test_a_resumed_log_remembers_its_window_and_what_it_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_log(tmp_path)
    for step in range(1, DEAD_LOGS + 1):
        log_event(first, step, frac_reward_zero_std=1.0)
    for at, expected in ((DEAD_LOGS, 0), (DEAD_LOGS - 1, 1)):
        capsys.readouterr()
        log = RunLog(first.run, "grpo", 10, 40, 2, Interrupt(), is_writer=True)
        log.on_train_begin(None, SimpleNamespace(global_step=at), None)
        log_event(log, at + 1, frac_reward_zero_std=1.0)
        assert capsys.readouterr().err.count("ALARM") == expected


def test_samples_are_the_first_of_the_event_and_missing_values_are_left_out(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    nothing: dict[str, Any] = {"visible": None, "hidden": None, "failure": "no_tags", "rewards": {}, "total": 0.0}
    log.samples = [{"prompt": "p", "completion": str(i)} | nothing for i in range(5)]
    log_event(log, 1, entropy=None, epoch=0.5)
    log.on_log(ARGS, SimpleNamespace(global_step=1, max_steps=30), None, logs={"train_runtime": 1.0})
    assert [sample["completion"] for sample in read_completions(log.run)] == ["0", "1"]
    rows = read_metrics(log.run)
    assert len(rows) == 1 and rows[0]["step"] == 11
    assert "entropy" not in rows[0] and "epoch" not in rows[0]


@pytest.mark.parametrize("key", ["loss", "grad_norm"])
def test_a_value_that_is_not_finite_stops_the_run_with_its_row_written(key: str, tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with pytest.raises(WorkError, match=f"not finite: {key} at step 12"):
        log_event(log, 2, **{key: float("nan")})
    assert [row.get("alarm") for row in read_metrics(log.run)] == [None, f"not finite: {key} at step 12"]


def test_a_process_that_is_not_the_writer_writes_nothing(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.is_writer = False
    log_event(log, 1)
    assert read_metrics(log.run) == []


def test_one_line_each_ten_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = make_log(tmp_path)
    for step in range(1, 31):
        log_event(log, step)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["20/40", "30/40", "40/40"]
    assert "reward 1" in lines[0] and "strict format 0.9" in lines[0] and "loss" not in lines[0]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_table_takes_the_place_of_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", stream)
    log = make_log(tmp_path)
    for step in range(1, 31):
        log_event(log, step)
    log.on_train_end(None, None, None)
    assert sys.stderr is stream, "the stream is given back"
    text = stream.getvalue()
    assert "step 40 of 40" in text and "strict format" in text and "grpo 20/40" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_the_table_goes_away_however_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", stream)
    run = open_run(tmp_path / "run", task="secret", mode="train", config={})
    with pytest.raises(WorkError), catch_signals() as interrupt:
        log = RunLog(run, "grpo", 0, 30, 0, interrupt, is_writer=True)
        log.on_train_begin(None, SimpleNamespace(global_step=0), None)
        log_event(log, 1, loss=float("nan"))
    assert sys.stderr is stream and "stopped" in stream.getvalue()
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_the_manifest_says_how_many_steps_are_planned(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    assert read_manifest(log.run)["planned_steps"] == 40 and read_manifest(log.run)["status"] == "running"
    run = open_run(tmp_path / "both", task="secret", mode="train", config={"sft_steps": 10, "max_steps": 30})
    warm_up = RunLog(run, "sft", 0, 10, 2, Interrupt(), is_writer=True)
    warm_up.on_train_begin(None, SimpleNamespace(global_step=0), None)
    assert read_manifest(run)["planned_steps"] == 40, "of both stages, while the first is under way"


def test_a_line_says_how_long_it_will_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = make_log(tmp_path)
    take(log.progress, {"split": "grpo", "step": 10, "time": time.time() - 40})
    log_event(log, 10)
    assert re.search(r"grpo 20/40 .* left (1 min 1\d|1 min 2\d) s", capsys.readouterr().err)
