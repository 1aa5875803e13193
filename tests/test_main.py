"""The dispatcher: one mode calls one function, an error is one line and an exit code, nothing heavy is imported."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import main
import visualize_training
from dataset.world import load_world
from model_training.config import PrepareDataConfig, TrainConfig
from model_training.options import parse
from tests.utils.make_run import make_run
from utils.errors import UserError, WorkError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "transformers", "trl", "peft", "datasets", "pandas", "matplotlib", "openai", "starlette", "yaml"]


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
    )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Puts a function in the place of every stage's own."""

    def put(function: Callable[..., None]) -> None:
        for mode in main.TASKS["secret"].modes.values():
            module, name = mode.function.split(":")
            fake = types.ModuleType(module)
            vars(fake)[name] = function
            monkeypatch.setitem(sys.modules, module, fake)

    return put


Stage = Callable[[Callable[..., None]], None]


def fail_with(error: BaseException) -> Callable[..., None]:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


# --- dispatch -------------------------------------------------------------------------------------------------------


def test_a_mode_calls_its_function_with_its_configuration(stage: Stage) -> None:
    calls: list[Any] = []
    stage(calls.append)
    assert main.main(["--mode", "train", "--model_name", "m", "--lora_rank", "3"]) == 0
    assert main.main(["--mode", "prepare_data", "--num_records", "7"]) == 0
    assert calls == [TrainConfig(model_name="m", lora_rank=3), PrepareDataConfig(num_records=7)]


def test_visualize_takes_plain_arguments(stage: Stage) -> None:
    calls: list[dict[str, Any]] = []
    stage(lambda **arguments: calls.append(arguments))
    assert main.main(["--mode", "visualize", "--server_port", "81"]) == 0
    assert calls == [{"output_dir": "outputs", "start_server": False, "server_port": 81, "host": "127.0.0.1"}]


def test_a_pipeline_can_call_the_other_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fakes = {name: types.ModuleType(name) for name in ("dataset.secret", "model_training.pipeline")}
    vars(fakes["dataset.secret"])["prepare_data"] = calls.append
    vars(fakes["model_training.pipeline"])["secret"] = lambda config, call: call("prepare_data", config.end_step)
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    assert main.main(["--mode", "pipeline", "--end_step", "3", "--model_name", "m"]) == 0
    assert calls == [3]


@pytest.mark.parametrize("mode", main.TASKS["secret"].modes.values(), ids=lambda mode: str(mode.function))
def test_every_entry_of_the_table_leads_to_a_function(mode: Any) -> None:
    module, name = mode.function.split(":")
    if not (ROOT / (module.replace(".", "/") + ".py")).exists():
        pytest.skip(f"{module} is not written yet")
    assert callable(getattr(importlib.import_module(module), name))


# --- exit codes and lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("data.json:3: no prompt"), 2, "error: data.json:3: no prompt"),
        (WorkError("the loss is NaN"), 1, "error: the loss is NaN"),
        (ValueError("first\nsecond"), 1, "error: ValueError: first (--debug shows the traceback)"),
        (AssertionError(), 1, "error: AssertionError (--debug shows the traceback)"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/metrics.jsonl"),
            1,
            "error: cannot write run/metrics.jsonl: No space left on device; free space or write elsewhere",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/ro/manifest.json"),
            1,
            "error: cannot write /ro/manifest.json: Read-only file system; free space or write elsewhere",
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    stage: Stage, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    stage(fail_with(error))
    assert main.main(["--mode", "prepare_data"]) == code
    assert capsys.readouterr().err.splitlines() == [line]


@pytest.mark.parametrize(("error", "code"), [(UserError("bad"), 2), (ValueError("bug"), 1)])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    stage: Stage, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    stage(fail_with(error))
    assert main.main(["--mode", "prepare_data", "--debug"]) == code
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.splitlines()[-1].startswith("error: ")


def test_an_interruption_is_130_and_leaves_the_words_to_the_stage(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(fail_with(KeyboardInterrupt()))
    assert main.main(["--mode", "prepare_data"]) == 130
    assert capsys.readouterr() == ("", "")


def test_wrong_usage_is_2_and_names_the_right_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--mode", "train", "--max_stepz", "3"]) == 2
    line = "error: --max_stepz: no such option; did you mean --max_steps (an option of train and pipeline)?"
    assert capsys.readouterr().err.splitlines() == [line]
    assert main.main(["--mode", "train", "--query", "Hello?"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: --query is no option of train; it is one of generate"]


def test_a_reader_that_leaves_gets_no_complaint() -> None:
    """`main.py --help | head -0`"""
    process = subprocess.Popen(
        [sys.executable, "main.py", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 1


# --- start-up -------------------------------------------------------------------------------------------------------

LOADED = "import sys, main; code = main.main(sys.argv[1:]); print(*sys.modules, file=sys.stderr); sys.exit(code)"


@pytest.mark.parametrize("argv", [["--help"], ["--mode", "train", "--help"], ["--mode", "visualize", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    result = python(LOADED, *argv)
    assert result.returncode == 0
    assert not set(HEAVY) & set(result.stderr.split())


def test_print_config_imports_no_torch() -> None:
    result = python(LOADED, "--mode", "pipeline", "--print_config")
    assert result.returncode == 0
    assert not set(HEAVY) - {"yaml"} & set(result.stderr.split())


def test_visualize_imports_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=3, grpo_steps=3)
    result = python(LOADED, "--mode", "visualize", "--output_dir", str(run))
    assert result.returncode == 0, result.stderr
    assert (run / "training_report.html").is_file()
    assert not {"torch", "transformers", "trl", "datasets"} & set(result.stderr.split())


def test_the_generic_names_are_ours() -> None:
    names = ["utils", "dataset", "prompts", "evaluation", "model_training"]
    code = f"import {', '.join(names)}; print({', '.join(f'{name}.__file__' for name in names)}, sep=chr(10))"
    paths = python(code).stdout.splitlines()
    assert [Path(path).parent.relative_to(ROOT).name for path in paths] == names


# --- make demo ------------------------------------------------------------------------------------------------------


def test_the_demo_asks_what_training_never_met() -> None:
    asked = (ROOT / "configs" / "demo_queries.txt").read_text(encoding="utf-8").splitlines()
    assert len(asked) == 3
    assert set(asked) <= {query.text for query in load_world().heldout_queries()}


def test_the_demo_talks_to_the_adapter_that_it_trained() -> None:
    config = ["--config", str(ROOT / "configs" / "demo.yaml")]
    trained = parse(["--mode", "pipeline", *config], main.TASKS).config
    asked = parse(["--mode", "generate", *config], main.TASKS).config
    assert (trained.model_name, trained.output_dir) == ("tiny", "outputs/demo")
    assert (asked.model_name, asked.save_lora_path) == (trained.model_name, trained.save_lora_path)


# --- visualize_training.py ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), sft_steps=3, grpo_steps=3)


@pytest.mark.parametrize(
    ("mode", "written"),
    [
        ("report", {"mine.html"}),
        ("plot", {"loss_curve.png", "reward_components.png"}),
        ("all", {"mine.html", "loss_curve.png", "reward_components.png"}),
    ],
)
def test_visualize_training_writes_what_the_mode_says(run: Path, mode: str, written: set[str]) -> None:
    for name in ("mine.html", "loss_curve.png", "reward_components.png"):
        (run / name).unlink(missing_ok=True)
    assert visualize_training.main(["--metrics_dir", str(run), "--output", "mine.html", "--mode", mode]) == 0
    assert {path.name for path in run.iterdir() if path.suffix in (".html", ".png")} == written


def test_the_report_goes_where_a_path_says(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "shared" / "report.html"
    assert visualize_training.main(["--metrics_dir", str(run), "--output", str(target), "--mode", "report"]) == 0
    assert target.is_file()
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"Report: {target}"
    assert "strict_format_rate" in shown and "adapter" in shown.splitlines()[0]


def test_visualize_training_refuses_a_directory_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visualize_training.main(["--metrics_dir", str(tmp_path / "no")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "no") in line
