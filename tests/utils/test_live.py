from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import utils.live
from tests.utils.make_run import REWARDS, make_run
from utils.errors import UserError
from utils.live import Follower, files_version, tail
from utils.series import Run, load_run, load_runs

Event = tuple[str, str, Any]


class Clock:
    """A time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(run: Run, mark: str) -> str:
    return f"{mark} step {run.last_step} texts {len(run.completions)}"


def follower_of(directory: Path, load: Callable[[Path], Run] = load_run) -> tuple[Follower, Clock]:
    clock = Clock()
    follower = Follower(directory, shown, load, clock)
    follower.watched = True
    return follower, clock


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", sft_steps=0, grpo_steps=5, alarms=False, status="running", evaluation=False)


def log(run: Path, step: int, split: str = "grpo", **more: object) -> None:
    row = {
        "step": step,
        "time": 1_790_000_100.0 + 3 * step,
        "split": split,
        "resumes": 0,
        "reward": float(step),
        **more,
    }
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def say(run: Path, step: int, text: str, **more: object) -> None:
    row = {"step": step, "resumes": 0, "prompt": text, "visible": "v", "hidden": "h", "failure": None, **more}
    with (run / "completions.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def events(stream: bytes) -> list[Event]:
    """(name, id, data) of each event, as a browser takes them."""
    found = []
    for block in stream.decode("ascii").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


def polled(follower: Follower) -> list[Event]:
    return [one for _, news in follower.poll() for one in events(news)]


def steps_of(event: Event, key: str = "reward") -> list[int]:
    return [step for piece in event[2]["charts"] if piece["key"] == key for step in piece["steps"]]


def prompts_of(event: Event) -> list[str]:
    return [row["prompt"] for row in event[2]["completions"]]


def test_new_rows_come_as_points_and_texts_with_the_progress(run: Path) -> None:
    follower, _ = follower_of(run)
    follower.page()
    assert polled(follower) == []
    log(run, 6, reward_std=0.5)
    log(run, 7)
    log(run, 7, split="eval", reward=0.25)
    say(run, 7, "hostile \ud800 </script>", rewards={"format": "NaN"})
    (name, _, data) = polled(follower)[0]
    pieces = {(piece["key"], piece["kind"]): piece for piece in data["charts"]}
    assert name == "append" and set(pieces) == {("reward", "value"), ("reward", "held_out")}
    value = pieces["reward", "value"]
    assert (value["run"], value["steps"], value["values"]) == (0, [6, 7], [6.0, 7.0])
    assert (value["low"], value["high"]) == ([5.5, None], [6.5, None])
    assert pieces["reward", "held_out"]["values"] == [0.25]
    assert data["completions"][0]["prompt"] == "hostile \ud800 </script>"
    assert data["completions"][0]["rewards"] == [None] * len(REWARDS)
    progress = data["progress"]
    assert (progress["step"], progress["planned_steps"], progress["status"]) == (7, 5, "running")
    assert progress["step_s"] > 0 and polled(follower) == []


def test_in_a_warm_up_the_time_left_is_the_warm_up_s(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=0, grpo_steps=0, status="running")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"sft_steps": 100, "max_steps": 300}
    (run / "manifest.json").write_text(json.dumps(manifest))
    for step in range(1, 41):
        log(run, step, split="sft")
    follower, _ = follower_of(run)
    follower.page()
    found = follower.standing()
    assert found is not None and (found["step"], found["planned_steps"], found["eta_of"]) == (40, 400, "warm-up")
    assert found["eta_s"] == pytest.approx(60 * found["step_s"])


def test_a_viewer_that_comes_back_misses_nothing_and_sees_nothing_twice(run: Path) -> None:
    follower, clock = follower_of(run)
    mark, _ = follower.page()
    log(run, 6)
    say(run, 6, "six")
    first = polled(follower)[0]
    log(run, 7)
    polled(follower)
    log(run, 8)
    (_, of_page, missed), (_, of_first, rest) = (events(follower.greeting(seen)[1])[0] for seen in (mark, first[1]))
    assert steps_of(("", "", missed)) == [6, 7, 8] and prompts_of(("", "", missed)) == ["six"]
    assert steps_of(("", "", rest)) == [7, 8] and prompts_of(("", "", rest)) == [] and of_page == of_first
    assert steps_of(polled(follower)[0]) == [8]  # for those who watched all the time
    restarted, _ = follower_of(run)
    assert steps_of(events(restarted.greeting(first[1])[1])[0]) == [7, 8]
    clock.now += 60
    assert events(follower.greeting(follower.page()[0])[1])[0][0] == "progress"


def test_a_page_made_between_two_polls_and_the_events_fit_together(run: Path) -> None:
    follower, clock = follower_of(run)
    follower.page()
    for step in range(6, 30):
        log(run, step)
        clock.now += 60
        mark, html = follower.page()
        assert f"step {step} " in html
        number, greeting = follower.greeting(mark)
        later = [one for seen, one in follower.poll() if seen > number]
        assert events(greeting)[0][0] == "progress" and later == []


def test_a_torn_line_waits_for_its_end(run: Path) -> None:
    follower, _ = follower_of(run)
    follower.page()
    row = json.dumps({"step": 6, "time": 1.0, "split": "grpo", "resumes": 0, "reward": 1.0})
    for part in (row[:20], row[20:40]):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(part)
        assert polled(follower) == []
    with (run / "metrics.jsonl").open("a") as file:
        file.write(row[40:] + "\nnot json\n")
    assert steps_of(polled(follower)[0]) == [6] and polled(follower) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda run: (run / "manifest.json").write_text((run / "manifest.json").read_text().replace("running", "done")),
        lambda run: ((run / "evaluation").mkdir(), (run / "evaluation" / "secret.json").write_text('{"models": {}}')),
        lambda run: log(run, 6, alarm="dead groups"),
        lambda run: log(run, 3),
        lambda run: log(run, 6, split="another stage"),
        lambda run: say(run, 6, "x", rewards={"a new reward": 1.0}),
        lambda run: list(map(partial(say, run, text="x"), (9, 4))),
        lambda run: (run / "metrics.jsonl").write_text(""),
        lambda run: [act() for act in ((run / "metrics.jsonl").unlink, lambda: log(run, 1))],
        lambda run: log(run, 6, text="x" * (utils.live.LONGEST_TAIL + 1)),
    ],
    ids=["manifest", "evaluation", "alarm", "repeated step", "new stage", "new reward", "older texts", "emptied",
         "another file", "too much"],
)  # fmt: skip
def test_what_cannot_be_appended_makes_the_page_anew(run: Path, change: Callable[[Path], object]) -> None:
    follower, clock = follower_of(run)
    mark, before = follower.page()
    change(run)
    found = polled(follower)
    assert [one[0] for one in found] == ["reload"]
    assert [one[0] for one in events(follower.greeting(mark)[1])] == ["reload"]
    fresh, html = follower.page()
    assert html != before and [one[0] for one in events(follower.greeting(fresh)[1])] == ["progress"]
    clock.now += 100
    assert polled(follower) == []


def test_a_resumed_run_does_not_make_viewers_reload_at_every_step(run: Path) -> None:
    follower, clock = follower_of(run)
    follower.page()
    names = []
    for step in range(2, 6):
        log(run, step, resumes=1)
        clock.now += 1
        names += [one[0] for one in polled(follower)]
    assert names == ["reload"]
    clock.now += utils.live.RELOAD_PAUSE_S
    assert [one[0] for one in polled(follower)] == ["reload"]


@pytest.mark.parametrize("mark", ["", "x", ":", "a:b", "0.0:1.1", "{state}:1", "{state}:9.9.9", "{state}:-1.0",
                                  "{state}:" + "9" * 5000 + ".1", "{state}:\u0661.1"])  # fmt: skip
def test_a_mark_that_is_none_gets_the_page(run: Path, mark: str) -> None:
    follower, _ = follower_of(run)
    state = follower.page()[0].partition(":")[0]
    assert [one[0] for one in events(follower.greeting(mark.format(state=state))[1])] == ["reload"]


def test_a_page_is_made_once_a_change_and_at_most_once_a_second(run: Path) -> None:
    follower, clock = follower_of(run)
    first = follower.page()
    clock.now += 5
    assert follower.page() == first
    log(run, 6)
    second = follower.page()
    assert second != first
    log(run, 7)
    clock.now += 0.9
    assert follower.page() == second
    clock.now += 0.2
    assert follower.page() != second


def test_the_pause_grows_with_the_time_that_a_page_takes(run: Path) -> None:
    clock = Clock()

    def slow(read: Run, mark: str) -> str:
        clock.now += 4
        return shown(read, mark)

    follower = Follower(run, slow, load_run, clock)
    first = follower.page()
    log(run, 6)
    clock.now += 15
    assert follower.page() == first
    clock.now += 2
    assert follower.page() != first


def test_one_poll_whatever_the_number_of_viewers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower, _ = follower_of(run)
    mark, _ = follower.page()
    read: list[str] = []

    def counted(path: Path, start: int, end: int) -> bytes:
        read.append(path.name)
        return tail(path, start, end)

    monkeypatch.setattr(utils.live, "tail", counted)
    polled(follower)
    for _ in range(50):
        follower.greeting(mark)
    assert read == []
    log(run, 6)
    follower.poll()
    assert sorted(read) == ["completions.jsonl"] * 2 + ["metrics.jsonl"] * 2


def test_runs_below_a_directory_are_followed_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, sft_steps=0, grpo_steps=3, alarms=False, status="running")
    follower, _ = follower_of(tmp_path, lambda directory: load_runs(directory, "secret"))
    follower.page()
    log(tmp_path / "b", 4)
    (event,) = polled(follower)
    assert [(piece["run"], piece["steps"]) for piece in event[2]["charts"]] == [(1, [4])]
    assert event[2]["progress"]["run"] == 1 and event[1].count(",") == 1
    make_run(tmp_path / "c", sft_steps=0, grpo_steps=1)
    assert polled(follower)[0][0] == "reload"


def test_a_run_that_is_gone_keeps_its_last_page(run: Path) -> None:
    follower, clock = follower_of(run)
    last = follower.page()
    for name in ("metrics.jsonl", "completions.jsonl", "manifest.json"):
        (run / name).unlink()
    clock.now += 100
    assert follower.page() == last and follower.poll() == []
    assert follower.greeting(last[0])[1].startswith(b"retry: ")


def test_a_run_that_comes_later(tmp_path: Path) -> None:
    follower, clock = follower_of(tmp_path / "run")
    with pytest.raises(UserError, match="no such directory"):
        follower.page()
    assert events(follower.greeting("")[1]) == [] and follower.poll() == []
    make_run(tmp_path / "run", sft_steps=1, grpo_steps=1)
    clock.now += 2
    assert "step 2 " in follower.page()[1]


def test_files_version_does_not_heed_growing_logs(run: Path) -> None:
    version = files_version(run)
    log(run, 6)
    assert files_version(run) == version and files_version(run, ("*.jsonl",)) != files_version(run, ("absent",))
    os.utime(run / "manifest.json", ns=(1, 1))
    assert files_version(run) != version
