"""Both engines on a tiny model: the same greedy completions, and seeds that belong to the completion alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.engines import open_engine
from model_training.adapter_directory import save_adapter
from model_training.config import EvaluateConfig
from model_training.models import load_model, load_tokenizer, new_adapter
from tests.model_training.gpu_packages import LLM, install_vllm
from tests.model_training.tiny_models import make_model
from utils.errors import UserError, WorkError

PROMPTS = [[{"role": "user", "content": text}] for text in ("Why?", "What is a moose, and where?", "Why?")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny base and an adapter on it that changes what it says."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("engines")
    base = str(make_model("llama", root / "base"))
    adapted = new_adapter(load_model(base), 3, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    save_adapter(adapted, load_tokenizer(base), root / "lora", base_name=base, card={})
    return base, str(root / "lora")


def answers(trained: tuple[str, str], prompts: Any, engine: str, adapter: bool, **options: Any) -> list[list[str]]:
    base, lora = trained
    settings: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12, "max_seq_length": 200, "dtype": "float32"}
    config = EvaluateConfig(model_name=base, engine=engine, **settings | options)  # type: ignore[arg-type]
    answer = open_engine(config, base, load_tokenizer(base), [lora], batch_size=2)
    return answer(prompts, lora if adapter else None, "asked")


def test_both_engines_write_the_same_greedy_completions(
    trained: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(monkeypatch)
    base, adapted = (answers(trained, PROMPTS, "vllm", adapter, num_samples=2) for adapter in (False, True))
    assert base == answers(trained, PROMPTS, "transformers", False, num_samples=2)
    assert adapted == answers(trained, PROMPTS, "transformers", True, num_samples=2)
    assert base != adapted and len(base[0]) == 2


def test_one_base_is_loaded_for_all_adapters(trained: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    base, lora = trained
    config = EvaluateConfig(engine="vllm", dtype="float32", max_seq_length=200, max_new_tokens=4, temperature=0)
    answer = open_engine(config, base, load_tokenizer(base), [lora, lora], batch_size=2)
    for adapter in (None, lora, None):
        answer(PROMPTS, adapter, "asked")
    assert LLM.loads == [{"model": base, "dtype": "float32", "max_model_len": 200}]


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_completion_depends_on_no_other(
    engine: str, trained: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(monkeypatch)
    options: dict[str, Any] = {"temperature": 1.0, "num_samples": 2}
    whole = answers(trained, PROMPTS, engine, True, **options)
    assert len({text for of_prompt in whole for text in of_prompt}) == 6, "equal prompts draw apart, too"
    assert answers(trained, PROMPTS[1:2], engine, True, **options) == whole[1:2]
    assert answers(trained, PROMPTS[::-1], engine, True, **options)[1] == whole[1]
    assert answers(trained, PROMPTS, engine, True, **options | {"seed": 4}) != whole


def test_what_vllm_cannot_do_is_one_line(
    trained: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(monkeypatch)
    with pytest.raises(UserError, match="--max_seq_length 512: model .* has 256 positions"):
        answers(trained, PROMPTS, "vllm", False, max_seq_length=512)
    with pytest.raises(UserError, match="does not belong to .*/stranger .the names differ"):
        answers((str(make_model("llama", tmp_path / "stranger")), trained[1]), PROMPTS, "vllm", False)

    def broken(self: Any, **options: Any) -> None:
        raise ValueError("see the root cause above\nno free memory for the KV cache")

    monkeypatch.setattr(LLM, "__init__", broken)
    with pytest.raises(WorkError, match="no free memory for the KV cache.; --engine transformers does without"):
        answers(trained, PROMPTS, "vllm", False)
