"""The guardrail pipeline, killed in every step and started again, ends with the numbers of the undisturbed one."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import main
from benchmarks.resume_after_kill import differences_of
from model_training.loading import TINY_PATH

STEPS = ("prepare_data", "train", "evaluate", "visualize")
PLACES = ("meeting.vary_all.jsonl", "meeting.vary_all/checkpoints/checkpoint-2", "guardrail.json")
"""Where the steps before the pictures are killed, with some of their work done."""


class Killed(BaseException):
    """What no handler expects, as a SIGKILL."""


@contextmanager
def killed_at(place: str) -> Iterator[None]:
    """The process dies where it puts that file or directory into place."""

    def dying(real: Any) -> Any:
        def move(source: Any, target: Any, **options: Any) -> None:
            if str(target).endswith(place):
                raise Killed
            real(source, target, **options)

        return move

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, dying(getattr(os, name)))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers that reads text as the embedded one does."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(TINY_PATH)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage(model: Path) -> Iterator[None]:
    """Each training collects garbage; walking all that is imported takes longer than it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def command(root: Path, name: str, model: Path) -> list[str]:
    options = f"--output_dir {root}/{name} --dataset_path {root}/{name}_data --model_name {model} --threads 1"
    options += " --behavior politics meeting --n_samples 10 --test_samples 4 --r 2 --max_steps 4 --eval_steps 2"
    options += " --max_seq_length 512 --adapter_mode single routed svd --max_new_tokens 4 --batch_size 64"
    return ["--task", "guardrail", "--mode", "pipeline", *options.split()]


def test_killed_anywhere_it_goes_on_and_ends_the_same(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped = [f"[{number}/4] {step}: nothing has changed, skipped" for number, step in enumerate(STEPS, 1)]
    assert main.main([*command(tmp_path, "whole", model), "--end_step", str(len(PLACES))]) == 0
    for begun, place in enumerate(PLACES):
        capsys.readouterr()
        with killed_at(place), pytest.raises(Killed):
            main.main(command(tmp_path, "killed", model))
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
        finished = max(begun - 1, 0)
        assert said[:finished] == skipped[:finished] and len(said) == begun + 1
        assert all("runs (it did not end)" in line for line in said[finished:-1])
    assert main.main(command(tmp_path, "killed", model)) == 0
    assert differences_of(tmp_path, "whole", "killed") == []

    capsys.readouterr()
    assert main.main(command(tmp_path, "killed", model)) == 0
    (*said, report) = capsys.readouterr().out.splitlines()
    assert said == skipped and report.startswith("Report: ")
