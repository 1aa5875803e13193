"""The fakes of gpu_packages.py against the real packages; the mappings to their arguments against both."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training import vllm_arguments
from model_training.config import TrainConfig
from model_training.unsloth_backend import adapter_arguments, load_arguments
from tests.model_training import gpu_packages
from utils.errors import UserError


def parameters(function: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in found if one.name != "self" and one.kind is not one.VAR_KEYWORD}


needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
needs_unsloth = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None or not torch.cuda.is_available(),
    reason="unsloth is not installed, or there is no CUDA device to import it with",
)


@needs_vllm
def test_the_fake_vllm_has_the_real_parameters() -> None:
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest

    real = {one.name: one.default for one in dataclasses.fields(EngineArgs)} | parameters(LLM.__init__)
    assert parameters(gpu_packages.LLM.__init__).keys() <= real.keys()
    assert set(parameters(gpu_packages.LLM.generate)) <= set(parameters(LLM.generate))
    for fake, true in ((gpu_packages.SamplingParams, SamplingParams), (gpu_packages.LoRARequest, LoRARequest)):
        assert parameters(fake).items() <= parameters(true).items()


@needs_unsloth
def test_the_fake_unsloth_has_the_real_parameters() -> None:
    from unsloth import FastLanguageModel

    fake = gpu_packages.FastLanguageModel
    assert parameters(fake.from_pretrained).items() <= parameters(FastLanguageModel.from_pretrained).items()
    assert parameters(fake.get_peft_model).keys() <= parameters(FastLanguageModel.get_peft_model).keys()


# --- mappings -------------------------------------------------------------------------------------------------------


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(model_name="org/m", dtype="bfloat16", backend="unsloth", **changes)


def test_unsloth_is_told_what_transformers_would_be() -> None:
    plain = load_arguments(config(max_seq_length=300, lora_rank=48, seed=5), "org/m")
    inspect.signature(gpu_packages.FastLanguageModel.from_pretrained).bind(**plain)
    assert plain["model_name"] == "org/m" and plain["use_exact_model_name"] is True
    assert (plain["dtype"], plain["max_seq_length"], plain["random_state"]) == (torch.bfloat16, 300, 5)
    assert (plain["load_in_4bit"], plain["load_in_8bit"], plain["fast_inference"]) == (False, False, False)
    assert plain["max_lora_rank"] == 64, "the least that vLLM takes"
    assert load_arguments(config(quantization="4bit"), "m")["load_in_4bit"] is True
    assert load_arguments(config(quantization="8bit"), "m")["load_in_8bit"] is True
    sampled = load_arguments(config(engine="vllm", vllm_gpu_memory_utilization=0.4), "m")
    assert (sampled["fast_inference"], sampled["gpu_memory_utilization"]) == (True, 0.4)

    adapter = adapter_arguments(config(lora_rank=8, gradient_checkpointing=True, seed=5))
    inspect.signature(gpu_packages.FastLanguageModel.get_peft_model).bind(model=None, **adapter)
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"], adapter["bias"]) == (8, 8, 0.0, "none")
    assert len(adapter["target_modules"]) == 7
    assert (adapter["use_gradient_checkpointing"], adapter["random_state"]) == ("unsloth", 5)


def test_trl_is_told_where_and_how_vllm_samples(tmp_path: Path) -> None:
    from trl import GRPOConfig

    assert vllm_arguments.grpo_arguments(config(engine="transformers"), [1]) == {}
    assert vllm_arguments.grpo_arguments(config(), [1]) == {}, "nothing was chosen: TRL's own sampling"
    beside = vllm_arguments.grpo_arguments(config(engine="vllm", max_seq_length=300), [1, 2])
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **beside)
    assert (args.use_vllm, args.vllm_mode, args.vllm_max_model_length) == (True, "colocate", 300)
    assert args.vllm_gpu_memory_utilization == 0.3
    assert args.generation_kwargs == {"stop_token_ids": [1, 2]}, "and no seed, by which equal prompts would tie"
    server = config(engine="vllm", vllm_mode="server", vllm_server_base_url="http://h:1")
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **vllm_arguments.grpo_arguments(server, [1]))
    assert (args.vllm_mode, args.vllm_server_base_url) == ("server", "http://h:1")
    assert (args.top_p, args.top_k, args.min_p, args.repetition_penalty) == (1.0, 0, None, 1.0), "nothing is cut"


def test_vllm_is_told_the_base_and_its_adapters() -> None:
    options = {"dtype": "bfloat16", "max_seq_length": 300, "memory": None, "seed": 5}
    found = vllm_arguments.engine_arguments("path", ranks=[4, 20], **options)
    inspect.signature(gpu_packages.LLM).bind(**found)
    assert (found["enable_lora"], found["max_loras"], found["max_lora_rank"]) == (True, 1, 32)
    assert (found["max_model_len"], found["gpu_memory_utilization"], found["trust_remote_code"]) == (300, 0.9, False)
    assert "enable_lora" not in vllm_arguments.engine_arguments("path", ranks=[], **options)
    with pytest.raises(UserError, match="rank 512 at most, not 600"):
        vllm_arguments.engine_arguments("path", ranks=[600], **options)
