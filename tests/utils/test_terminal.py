from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from utils.terminal import (
    Progress,
    is_live,
    line_of,
    live_view,
    plain_line,
    seconds_a_step,
    seconds_left,
    shown_metrics,
    spark,
    take,
    trend,
    view,
)


def row(step: int, split: str = "grpo", **values: Any) -> dict[str, Any]:
    return {"step": step, "time": 1000.0 + 2 * step, "split": split, "resumes": 0, "reward": step / 10} | values


def progress_of(*rows: dict[str, Any], planned: int | None = 40) -> Progress:
    progress = Progress("runs/a", "secret", planned)
    for one in rows:
        take(progress, one)
    return progress


def drawn(progress: Progress, now: float = 1100.0, width: int = 100, ascii_only: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view(progress, now, ascii_only))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


# --- what is known ---


def test_pace_and_time_left_are_those_of_the_stage_under_way() -> None:
    warm_up = [row(step, "sft", time=900.0 + step) for step in range(1, 11)]
    progress = progress_of(*warm_up, *(row(step) for step in range(11, 21)))
    assert progress.split == "grpo" and progress.step == 20
    assert seconds_a_step(progress.rows) == 2
    assert seconds_left(progress) == 40
    assert seconds_left(progress_of(row(1), planned=40)) is None, "one row tells no pace"
    assert seconds_left(progress_of(row(1), row(2), planned=None)) is None


def test_the_pause_before_a_resume_is_no_part_of_the_pace() -> None:
    rows = [row(1), row(2), row(3, time=9000.0, resumes=1), row(4, time=9004.0, resumes=1)]
    assert seconds_a_step(rows) == 3


def test_a_resumed_run_takes_back_the_steps_it_repeats() -> None:
    progress = progress_of(row(1), row(2), row(3), row(2, resumes=1, reward=7.0))
    assert [(one["step"], one["reward"]) for one in progress.rows] == [(1, 0.1), (2, 7.0)]


@pytest.mark.parametrize("step", [None, "3", 1.5, True])
def test_a_row_without_a_step_does_not_count(step: object) -> None:
    progress = progress_of({"step": step, "split": "sft", "loss": 1.0})
    assert progress.rows == () and progress.started is None


def test_held_out_rows_and_alarms_stand_apart() -> None:
    progress = progress_of(
        row(1, "train"), row(1, "eval", accuracy=0.8), {"step": 1, "split": "train", "alarm": "dead\nrewards"}
    )
    assert len(progress.rows) == 1 and progress.held_out["accuracy"] == 0.8
    assert progress.alarms == ((1, "dead rewards"),)


def test_a_trend_is_steady_within_its_noise() -> None:
    noise = [0.0, 1.0] * 10
    assert trend(noise) == "steady" == trend([*noise[:-2], 1.0, 1.0])
    assert trend([value / 100 for value in range(20)]) == "up"
    assert trend([-value / 100 for value in range(20)]) == "down"
    assert trend([5.0] * 20) == "steady"
    assert trend([1.0, 2.0, 3.0]) == ""
    assert trend([*range(100), *noise]) == "steady", "only the last ones count"


def test_small_bars() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert spark([3.0, 3.0]) == "▁▁" and spark([]) == ""
    assert len(spark([float(value) for value in range(1000)], 16)) <= 16


def test_grpo_shows_no_loss() -> None:
    assert shown_metrics({"split": "grpo", "loss": 0.0, "reward": 1.0, "entropy": None}) == ["reward"]
    assert shown_metrics({"split": "sft", "loss": 2.0}) == ["loss"]


# --- plain lines ---


def test_a_plain_line() -> None:
    line = plain_line({"split": "grpo", "step": 5, "reward": 4.51234, "strict_format_rate": float("nan")}, 40, 125.0)
    assert line == "grpo 5/40  reward 4.512  strict format -  left 2 min 05 s"
    assert plain_line({"split": "train", "step": 5, "loss": 1.0}, None) == "train 5  loss 1"


def test_a_line_of_a_file_can_neither_leave_its_line_nor_command_the_terminal() -> None:
    assert line_of("a\nb\x1b[2J\r\u202e\udc80") == "a b⟨U+001B⟩[2J⟨U+000D⟩⟨U+202E⟩⟨U+DC80⟩"
    line = plain_line({"split": "\x1b]0;owned\x07\n", "step": 1}, None)
    assert "\x1b" not in line and "\x07" not in line and "\n" not in line


# --- the view ---


def test_the_view_shows_progress_values_trend_and_alarms() -> None:
    rows = [row(step, strict_format_rate=0.5) for step in range(1, 21)]
    text = drawn(progress_of(*rows, {"step": 20, "split": "grpo", "alarm": "dead groups: [bold]x[/bold]"}), now=1041.0)
    assert "secret · runs/a · GRPO" in text and "step 20 of 40" in text and "50%" in text
    assert "left about 40 s" in text and "2 s a step" in text
    assert "reward" in text and "1.55" in text and "up" in text and "steady" in text
    assert "1 alarm, the last at step 20: dead groups: [bold]x[/bold]" in text, "markup of a file is text"
    assert "held-out" not in text


def test_the_view_fits_a_narrow_terminal_and_one_without_unicode() -> None:
    progress = progress_of(*(row(step, strict_format_rate=0.5) for step in range(1, 41)), row(40, "eval", accuracy=0.5))
    text = drawn(progress, width=60, ascii_only=True)
    assert max(map(len, text.splitlines())) <= 60
    assert "held-out" in text and "accuracy" in text
    assert not set("▁▂▃▄▅▆▇█·") & set(text)


def test_the_view_of_a_run_that_says_nothing_yet_and_of_one_gone_silent() -> None:
    assert "waiting for the first log event" in drawn(Progress("runs/a"))
    assert "no log event for 9 min" in drawn(progress_of(row(1), row(2)), now=1004.0 + 560)
    done = progress_of(row(1), row(2))
    done.status = "failed"
    assert "failed" in drawn(done) and "left" not in drawn(done)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_only_a_terminal_that_can_move_its_cursor_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert is_live(Terminal()) and not is_live(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(Terminal())


def test_the_live_view_leaves_its_last_state_and_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream, progress = Terminal(), progress_of(row(1), row(2))
    with live_view(progress, stream) as refresh:
        take(progress, row(3))
        refresh()
        progress.status = "done"
    text = stream.getvalue()
    assert "step 3 of 40" in text and "done" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"
    with pytest.raises(ZeroDivisionError), live_view(progress_of(row(1)), stream):
        raise ZeroDivisionError
    assert "stopped" in stream.getvalue() and stream.getvalue().count("\x1b[?25h") == 2


def test_a_terminal_that_goes_away_does_not_end_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Terminal):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Gone()
    with live_view(progress_of(row(1)), stream) as refresh:
        stream.gone = True
        refresh()


def test_what_is_printed_meanwhile_goes_where_it_would_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets its lines as ever; on the terminal they stand above the table, whole."""
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", file)
    with live_view(progress_of(row(1)), terminal):
        print("to the file")
        print("to the terminal", file=sys.stderr)
    assert file.getvalue() == "to the file\n"
    assert "to the terminal\n" in terminal.getvalue() and "to the file" not in terminal.getvalue()
    assert sys.stdout is file and sys.stderr is terminal
