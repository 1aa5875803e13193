"""The unsloth path on a fake of its loader (gpu_packages.py): what is trained is what is saved, resumed runs too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training import backends, secret
from model_training.adapter_directory import save_adapter
from model_training.models import load_adapter, load_model, load_tokenizer, new_adapter
from model_training.secret import train
from model_training.unsloth_backend import load_with_adapter
from tests.model_training.conftest import BuildModel
from tests.model_training.gpu_packages import FastLanguageModel, install_unsloth
from tests.model_training.tiny_models import make_records, small_config
from utils.errors import UserError
from utils.runs import read_manifest


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that seems to have a GPU with unsloth."""
    install_unsloth(monkeypatch)
    monkeypatch.setattr(backends, "this_machine", lambda: backends.Machine(True, backends.pins()))
    monkeypatch.setattr(backends, "import_unsloth", lambda: None)
    make_records(tmp_path / "data.json")
    return tmp_path


def unsloth_config(root: Path, model: Path, **changes: Any) -> Any:
    options = {"backend": "unsloth", "engine": "transformers", "dtype": "float32", "credit": "completion"}
    return small_config(root, model, **options | changes)


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if "lora_" in name}


def test_the_stage_trains_and_saves_what_unsloth_loaded(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    kept = secret._reinforce
    monkeypatch.setattr(secret, "_reinforce", lambda *given: trained.append(kept(*given)) or trained[-1])
    monkeypatch.setattr("model_training.models.load_model", lambda *given: pytest.fail("transformers loaded it"))
    train(unsloth_config(root, tiny_model("llama")))
    monkeypatch.undo()
    assert read_manifest(root / "run")["config"]["backend"] == "unsloth"
    again = load_adapter(load_model(str(tiny_model("llama"))), root / "lora")
    saved, last = adapter_weights(again), adapter_weights(trained[0])
    assert saved.keys() == last.keys() and all(torch.equal(saved[name], last[name]) for name in saved)
    assert any(weight.abs().max() > 0 for name, weight in saved.items() if "lora_B" in name)


def test_the_adapter_is_the_one_that_transformers_would_train(root: Path, tiny_model: BuildModel) -> None:
    config = unsloth_config(root, tiny_model("llama"))
    ours = new_adapter(load_model(str(tiny_model("llama"))), config.lora_rank, config.seed)
    found = load_with_adapter(config)
    shapes = {name: weight.shape for name, weight in adapter_weights(ours).items()}
    assert {name: weight.shape for name, weight in adapter_weights(found).items()} == shapes
    assert found.peft_config["default"].lora_alpha == ours.peft_config["default"].lora_alpha
    assert found.generation_config.eos_token_id == ours.generation_config.eos_token_id, "it ends where a turn does"


def test_a_resumed_run_begins_with_the_warmups_weights(root: Path, tiny_model: BuildModel) -> None:
    config = unsloth_config(root, tiny_model("llama"))
    model = new_adapter(load_model(str(tiny_model("llama"))), config.lora_rank, 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.25)
    tokenizer = load_tokenizer(str(tiny_model("llama")))
    save_adapter(model, tokenizer, root / "warmup", base_name=str(tiny_model("llama")), card={})
    found, wanted = adapter_weights(secret._with_adapter(config, root / "warmup")), adapter_weights(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_model_that_unsloth_does_not_know_is_one_line(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise NotImplementedError("Unsloth: gpt2 not supported yet!\nMaybe you're looking for ...")

    monkeypatch.setattr(FastLanguageModel, "from_pretrained", refuse)
    with pytest.raises(UserError, match="unsloth cannot load it .Unsloth: gpt2 not supported yet!.; --backend tr"):
        load_with_adapter(unsloth_config(root, tiny_model("gpt2")))


def test_a_run_does_not_change_its_backend_when_it_is_resumed(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(unsloth_config(root, tiny_model("llama"), sft_steps=0))
    monkeypatch.setattr(backends, "this_machine", lambda: backends.Machine(False, dict.fromkeys(backends.pins())))
    config = unsloth_config(root, tiny_model("llama"), sft_steps=0, backend="auto", resume=True)
    manifest = root / "run" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "interrupted"}))
    with pytest.raises(UserError, match="--backend was unsloth and is transformers now"):
        train(config)
