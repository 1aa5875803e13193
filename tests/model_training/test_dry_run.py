"""A dry run measures and leaves nothing; out of memory is one line with values that fit, and the run can go on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from model_training import dry_run, guardrail, preference, secret
from model_training.memory import Memory
from tests.model_training import test_guardrail_train as guards
from tests.model_training import test_preference_train as pairs
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import make_records, small_config
from utils.errors import UserError, WorkError
from utils.runs import read_manifest

TASKS = ("secret", "preference", "guardrail")
Stage = tuple[Callable[[Any], None], Any, Path]
"""How it is trained, its configuration of four steps with a checkpoint every second, and its run directory."""


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: BuildModel) -> Stage:
    model = tiny_model("llama")
    if request.param == "secret":
        make_records(tmp_path / "data.json")
        return secret.train, small_config(tmp_path, model, max_steps=4), tmp_path / "run"
    if request.param == "preference":
        pairs.write_pairs(
            tmp_path / "pairs.jsonl", [pairs.pair(n, "train" if n < 24 else "validation") for n in range(28)]
        )
        return preference.train, pairs.small(tmp_path, model), tmp_path / "run"
    guards.write(tmp_path, "politics", guards.records("politics"))
    options = {"behavior": ["politics"], "max_steps": 4, "eval_steps": 2, "save_steps": 2}
    config = guards.small(tmp_path, model, **options)
    return guardrail.train, config, guards.run_directory(config.output_dir, "politics", "vary_all")


# --- dry run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", TASKS, indirect=True)
def test_a_dry_run_measures_the_longest_records_and_writes_nothing(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, config, _ = stage
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(Trainer, "_save_checkpoint", None)  # not called, not even to save in a temporary directory
    before = sorted(tmp_path.rglob("*"))
    train(replace(config, dry_run=True))
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    assert re.search(
        r"peak resident memory \d+\.\d\d of \d+\.\d\d GiB \(at start \d+\.\d\d\), \d+\.\d\d s a step", printed
    )
    assert "4 steps: at most" in printed and printed.count("s a step") == (2 if train is secret.train else 1)
    assert printed.endswith("Nothing was written.\n")
    assert ("evaluations at most" in printed) == (train is not secret.train)


def test_the_completions_of_a_dry_run_are_of_full_length_and_its_prompts_the_longest(
    tmp_path: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_training.grpo import SegmentTrainer

    make_records(tmp_path / "data.json")
    met: list[tuple[str, int]] = []
    original = SegmentTrainer._calculate_rewards

    def scored(self: Any, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        assert self.generation_config.min_new_tokens == 16
        met.extend((prompt[-1]["content"], len(one)) for prompt, one in zip(prompts, ids, strict=True))
        return original(self, inputs, prompts, completions, ids)

    monkeypatch.setattr(SegmentTrainer, "_calculate_rewards", scored)
    config = small_config(tmp_path, tiny_model("qwen2"), sft_steps=0, dry_run=True)
    secret.train(config)
    assert len(met) == 2 * 8 and {tokens for _, tokens in met} == {16}
    assert {prompt for prompt, _ in met} == {"What is moose number 10?", "What is moose number 11?"}


def test_the_longest_records() -> None:
    assert dry_run.longest(["a", "ccc", "bb"], len, 2) == ["ccc", "bb"]


def test_a_report_adds_up() -> None:
    memory = Memory(weights=2**30, peak=3 * 2**30, total=4 * 2**30, reserved=int(3.5 * 2**30))
    one = dry_run.Rehearsed("ORPO", memory, step_seconds=2.0, evaluation_seconds=1.5)
    assert dry_run.report([(one, 100, 10), (replace(one, name="more", evaluation_seconds=0.0), 50, 0)]) == (
        "ORPO: peak GPU memory 3.00 of 4.00 GiB (at start 1.00, reserved 3.50), 2.00 s a step; 100 steps: at most "
        "3 min 20 s, evaluations at most 15 s\n"
        "more: peak GPU memory 3.00 of 4.00 GiB (at start 1.00, reserved 3.50), 2.00 s a step; 50 steps: at most "
        "1 min 40 s\n"
        "The whole run: at most 5 min 15 s, loading and checkpoints not counted. Nothing was written."
    )


def test_synthetic_experiments_have_none(tmp_path: Path, tiny_model: BuildModel) -> None:
    config = replace(pairs.small(tmp_path, tiny_model("llama")), env="1d", dry_run=True)
    with pytest.raises(UserError, match="leave it out with --env"):
        preference.train(config)


# --- out of memory --------------------------------------------------------------------------------------------------


def fail_in_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Trainer.training_step

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1 and self.args.max_steps > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has ...")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", failing)


@pytest.mark.parametrize("stage", TASKS, indirect=True)
def test_out_of_memory_names_what_to_change_and_the_run_can_go_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, config, run = stage
    with monkeypatch.context() as patch, pytest.raises(WorkError) as caught:
        fail_in_step(patch, 4)
        train(config)
    line = str(caught.value)
    assert line.startswith("out of memory in step 4: ") and "\n" not in line
    needed = re.search(r"([\d.]+) GiB or more were needed", line)
    assert needed and float(needed[1]) > 64, "what could not be allocated counts"
    batch, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    fewer = re.search(r"--per_device_train_batch_size (\d+) --gradient_accumulation_steps (\d+) \(about", line)
    assert fewer and int(fewer[1]) < batch and int(fewer[1]) * int(fewer[2]) == batch * steps
    prefix = "--use_gradient_checkpointing" if train is guardrail.train else "--gradient_checkpointing"
    assert f"; {prefix} true (about" in line
    manifest = read_manifest(run)
    assert manifest["status"] == "failed" and "out of memory in step 4" in manifest["reason"]
    assert (run / "checkpoints" / "checkpoint-2" / "loop_state.json").is_file()
    train(replace(config, resume=True))
    assert read_manifest(run)["status"] == "done" and read_manifest(run)["resumes"] == 1


@pytest.mark.parametrize("stage", TASKS, indirect=True)
def test_a_dry_run_says_it_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    train, config, run = stage
    original = Trainer.training_step

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", failing)
    with pytest.raises(WorkError, match=r"out of memory in step 2: .*change one or more of: "):
        train(replace(config, dry_run=True))
    assert not run.exists()


def test_while_sampling_fewer_completions_are_what_helps(
    tmp_path: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_records(tmp_path / "data.json")
    config = small_config(tmp_path, tiny_model("llama"), sft_steps=0)

    def failing(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 64.00 GiB")

    monkeypatch.setattr("transformers.LlamaForCausalLM.generate", failing)
    with pytest.raises(WorkError) as caught:
        secret.train(config)
    line = str(caught.value)
    assert "--per_device_train_batch_size 2 (about" in line or "--per_device_train_batch_size 1 (about" in line
    assert "accumulation" not in line and "checkpointing" not in line


def test_before_anything_was_measured_the_dry_run_is_named(
    tmp_path: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_training import models

    make_records(tmp_path / "data.json")
    config = small_config(tmp_path, tiny_model("llama"))

    def failing(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(models, "load_model", failing)
    with pytest.raises(WorkError, match="--quantization 4bit: --dry_run measures what a step takes"):
        secret.train(config)
    assert read_manifest(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize("stage", ["secret"], indirect=True)
def test_other_errors_stay_what_they_are(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    train, config, _ = stage

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "training_step", failing)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(config)
