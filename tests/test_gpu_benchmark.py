from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_steps
from benchmarks.gpu_steps import STEPS, Sizes, make_model, step_of

SIZES = {"texts": 4, "prompt_tokens": 60, "answer_tokens": 4, "group": 4}
SMALL = ["--shape", "tiny", *(word for name, size in SIZES.items() for word in (f"--{name}", str(size)))]
RUN = ["--steps", "1", "--warm_up", "1", "--repeats", "2"]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def run(part: str, way: str) -> dict[str, Any]:
        options = {"checkpointing": "on", "steps": 1, "warm_up": 1}
        return gpu.measure(argparse.Namespace(run=[part, way], shape="tiny", **SIZES, **options))

    monkeypatch.setattr(gpu, "in_own_process", run)


def test_every_step_is_measured_and_one_table_says_so(
    in_this_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", *SMALL, *RUN, "--json", str(file)])
    gpu.main()
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = {(row["part"], row["way"]): row for row in found["rows"]}
    assert rows.keys() == {(part, way) for part, ways in STEPS.items() for way in ways}
    assert all(row["tokens_per_s"] > 0 and len(row["runs"]) == 2 for row in rows.values())
    assert len(rows["orpo", "ours"]["speed"]) == 2 and "speed" not in rows["orpo", "TRL"]
    assert found["versions"]["torch"] == torch.__version__ and found["machine"]["device"]
    printed = capsys.readouterr().out
    assert all(f"{part:8}{way}" in printed for part, way in rows) and "LoRA r 16; 4 texts a step" in printed


def test_without_trl_ours_is_measured_alone(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "model_training.group_log_probs", raising=False)
    arguments = argparse.Namespace(parts=["grpo", "orpo", "reward"], repeats=1)
    plain, grpo, orpo_trl, orpo, reward_trl, reward = gpu.rows_of(arguments)
    assert orpo_trl["skipped"] == "not measured: trl.experimental is missing here"
    assert reward_trl["skipped"] == "not measured: trl is missing here"
    assert all(row["tokens_per_s"] > 0 for row in (plain, grpo, orpo, reward))
    assert "speed" in grpo and "speed" not in orpo


@pytest.mark.parametrize("part", ["grpo", "orpo", "reward", "sft"])
def test_both_ways_have_the_same_loss(part: str) -> None:
    """So they do the same work on the same texts."""
    losses = []
    for way in STEPS[part].values():
        model = make_model("tiny", part, "cpu", torch.float32, checkpointing=False)
        losses.append(way(model, Sizes(**SIZES), "cpu", torch.float32).loss().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_log_probabilities_without_trl_are_trl_s(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, ids = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    of_trl = gpu_steps._selected(logits, ids)
    monkeypatch.setitem(sys.modules, "trl.trainer.utils", None)
    assert torch.allclose(gpu_steps._selected(logits, ids), of_trl, atol=1e-6)
    assert torch.allclose(of_trl, logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0], atol=1e-6)


def test_tokens_are_counted_by_hand() -> None:
    groups = [([1] * 10, [[1] * 2, [1] * 4]), ([1] * 6, [[1] * 3, [1] * 1])]
    shared, plain = (step_of(lambda: torch.tensor(0.0), groups, is_shared, "answers") for is_shared in (True, False))
    assert shared.text_tokens == plain.text_tokens == plain.layer_tokens == 12 + 14 + 9 + 7
    assert shared.layer_tokens == 16 + 10 and shared.head_tokens == plain.head_tokens == 10
    assert shared.attended == pytest.approx((16 * 16 + 10 * 10) / 26)
    assert step_of(lambda: torch.tensor(0.0), groups, True, "shared").head_tokens == 26


def test_flops_by_hand() -> None:
    """Two layers of width 64: projections 64 x (64 + 32 + 32 + 64), three of 64 x 128, two norms of 64."""
    model = make_model("tiny", "orpo", "cpu", torch.float32, checkpointing=False)
    step = gpu_steps.Step(lambda: torch.tensor(0.0), text_tokens=9, layer_tokens=7, head_tokens=3, attended=5.0)
    base = 2 * (64 * 192 + 3 * 64 * 128 + 2 * 64)
    lora = 2 * 16 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    attention = 12 * 2 * 64 * 5
    assert gpu.flops(model, step) == 7 * (4 * base + 6 * lora + attention) + 3 * 4 * 1024 * 64


def test_peaks_are_found_by_the_device_s_name() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA GeForce RTX 4090": 165e12,
        "NVIDIA GeForce GTX 1080": None,
    }
    assert {name: gpu.peak_of(name) for name in names} == names
