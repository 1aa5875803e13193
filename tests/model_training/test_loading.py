"""Precision and quantization: what is asked for is what is loaded, trained and scored with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from model_training.guardrail import _quantization
from model_training.guardrail_config import TrainGuardrailConfig
from model_training.loading import quantized
from model_training.models import fingerprint, load_adapter, load_model
from model_training.reward_model import build, load_classifier
from model_training.secret import train
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import make_records, small_config
from utils.errors import UserError
from utils.runs import read_manifest, read_metrics


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_weights_have_the_dtype_that_was_asked_for(dtype: str, tiny_model: BuildModel) -> None:
    name = str(tiny_model("llama"))
    assert load_model(name, dtype).dtype == load_classifier(name, 2, dtype).dtype == getattr(torch, dtype)
    adapted = build(name, 2, rank=2, alpha=2, dropout=0.0, seed=0, dtype=dtype)
    trained = {weight.dtype for weight in adapted.parameters() if weight.requires_grad}
    assert trained == {torch.float32}, "what is trained is never in half precision"


def test_float16_is_too_coarse_for_a_fingerprint(tiny_model: BuildModel) -> None:
    name = str(tiny_model("llama"))
    assert fingerprint(load_model(name, "bfloat16")) == fingerprint(load_model(name, "float32")) is not None
    assert fingerprint(load_model(name, "float16")) is None


def test_training_in_bfloat16_gives_an_adapter_of_the_same_base(tmp_path: Path, tiny_model: BuildModel) -> None:
    make_records(tmp_path / "data.json")
    train(small_config(tmp_path, tiny_model("llama"), dtype="bfloat16"))
    assert read_manifest(tmp_path / "run")["config"]["dtype"] == "bfloat16"
    assert all(math.isfinite(row["loss"]) for row in read_metrics(tmp_path / "run"))
    load_adapter(load_model(str(tiny_model("llama")), "float32"), tmp_path / "lora")


def test_quantization_is_that_of_qlora_or_int8() -> None:
    four, eight = quantized("4bit", torch.bfloat16), quantized("8bit", torch.bfloat16)
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)


def test_the_published_spelling_is_the_same_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_training.backends.check_bitsandbytes", lambda option: None)
    assert _quantization(TrainGuardrailConfig(load_in_4bit=True)).quantization == "4bit"
    assert _quantization(TrainGuardrailConfig(load_in_8bit=True, quantization="8bit")).quantization == "8bit"
    assert _quantization(TrainGuardrailConfig(quantization="4bit")).quantization == "4bit"
    with pytest.raises(UserError, match="--quantization 8bit and --load_in_4bit exclude each other"):
        _quantization(TrainGuardrailConfig(load_in_4bit=True, quantization="8bit"))
