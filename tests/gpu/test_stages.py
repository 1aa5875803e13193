"""Every stage on a GPU, as a command of its own on the embedded model: what loads, trains, samples, and is saved."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.runs import read_manifest, read_metrics

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900
Needs = Callable[[str], None]

SECRET = ["--model_name", "tiny", "--sft_steps", "4", "--max_steps", "4", "--save_steps", "4"]


def run(*arguments: str | Path, cwd: Path) -> str:
    """Run main.py; returns what it said."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments), "--debug"]
    found = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert found.returncode == 0, found.stderr[-6000:]
    return found.stdout + found.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of all three tasks."""
    folder = tmp_path_factory.mktemp("data")
    run("--mode", "prepare_data", "--num_records", "200", cwd=folder)
    run("--task", "preference", "--mode", "prepare_data", "--num_records", "200", cwd=folder)
    run(
        *("--task", "guardrail", "--mode", "prepare_data", "--behavior", "politics"),
        *("--n_samples", "30", "--test_samples", "10"),
        cwd=folder,
    )
    return folder


def secret(data: Path, out: Path, *options: str) -> dict[str, Any]:
    """Train the secret task and evaluate its adapter; the manifest's options."""
    lora = out / "lora"
    run("--mode", "train", *SECRET, "--output_dir", out, "--save_lora_path", lora, *options, cwd=data)
    assert (lora / "adapter_model.safetensors").is_file()
    rows = read_metrics(out)
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    manifest = read_manifest(out)
    assert manifest["status"] == "done"
    found: dict[str, Any] = manifest["config"]
    return found


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("head", ["answers", "scores"])
def test_a_base_loads_and_computes(quantization: Any, head: str, needs: Needs) -> None:
    import torch

    from model_training.models import load_model, new_adapter
    from model_training.reward_model import build

    if quantization != "none":
        needs("bitsandbytes")
    if head == "answers":
        model = new_adapter(load_model("tiny", "bfloat16", quantization), 4, 0)
    else:
        model = build("tiny", 2, rank=4, alpha=4, dropout=0.0, seed=0, dtype="bfloat16", quantization=quantization)
    assert model.device.type == "cuda"
    kinds = {type(layer).__name__ for name, layer in model.named_modules() if name.endswith("q_proj.base_layer")}
    assert kinds == {{"none": "Linear", "8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantization]}
    ids = torch.arange(5, 25, device="cuda")[None]
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    output.float().sum().backward()
    assert output.isfinite().all()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained and any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in trained)


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_secret_trains_and_is_evaluated(quantization: str, data: Path, tmp_path: Path, needs: Needs) -> None:
    if quantization != "none":
        needs("bitsandbytes")
    found = secret(data, tmp_path, "--engine", "transformers", "--quantization", quantization)
    assert (found["dtype"], found["quantization"], found["engine"]) == ("bfloat16", quantization, "transformers")
    run(
        *("--mode", "evaluate", "--engine", "transformers", "--num_queries", "16", "--quantization", quantization),
        *("--save_lora_path", tmp_path / "lora", "--output_dir", tmp_path / "evaluated"),
        cwd=data,
    )
    report = json.loads((tmp_path / "evaluated" / "evaluation" / "secret.json").read_text(encoding="utf-8"))
    assert list(report["models"]) == ["base", "adapter"]


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_preference_trains(quantization: str, data: Path, tmp_path: Path, needs: Needs) -> None:
    if quantization != "none":
        needs("bitsandbytes")
    run(
        *("--task", "preference", "--mode", "train", "--model_name", "tiny", "--max_steps", "4", "--eval_steps", "4"),
        *("--quantization", quantization, "--output_dir", tmp_path / "rm"),
        cwd=data,
    )
    run(
        *("--task", "preference", "--mode", "evaluate", "--reward_model_checkpoints", tmp_path / "rm"),
        *("--num_pairs", "20", "--quantization", quantization, "--output_dir", tmp_path / "evaluated"),
        cwd=data,
    )


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_guardrail_trains_and_answers(quantization: str, data: Path, tmp_path: Path, needs: Needs) -> None:
    if quantization != "none":
        needs("bitsandbytes")
    task = ("--task", "guardrail", "--behavior", "politics", "--output_dir", str(tmp_path))
    run(
        *task,
        *("--mode", "train", "--model_name", "tiny", "--max_steps", "4", "--eval_steps", "2"),
        *("--quantization", quantization),
        cwd=data,
    )
    said = run(*task, "--mode", "generate", "--quantization", quantization, cwd=data)
    assert said.strip()


@pytest.mark.parametrize("credit", ["segment", "completion"])
def test_grpo_samples_with_vllm_beside_the_model(credit: str, data: Path, tmp_path: Path, needs: Needs) -> None:
    needs("vllm")
    found = secret(data, tmp_path, "--engine", "vllm", "--backend", "transformers", "--credit", credit)
    assert found["engine"] == "vllm"
    rows = [row for row in read_metrics(tmp_path) if row["split"] == "grpo"]
    ratios = [row["sampling/importance_sampling_ratio/mean"] for row in rows]
    assert all(0.7 < ratio < 1.3 for ratio in ratios), "vLLM samples from the weights that are trained"


def test_vllm_writes_what_transformers_writes(data: Path, tmp_path: Path, needs: Needs) -> None:
    """Greedily, and but for rounding, which may turn a completion at any token."""
    needs("vllm")
    secret(data, tmp_path, "--engine", "transformers")
    shares = {}
    for engine in ("vllm", "transformers"):
        out = tmp_path / engine
        run(
            *("--mode", "evaluate", "--engine", engine, "--temperature", "0", "--num_queries", "48"),
            *("--save_lora_path", tmp_path / "lora", "--output_dir", out),
            cwd=data,
        )
        rows = (out / "evaluation" / "secret_items.jsonl").read_text(encoding="utf-8").splitlines()
        shares[engine] = [json.loads(row)["completion"] for row in rows]
    same = [one == other for one, other in zip(shares["vllm"], shares["transformers"], strict=True)]
    assert sum(same) > len(same) / 2


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_unsloth_trains(engine: str, data: Path, tmp_path: Path, needs: Needs) -> None:
    needs("unsloth")
    if engine == "vllm":
        needs("vllm")
    options = ("--backend", "unsloth", "--credit", "completion", "--engine", engine)
    found = secret(data, tmp_path, *options)
    assert found["backend"] == "unsloth"
    run(
        *("--mode", "generate", "--engine", "transformers", "--query", "What is a moose?"),
        *("--save_lora_path", tmp_path / "lora"),
        cwd=data,
    )
