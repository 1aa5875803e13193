from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from utils import machine
from utils.errors import UserError, WorkError
from utils.follow import Tail, follow, new_rows, newest_run, planned_steps
from utils.runs import MANIFEST, METRICS, finish_run, log_metrics, open_run


def make_run(path: Path, **config: Any) -> Path:
    return open_run(path, task="secret", mode="train", config=config)


def log(run: Path, step: int, **values: Any) -> None:
    log_metrics(run, {"step": step, "split": "grpo", "reward": step / 10} | values)


# --- reading ---


def test_each_row_is_read_once_and_a_line_being_written_later(tmp_path: Path) -> None:
    tail = Tail(tmp_path / METRICS)
    assert new_rows(tail) == []
    with tail.path.open("w", encoding="utf-8") as file:
        file.write('{"step": 1}\nno json\n[1]\n{"step": "x"}\n{"step"')
        file.flush()
        assert new_rows(tail) == [{"step": 1}]
        file.write(": 2}\n")
    assert new_rows(tail) == [{"step": 2}] and new_rows(tail) == []


def test_a_file_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    tail = Tail(tmp_path / METRICS)
    tail.path.write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")
    assert len(new_rows(tail)) == 2
    tail.path.write_text('{"step": 9}\n', encoding="utf-8")
    assert new_rows(tail) == [{"step": 9}]


def test_of_a_long_file_the_end_is_read_and_every_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.follow.READ_AT_FIRST", 100)
    tail = Tail(tmp_path / METRICS)
    rows = [{"step": step} | ({"alarm": "x"} if step == 3 else {}) for step in range(1000)]
    tail.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    steps = [row["step"] for row in new_rows(tail)]
    assert steps[0] == 3 and steps[-1] == 999 and 3 < len(steps) < 20
    assert steps[1:] == list(range(steps[1], 1000))


def test_planned_steps_are_those_of_the_stage() -> None:
    manifest = {"config": {"sft_steps": 100, "max_steps": 40}, "planned_steps": 100}
    assert planned_steps(manifest, {"split": "sft"}) == 100
    assert planned_steps(manifest, {"split": "grpo"}) == 140
    assert planned_steps({"config": {"max_steps": 0}, "planned_steps": 359}, {"split": "train"}) == 359
    assert planned_steps({"config": {"max_steps": 50}}, {"split": "train"}) == 50
    assert planned_steps({"config": None}, None) is None


# --- which run ---


def test_the_newest_of_the_runs_below(tmp_path: Path) -> None:
    import os

    for number, name in enumerate(("politics", "meeting")):
        run = make_run(tmp_path / name)
        os.utime(run / MANIFEST, (1e9 + number, 1e9 + number))
    assert newest_run(tmp_path) == tmp_path / "meeting"
    (tmp_path / "politics" / METRICS).write_text("", encoding="utf-8")
    assert newest_run(tmp_path) == tmp_path / "politics"
    assert newest_run(tmp_path / "meeting") == tmp_path / "meeting"


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        newest_run(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        newest_run(tmp_path / "nowhere")


# --- follow ---


class Script:
    """Stands for `time.sleep`: each wait does the next thing to the run."""

    def __init__(self, *events: Any) -> None:
        self.events = list(events)

    def __call__(self, seconds: float) -> None:
        assert self.events, "follow waits though the run has ended"
        self.events.pop(0)()


def test_follows_a_run_to_its_end_in_plain_lines(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", sft_steps=0, max_steps=30), io.StringIO()

    def some(first: int, last: int) -> None:
        for step in range(first, last + 1):
            log(run, step)

    def end() -> None:
        some(16, 30)
        finish_run(run, "done")

    some(1, 1)
    follow(
        run,
        out,
        Script(
            lambda: some(2, 9),
            lambda: some(10, 15),
            lambda: log(run, 15, split="eval", accuracy=0.75),
            lambda: log_metrics(run, {"step": 15, "split": "grpo", "alarm": "dead groups: nothing is learned"}),
            end,
        ),
    )
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("grpo")] == [
        "grpo 1/30",
        "grpo 15/30",
        "grpo 30/30",
    ]
    assert "eval 15/30  accuracy 0.75  reward 1.5" in lines
    assert "ALARM at step 15: dead groups: nothing is learned" in lines
    assert lines[-1] == f"{run}: done at step 30"


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        ("failed", "WorkError: not finite\x1b[2J", r"failed: WorkError: not finite⟨U\+001B⟩"),
        ("interrupted", None, "--resume"),
    ],
)
def test_a_run_that_does_not_get_to_its_end_is_an_error(tmp_path: Path, status: Any, reason: Any, told: str) -> None:
    run = make_run(tmp_path / "run")
    log(run, 3)
    with pytest.raises(WorkError, match=told):
        follow(run, io.StringIO(), Script(lambda: finish_run(run, status, reason)))


def test_a_process_that_is_gone_is_told_from_one_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    log(run, 3)

    def die() -> None:
        monkeypatch.setattr(machine, "process_exists", lambda pid: False)

    with pytest.raises(WorkError, match="its process is gone"):
        follow(run, io.StringIO(), Script(lambda: None, die))


def test_the_next_run_of_the_same_process_is_followed(tmp_path: Path) -> None:
    import os

    first, out = make_run(tmp_path / "first"), io.StringIO()
    log(first, 1)

    def begin_second() -> None:
        log(make_run(tmp_path / "second"), 7)
        for file in (tmp_path / "second").iterdir():
            os.utime(file, (4e9, 4e9))

    def end_second() -> None:
        finish_run(tmp_path / "second", "failed", "of the second")
        os.utime(tmp_path / "second" / MANIFEST, (4e9, 4e9))
        (tmp_path / "second" / MANIFEST).write_text(
            json.dumps(json.loads((tmp_path / "second" / MANIFEST).read_text()) | {"process": None}), encoding="utf-8"
        )

    with pytest.raises(WorkError, match="of the second"):
        follow(tmp_path, out, Script(lambda: finish_run(first, "done"), begin_second, end_second))
    assert f"{first}: done at step 1" in out.getvalue() and "grpo 7" in out.getvalue()


def test_a_run_without_manifest_or_rows_does_not_fall_over(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text("", encoding="utf-8")

    def end() -> None:
        (tmp_path / MANIFEST).write_text('{"status": "done", "process": 5, "config": []}', encoding="utf-8")

    out = io.StringIO()
    follow(tmp_path, out, Script(end))
    assert out.getvalue() == f"{tmp_path}: done at step 0\n"
