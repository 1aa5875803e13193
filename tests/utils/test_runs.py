"""Run directories: two runs never mix, nothing of others is touched, a resumed run reads as one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError, WorkError
from utils.files import append_jsonl, sha256_file
from utils.machine import process_start
from utils.runs import (
    finish_run,
    log_completion,
    log_metrics,
    open_run,
    read_completions,
    read_manifest,
    read_metrics,
)

ROOT = Path(__file__).parents[2]
CONFIG = {"seed": 7, "learning_rate": 1e-4, "max_new_tokens": 64, "resume": False, "threads": None}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_text("[]")
    return path


def _open(run: Path, config: dict[str, Any] | None = None, **options: Any) -> Path:
    return open_run(run, **({"task": "secret", "mode": "train", "config": config or CONFIG} | options))


def _tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- manifest -------------------------------------------------------------------------------------------------------


def test_manifest_says_what_it_takes_to_repeat_the_run(tmp_path: Path, dataset: Path) -> None:
    run = _open(tmp_path / "deep" / "run", dataset_path=dataset)
    manifest = read_manifest(run)
    assert manifest["task"] == "secret"
    assert manifest["mode"] == "train"
    assert manifest["config"] == CONFIG
    assert manifest["seed"] == 7
    assert manifest["dataset"] == {"path": str(dataset), "sha256": sha256_file(dataset)}
    assert manifest["status"] == "running"
    assert manifest["resumes"] == 0
    assert manifest["ended"] is None
    assert manifest["process"]["pid"] == os.getpid()
    assert manifest["versions"]["python"] == sys.version.split()[0]
    assert set(manifest["versions"]) == {"python", "torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    assert set(manifest["hardware"]) == {"host", "platform", "cpu", "cpu_count", "memory_gib", "gpus"}
    assert manifest["hardware"]["memory_gib"] > 0
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert manifest["git_commit"] == (head.stdout.strip() if head.returncode == 0 else None)


def test_no_secret_reaches_the_manifest(tmp_path: Path) -> None:
    config = CONFIG | {"api_key": "sk-1", "hf_token": "sk-2", "judge": {"openai_api_key": "sk-3", "model": "m"}}
    run = _open(tmp_path / "run", config)
    assert "sk-" not in (run / "manifest.json").read_text()
    assert read_manifest(run)["config"] == CONFIG | {"judge": {"model": "m"}}


def test_finish_states_the_end(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    started = read_manifest(run)["started"]
    finish_run(run, "failed", "disk full")
    manifest = read_manifest(run)
    assert (manifest["status"], manifest["reason"]) == ("failed", "disk full")
    assert manifest["ended"] >= started == manifest["started"]


def test_loading_no_heavy_library() -> None:
    code = "import sys, utils.runs, dataset.records; print({'torch', 'pandas', 'datasets'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "set()", result.stderr


# --- which directory ------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_empty_is_refused_and_untouched(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    finish_run(run, "done")
    before = _tree(run)
    with pytest.raises(UserError, match=r"run is not empty \(it holds manifest\.json\).*--resume.*--overwrite"):
        _open(run)
    assert _tree(run) == before


def test_pipeline_file_and_leftovers_do_not_fill_a_directory(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text("{}")
    (tmp_path / ".manifest.json.17-0123abcd.tmp").write_text("{")
    assert read_manifest(_open(tmp_path))["status"] == "running"


def test_runs_below_a_directory_are_no_content_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make demo` leaves outputs/demo, benchmarks/credit.py a folder of runs; `--output_dir outputs` starts beside."""
    _open(tmp_path / "demo")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "pipeline.json").write_text("{}")
    _open(tmp_path / "credit" / "segment-1")
    (tmp_path / "credit" / "data.json").write_text("[]")
    others = _tree(tmp_path)
    _open(tmp_path)
    log_metrics(tmp_path, {"step": 1, "split": "sft"})
    with pytest.raises(UserError, match=r"it holds manifest\.json, metrics\.jsonl\)"):
        _open(tmp_path)
    _open(tmp_path, overwrite=True)
    assert _tree(tmp_path).items() >= others.items()
    assert set(_tree(tmp_path)) - set(others) == {"manifest.json"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["notes/manifest.txt", "notes/a/b/manifest.json", "evaluation/manifest.json", "x.txt"])
def test_whatever_else_a_directory_holds_is_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    holds = Path(name).parts[0]
    with pytest.raises(UserError, match=rf"is not empty: it holds {holds} and no run; choose another --output_dir"):
        _open(tmp_path)
    assert set(_tree(tmp_path)) == {name}


def test_a_file_in_its_place_and_an_unwritable_place(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(UserError, match=r"data\.json is a file, not a directory"):
        _open(dataset)
    with pytest.raises(WorkError, match="cannot write /proc/run"):
        _open(Path("/proc/run"))


def test_missing_dataset_is_refused_before_the_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        _open(tmp_path / "run", dataset_path=tmp_path / "none.json")
    assert not (tmp_path / "run").exists()


def test_overwrite_removes_what_a_run_writes_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _open(tmp_path / "run")
    log_metrics(run, {"step": 1, "split": "sft", "loss": 1.0})
    log_completion(run, {"step": 1, "rewards": {}, "total": 0.0})
    for name in ("checkpoints/checkpoint-1/a", "evaluation/secret.json", "warmup_lora/b", "notes/mine.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    for name in ("loss_curve.png", "reward_components.png", "training_report.html", "holiday.png", "pipeline.json"):
        (run / name).write_text("x")
    (run / ".loss_curve.png.17-0123abcd.tmp").write_text("x")
    first = read_manifest(run)
    _open(run, CONFIG | {"seed": 8}, overwrite=True)
    assert set(_tree(run)) == {"manifest.json", "notes/mine.txt", "holiday.png", "pipeline.json"}
    assert (first["seed"], read_manifest(run)["seed"]) == (7, 8)
    assert read_manifest(run)["resumes"] == 0
    assert capsys.readouterr().err == f"{run}: left in place, since no run wrote it: holiday.png, notes\n"


def test_overwrite_takes_a_link_away_and_leaves_its_target(tmp_path: Path) -> None:
    run, elsewhere = _open(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    (run / "checkpoints").symlink_to(elsewhere)
    _open(run, overwrite=True)
    assert not (run / "checkpoints").is_symlink()
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize("manifest", [None, '{"name": "a web page"}', "[]", "{"])
def test_overwrite_refuses_a_directory_that_is_no_run(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    before = _tree(tmp_path)
    choices: list[dict[str, Any]] = [{"overwrite": True}, {}, {"resume": True}]
    for options in choices:
        with pytest.raises(UserError, match="choose another --output_dir|leave --resume out"):
            _open(tmp_path, **options)
    assert _tree(tmp_path) == before


def test_a_refused_overwrite_removes_nothing(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    log_metrics(run, {"step": 1, "split": "sft"})
    before = _tree(run)
    with pytest.raises(UserError, match="cannot read"):
        _open(run, overwrite=True, dataset_path=tmp_path / "none.json")
    with pytest.raises(UserError, match="exclude each other"):
        _open(run, overwrite=True, resume=True)
    assert _tree(run) == before


def test_overwrite_of_an_empty_directory_starts(tmp_path: Path) -> None:
    assert read_manifest(_open(tmp_path, overwrite=True))["resumes"] == 0


def test_a_killed_removal_cannot_be_resumed_but_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(_: Path) -> None:
        raise KeyboardInterrupt

    run = _open(tmp_path / "run")
    (run / "checkpoints").mkdir()
    log_metrics(run, {"step": 1, "split": "sft"})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            _open(run, overwrite=True)
    with pytest.raises(UserError, match="was being removed by --overwrite"):
        _open(run, resume=True)
    assert read_manifest(_open(run, overwrite=True))["status"] == "running"
    assert set(_tree(run)) == {"manifest.json"}


# --- resume ---------------------------------------------------------------------------------------------------------


def test_resume_counts_and_keeps_the_start(tmp_path: Path, dataset: Path) -> None:
    run = _open(tmp_path / "run", dataset_path=dataset)
    finish_run(run, "interrupted", "Ctrl-C")
    first = read_manifest(run)
    moved = dataset.rename(tmp_path / "moved.json")
    config = CONFIG | {"resume": True, "threads": 2, "report_to": "wandb"}
    _open(run, config, dataset_path=moved, resume=True)
    manifest = read_manifest(run)
    assert manifest["resumes"] == 1
    assert manifest["started"] == first["started"]
    assert (manifest["status"], manifest["reason"], manifest["ended"]) == ("running", None, None)
    assert manifest["config"] == config
    _open(run, config, dataset_path=moved, resume=True)
    assert read_manifest(run)["resumes"] == 2


def test_resume_names_every_option_that_differs(tmp_path: Path, dataset: Path) -> None:
    run = _open(tmp_path / "run", CONFIG | {"betas": (0.9, 0.99)}, dataset_path=dataset)
    before = _tree(run)
    dataset.write_text("[1]")
    with pytest.raises(UserError) as error:
        _open(
            run,
            CONFIG | {"betas": (0.9, 0.99), "seed": 8, "new": 1, "threads": 4},
            dataset_path=dataset,
            resume=True,
        )
    text = str(error.value)
    options = "--new was (absent) and is 1 now; --seed was 7 and is 8 now"
    assert text.startswith(f"cannot resume {run}: {options}; the dataset changed: {dataset} had SHA-256")
    assert _tree(run) == before


def test_resume_wants_a_run_of_the_same_task(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run to resume \(manifest\.json is missing\)"):
        _open(tmp_path / "run", resume=True)
    run = _open(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of task secret, not guardrail"):
        _open(run, task="guardrail", resume=True)


def test_resume_tells_of_other_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _open(tmp_path / "run")
    manifest = read_manifest(run)
    manifest["versions"]["trl"] = "0.0.1"
    (run / "manifest.json").write_text(json.dumps(manifest))
    _open(run, resume=True)
    assert "trl was 0.0.1 and is" in capsys.readouterr().err


# --- who is writing -------------------------------------------------------------------------------------------------

_WRITER = """
import sys, time
from utils.runs import open_run
open_run(sys.argv[1], task="secret", mode="train", config={"seed": 1})
print("ready", flush=True)
time.sleep(60)
"""


def _writer(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(run)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_run_that_is_being_written_is_refused_until_its_process_is_dead(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = _writer(run)
    try:
        choices: list[dict[str, Any]] = [{}, {"resume": True}, {"overwrite": True}]
        for options in choices:
            with pytest.raises(UserError, match=f"is being written by process {process.pid}"):
                _open(run, {"seed": 1}, **options)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet collected by its parent
        assert process_start(process.pid) in ("ended", None)
        _open(run, {"seed": 1}, resume=True)
    finally:
        process.kill()
        process.communicate()
    assert read_manifest(run)["process"]["pid"] == os.getpid()


def test_a_process_number_used_again_is_not_the_writer(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    manifest = read_manifest(run)
    manifest["process"] |= {"pid": os.getppid(), "start": "an earlier boot:1"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(_open(run, resume=True))["resumes"] == 1


def test_another_machines_process_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _open(tmp_path / "run")
    manifest = read_manifest(run)
    manifest["process"]["host"] = "elsewhere.example"
    (run / "manifest.json").write_text(json.dumps(manifest))
    _open(run, resume=True)
    assert f"process {os.getpid()} on elsewhere.example" in capsys.readouterr().err


def test_of_processes_that_start_at_once_one_gets_the_directory(tmp_path: Path) -> None:
    code = _WRITER.replace("open_run(sys", "sys.stdin.read(); open_run(sys")
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    try:
        for process in processes:
            process.stdin.close()
        answers = [process.stdout.readline() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(answers) == ["", "", "", "ready\n"]


# --- rows -----------------------------------------------------------------------------------------------------------


def _logged(run: Path, *rows: tuple[int, str, float]) -> None:
    for step, split, loss in rows:
        log_metrics(run, {"step": step, "split": split, "loss": loss})


def test_metrics_rows_carry_time_and_resumes(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    log_metrics(run, {"step": 3, "split": "grpo", "reward": 0.5})
    (row,) = read_metrics(run)
    assert list(row) == ["step", "time", "split", "resumes", "reward"]
    assert row["resumes"] == 0
    assert row["time"] > 1.7e9


def test_the_newest_rows_of_each_step_are_kept_in_order(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    _logged(run, (1, "sft", 1.0), (2, "sft", 2.0), (3, "grpo", 3.0), (4, "grpo", 4.0))
    log_metrics(run, {"step": 4, "split": "grpo", "alarm": "dead groups"})
    _open(run, resume=True)  # from a checkpoint at step 2, killed again after step 3
    _logged(run, (3, "grpo", 30.0))
    assert [row.get("loss") for row in read_metrics(run)] == [1.0, 2.0, 30.0, 4.0, None]
    _open(run, resume=True)
    _logged(run, (3, "grpo", 300.0), (4, "grpo", 400.0), (5, "grpo", 500.0))
    rows = read_metrics(run)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 300.0), (4, 400.0), (5, 500.0)]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 9


def test_metrics_of_two_splits_at_one_step_stand_side_by_side(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    _logged(run, (1, "sft", 1.0))
    _open(run, resume=True)
    _logged(run, (1, "grpo", 2.0))
    assert [row["loss"] for row in read_metrics(run)] == [1.0, 2.0]


def test_a_diverged_loss_comes_back_as_the_float_it_was(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    log_metrics(run, {"step": 1, "split": "sft", "loss": math.nan, "grad_norm": math.inf, "kl": None, "alarm": "NaN"})
    assert '"loss": "NaN"' in (run / "metrics.jsonl").read_text()
    (row,) = read_metrics(run)
    assert math.isnan(row["loss"])
    assert (row["grad_norm"], row["kl"], row["alarm"]) == (math.inf, None, "NaN")


def test_completions_keep_their_newest_texts_and_number_rewards(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    row = {"step": 1, "completion": "NaN", "rewards": {"format": 1.0, "odd": -math.inf}, "total": math.nan}
    for _ in range(3):
        log_completion(run, row)
    _open(run, resume=True)
    log_completion(run, row | {"completion": "new"})
    log_completion(run, row | {"step": 2})
    rows = read_completions(run)
    assert [(row["step"], row["completion"], row["resumes"]) for row in rows] == [(1, "new", 1), (2, "NaN", 1)]
    assert rows[0]["rewards"] == {"format": 1.0, "odd": -math.inf}
    assert math.isnan(rows[0]["total"])


def test_reading_a_run_with_no_rows_yet_a_torn_one_and_no_run(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    assert read_metrics(run) == []
    assert read_completions(run) == []
    append_jsonl(run / "metrics.jsonl", {"step": 1, "split": "sft", "resumes": 0})
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "spl')
    assert [row["step"] for row in read_metrics(run)] == [1]
    with pytest.raises(UserError, match="nowhere is not a directory"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no run: .*manifest\.json is missing"):
        read_manifest(tmp_path / "nowhere")
