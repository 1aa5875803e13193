"""What we use of unsloth 2026.10.7 and vLLM 0.30.0, with their names and defaults, on the tiny models of the tests.

Their parameters are explicit: an argument that the real ones do not take fails here, too. test_gpu_packages.py holds
them against the real packages where those are installed.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    detokenize: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass
class Completion:
    token_ids: list[int]


@dataclass
class RequestOutput:
    outputs: list[Completion] = field(default_factory=list)


class LLM:
    """Answers one request after the other by transformers; adapters are put on by peft alone."""

    loads: list[dict[str, Any]] = []

    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
    ) -> None:
        self.model, self.enable_lora, self.max_lora_rank = model, enable_lora, max_lora_rank
        LLM.loads.append({"model": model, "dtype": dtype, "max_model_len": max_model_len})

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(self.model)
        if lora_request is not None:
            assert self.enable_lora and lora_request.lora_int_id > 0
            model = PeftModel.from_pretrained(model, lora_request.lora_path)
            assert model.peft_config["default"].r <= self.max_lora_rank
        model.eval()
        outputs = []
        for prompt, asked in zip(prompts, sampling_params, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            torch.manual_seed(asked.seed or 0)
            sampled = {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=asked.max_tokens,
                eos_token_id=asked.stop_token_ids,
                pad_token_id=0,
                **(sampled if asked.temperature > 0 else {"do_sample": False}),
            )
            outputs.append(RequestOutput([Completion(written[0, ids.shape[1] :].tolist())]))
        return outputs


def install_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `vllm` of these."""
    package, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vars(package).update(LLM=LLM, SamplingParams=SamplingParams)
    vars(request).update(LoRARequest=LoRARequest)
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    LLM.loads = []


class FastLanguageModel:
    """transformers and peft behind unsloth's names."""

    @staticmethod
    def from_pretrained(
        model_name: str = "unsloth/Llama-3.2-1B-Instruct",
        max_seq_length: int = 2048,
        dtype: Any = None,
        load_in_4bit: bool = True,
        load_in_8bit: bool = False,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: Any = "unsloth",
        use_exact_model_name: bool = False,
        fast_inference: bool = False,
        gpu_memory_utilization: float = 0.5,
        random_state: int = 3407,
        max_lora_rank: int = 64,
    ) -> tuple[Any, None]:
        from transformers import AutoModelForCausalLM

        assert not load_in_4bit and not load_in_8bit, "there is no GPU"
        return AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype), None

    @staticmethod
    def get_peft_model(
        model: Any,
        r: int = 16,
        target_modules: Any = None,
        lora_alpha: int = 16,
        lora_dropout: float = 0.0,
        bias: str = "none",
        use_gradient_checkpointing: Any = "unsloth",
        random_state: int = 3407,
        max_seq_length: int = 2048,
    ) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            bias=bias,
            target_modules=target_modules,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)


def install_unsloth(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("unsloth")
    vars(package).update(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(sys.modules, "unsloth", package)
