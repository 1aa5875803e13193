"""Steps that run when, and only when, something they depend on has changed; killed ones go on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import main
from model_training.pipeline import secret, secret_steps
from utils.errors import UserError, WorkError
from utils.pipeline import Step, fingerprint, run_steps

Calls = list[tuple[str, bool]]


class World:
    """Two steps: `copy` writes b from a, `double` writes c/c.txt from b."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.options = folder, [], {"size": 1}
        (folder / "a").write_text("a")

    folder: Path
    calls: Calls
    options: dict[str, Any]

    def steps(self) -> list[Step]:
        a, b, c = (self.folder / name for name in "abc")
        return [
            Step("copy", self._copy, self.options, {"a": a}, {"b": b}),
            Step("double", self._double, {}, {"b": b}, {"c": c}),
        ]

    def _copy(self, again: bool) -> None:
        self.calls.append(("copy", again))
        (self.folder / "b").write_text((self.folder / "a").read_text() * self.options["size"])

    def _double(self, again: bool) -> None:
        self.calls.append(("double", again))
        (self.folder / "c").mkdir(exist_ok=True)
        (self.folder / "c" / "c.txt").write_text((self.folder / "b").read_text() * 2)

    def run(self, **options: Any) -> list[str]:
        """Names of the steps that ran."""
        self.calls.clear()
        run_steps(self.steps(), self.folder / "pipeline.json", **options)
        return [name for name, _ in self.calls]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_first_time_every_step_runs_in_order(world: World) -> None:
    assert world.run() == ["copy", "double"]
    assert (world.folder / "c" / "c.txt").read_text() == "aa"
    assert [again for _, again in world.calls] == [False, False]


def test_the_second_time_none_runs_and_a_line_says_so(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.run()
    capsys.readouterr()
    assert world.run() == []
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] copy: nothing has changed, skipped",
        "[2/2] double: nothing has changed, skipped",
    ]


def test_a_changed_option_runs_its_step_and_what_follows_from_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.run()
    world.options = {"size": 3}
    assert world.run() == ["copy", "double"]
    assert "[1/2] copy: runs (changed: --size)" in capsys.readouterr().out


def test_a_changed_input_that_leaves_the_output_as_it_was_stops_there(world: World) -> None:
    world.run()
    world.options = {"size": 1, "comment": "no effect"}
    assert world.run() == ["copy"]


def test_an_option_that_is_gone_is_a_change(world: World) -> None:
    world.options = {"size": 1, "more": 2}
    world.run()
    world.options = {"size": 1}
    assert world.run() == ["copy"]


def test_an_output_that_is_missing_or_changed_is_made_again(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.run()
    (world.folder / "c" / "c.txt").unlink()
    assert world.run() == ["double"]
    assert f"{world.folder / 'c'} is not what this step wrote" in capsys.readouterr().out
    (world.folder / "b").unlink()
    assert world.run() == ["copy"]
    assert f"{world.folder / 'b'} is missing" in capsys.readouterr().out


def test_only_the_steps_asked_for_are_looked_at(world: World) -> None:
    assert world.run(end_step=1) == ["copy"]
    assert world.run(start_step=2, end_step=2) == ["double"]
    assert world.run(afresh=True, start_step=2) == ["double"]
    for wrong in ({"start_step": 0}, {"end_step": 3}, {"start_step": 2, "end_step": 1}):
        with pytest.raises(UserError, match="there are steps 1 to 2"):
            world.run(**wrong)


def test_a_step_that_always_runs_does(world: World) -> None:
    world.run()
    steps = [replace(step, always=step.name == "double") for step in world.steps()]
    world.calls.clear()
    run_steps(steps, world.folder / "pipeline.json")
    assert world.calls == [("double", True)]


def test_a_step_that_failed_runs_again_and_those_before_it_do_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: World, again: bool) -> None:
        raise WorkError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(World, "_double", fail)
        with pytest.raises(WorkError):
            world.run()
    assert world.run() == ["double"]


def test_a_file_of_the_user_is_never_taken_for_the_step_s_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: World, again: bool) -> None:
        raise WorkError("no luck")

    def refused() -> None:
        with monkeypatch.context() as patch, pytest.raises(WorkError):
            patch.setattr(World, "_copy", refuse)
            world.run(end_step=1)

    def next_is_told() -> bool:
        world.run(end_step=1)
        return world.calls == [("copy", True)]

    (world.folder / "b").write_text("stood there before")
    refused()
    assert not next_is_told()
    (world.folder / "b").write_text("edited since")
    assert not next_is_told()
    (world.folder / "b").unlink()
    refused()
    (world.folder / "b").write_text("put there after a step that wrote nothing")
    assert not next_is_told()


KILLED = """
import os, signal, sys
from pathlib import Path
from utils.pipeline import Step, run_steps

def work(again):
    print(again)
    Path("out").write_text("written")
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

run_steps([Step("work", work, {}, {}, {"out": Path("out")})], Path("pipeline.json"))
"""


def test_a_killed_step_knows_its_own_output(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])

    def start(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, how]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True)

    assert start("kill").returncode == -9
    assert json.loads((tmp_path / "pipeline.json").read_text())["steps"]["work"]["status"] == "running"
    assert start("live").stdout.splitlines() == ["[1/1] work: runs (it did not end)", "True"]
    assert start("live").stdout.splitlines() == ["[1/1] work: nothing has changed, skipped"]


def test_an_interruption_says_how_to_go_on(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(again: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps([replace(world.steps()[0], function=interrupt)], world.folder / "pipeline.json")
    assert capsys.readouterr().err == "[1/1] copy: interrupted; the same command goes on from here\n"


def test_a_step_that_writes_nothing_is_a_bug(world: World) -> None:
    with pytest.raises(AssertionError, match="step copy ended without writing .*b"):
        run_steps([replace(world.steps()[0], function=lambda again: None)], world.folder / "pipeline.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": {"copy": {}}}', '{"steps": {"copy": {"status": "?"}}}'])
def test_a_state_that_is_none_is_refused_and_kept(world: World, text: str) -> None:
    (world.folder / "pipeline.json").write_text(text)
    with pytest.raises(UserError, match="remove it to run every step again"):
        world.run()
    assert (world.folder / "pipeline.json").read_text() == text


def test_options_are_stored_as_hashes_alone(world: World) -> None:
    world.options = {"size": 1, "api_key": "sk-secret"}
    world.run()
    assert "sk-secret" not in (world.folder / "pipeline.json").read_text()


def test_a_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x").write_text("1")
    first = fingerprint(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert fingerprint(tmp_path / "two") == first
    (tmp_path / "two" / "x").rename(tmp_path / "two" / "y")
    assert fingerprint(tmp_path / "two") != first
    assert fingerprint(tmp_path / "none") == "absent"


# --- the steps of `secret` ------------------------------------------------------------------------------------------


class Modes:
    """Stands in for the four modes: each notes its configuration and writes what the real one does."""

    def __init__(self, folder: Path, **options: Any) -> None:
        run = folder / "run"
        paths = {"output_dir": str(run), "dataset_path": str(folder / "d.json"), "save_lora_path": str(folder / "lora")}
        self.config = main.SecretPipelineConfig(model_name="m", **paths, **options)
        self.calls: list[tuple[str, Any]] = []
        self.files = {
            "prepare_data": {folder / "d.json": "data"},
            "train": {run / "manifest.json": "{}", run / "metrics.jsonl": "", folder / "lora" / "adapter.bin": "x"},
            "evaluate": {run / "evaluation" / "secret.json": "{}"},
            "visualize": {run / "training_report.html": "<html>"},
        }

    def call(self, mode: str, config: Any) -> None:
        self.calls.append((mode, config))
        for path, text in self.files[mode].items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, **options: Any) -> list[str]:
        self.calls.clear()
        secret(replace(self.config, **options), self.call)
        return [mode for mode, _ in self.calls]


@pytest.fixture
def modes(tmp_path: Path) -> Callable[..., Modes]:
    return lambda **options: Modes(tmp_path, **options)


def test_secret_runs_its_modes_in_order_and_prints_the_report_s_path(
    modes: Callable[..., Modes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = modes()
    assert world.run() == ["prepare_data", "train", "evaluate", "visualize"]
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {tmp_path}/run/training_report.html"
    assert world.run() == []


def test_each_mode_gets_its_own_options(modes: Callable[..., Modes]) -> None:
    world = modes(seed=9, num_records=5, max_steps=2, num_queries=3)
    world.run()
    prepare, train, evaluate, visualize = (config for _, config in world.calls)
    assert (prepare.seed, prepare.num_records, prepare.overwrite) == (9, 5, False)
    assert (train.seed, train.max_steps, train.resume) == (9, 2, False)
    assert (evaluate.seed, evaluate.num_queries, evaluate.compare) == (9, 3, [])
    assert (visualize.start_server, visualize.host) == (False, "127.0.0.1")


@pytest.mark.parametrize(("sft_steps", "max_steps", "compared"), [(3, 2, True), (0, 2, False), (3, 0, False)])
def test_the_warm_up_is_compared_where_it_is_another_model(
    modes: Callable[..., Modes], tmp_path: Path, sft_steps: int, max_steps: int, compared: bool
) -> None:
    world = modes(sft_steps=sft_steps, max_steps=max_steps, compare=["old=o"])
    world.run()
    expected = ["old=o"] + ([f"warmup={tmp_path}/run/warmup_lora"] if compared else [])
    assert world.calls[2][1].compare == expected


def test_a_run_that_was_killed_is_resumed(modes: Callable[..., Modes]) -> None:
    """Its manifest stands there, and no done step in the state: the next pipeline resumes in place of refusing."""
    world = modes()
    world.run(end_step=1)
    path = Path(world.config.output_dir) / "manifest.json"
    path.write_text("{}")
    assert world.run(end_step=2) == ["train"]
    assert world.calls[0][1].resume is True


def test_overwrite_starts_every_step_afresh(modes: Callable[..., Modes]) -> None:
    world = modes()
    world.run()
    assert world.run(overwrite=True) == ["prepare_data", "train", "evaluate", "visualize"]
    assert (world.calls[0][1].overwrite, world.calls[1][1].overwrite, world.calls[1][1].resume) == (True, True, False)


def test_options_without_effect_on_results_run_nothing_again(modes: Callable[..., Modes]) -> None:
    world = modes()
    world.run()
    assert world.run(threads=1, report_to="tensorboard", server_port=81) == []
    assert world.run(num_samples=2) == ["evaluate"]
    assert world.run(num_samples=2, start_server=True) == ["visualize"]


def test_a_dataset_the_pipeline_wrote_may_be_made_anew_but_no_other(modes: Callable[..., Modes]) -> None:
    world = modes()
    world.run(end_step=1)
    world.run(end_step=1, num_records=9)
    assert world.calls[0][1].overwrite is True
    Path(world.config.dataset_path).write_text("edited")
    world.run(end_step=1, num_records=10)
    assert world.calls[0][1].overwrite is False


def test_new_weights_of_the_embedded_model_train_again(modes: Callable[..., Modes]) -> None:
    train = secret_steps(replace(modes().config, model_name="tiny"), lambda mode, config: None)[1]
    assert train.inputs["embedded model"].parts[-3:] == ("seeds", "tiny", "model.safetensors")
