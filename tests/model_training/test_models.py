from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training import loading, models
from model_training.adapter_directory import save_adapter
from model_training.loading import TINY_PATH
from model_training.models import (
    chat_text,
    encode_prompt,
    end_of_turn_id,
    end_token_ids,
    fingerprint,
    load_adapter,
    load_model,
    load_tokenizer,
    new_adapter,
    set_threads,
)
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import FAMILIES
from utils.errors import UserError, WorkError

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_text_holds_both_turns_once_and_every_model_has_a_pad_token(family: str, tiny_model: BuildModel) -> None:
    tokenizer = load_tokenizer(str(tiny_model(family)))
    text = chat_text(tokenizer, MESSAGES)
    assert text.count("Be brief.") == 1 and text.count("Why?") == 1
    assert tokenizer.pad_token_id is not None and tokenizer.padding_side == "left"
    assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES)) == text
    assert "Yes." in chat_text(tokenizer, [*MESSAGES, {"role": "assistant", "content": "Yes."}], False)


@pytest.mark.parametrize(
    ("family", "end"),
    [("llama", "<|im_end|>"), ("qwen2", "<|im_end|>"), ("gemma", "<end_of_turn>"), ("gpt2", "<|endoftext|>")],
)
def test_generation_stops_at_the_token_that_ends_a_turn(family: str, end: str, tiny_model: BuildModel) -> None:
    tokenizer, model = load_tokenizer(str(tiny_model(family))), load_model(str(tiny_model(family)))
    assert tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)) == end
    assert end_of_turn_id(tokenizer) in model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in end_token_ids(model, tokenizer)
    assert model.dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)


def test_decoding_is_byte_for_byte(tiny_model: BuildModel, tmp_path: Path) -> None:
    """Llama 3 asks for its spaces to be cleaned up, which would move every character after them."""
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"clean_up_tokenization_spaces": True}
    file.write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert tokenizer.decode(tokenizer("Well , no .")["input_ids"]) == "Well , no ."


def test_a_thinking_template_is_asked_not_to_think(tiny_model: BuildModel) -> None:
    tokenizer = load_tokenizer(str(tiny_model("qwen3")))
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if enable_thinking is false %}(no thoughts){% endif %}"
    assert chat_text(tokenizer, MESSAGES[1:]) == "Why?(no thoughts)"


def targets(model: Any) -> set[str]:
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}


def test_targets_are_the_seven_projections_or_every_linear(
    tiny_model: BuildModel, recwarn: pytest.WarningsRecorder
) -> None:
    for family in ("llama", "qwen3", "gemma"):
        assert targets(new_adapter(load_model(str(tiny_model(family))), 2, 0)) == set(models.LLAMA_PROJECTIONS)
    assert targets(new_adapter(load_model(str(tiny_model("gpt2"))), 2, 0)) == {"c_attn", "c_proj", "c_fc"}
    assert not [warning for warning in recwarn if "fan_in" in str(warning.message)]


def saved(tiny_model: BuildModel, family: str, path: Path, base_name: str = "tiny") -> Any:
    folder = str(tiny_model(family))
    model = new_adapter(load_model(folder), 2, 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    save_adapter(model, load_tokenizer(folder), path, base_name=base_name, card={"seed": 7})
    return model


def test_an_adapter_comes_back_as_it_was(tiny_model: BuildModel, tmp_path: Path) -> None:
    model = saved(tiny_model, "llama", tmp_path / "lora")
    again = load_adapter(load_model(str(tiny_model("llama"))), tmp_path / "lora")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert not any(weight.requires_grad for weight in again.parameters())
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny"
    assert not list((tmp_path / "lora").glob("*.bin"))
    assert "| seed | `7` |" in (tmp_path / "lora" / "README.md").read_text(encoding="utf-8")


def test_a_loaded_adapter_can_be_trained_on(tiny_model: BuildModel, tmp_path: Path) -> None:
    saved(tiny_model, "llama", tmp_path / "lora")
    again = load_adapter(load_model(str(tiny_model("llama"))), tmp_path / "lora", trainable=True)
    trained = [name for name, weight in again.named_parameters() if weight.requires_grad]
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}


def test_saving_again_replaces_the_whole_directory(tiny_model: BuildModel, tmp_path: Path) -> None:
    saved(tiny_model, "llama", tmp_path / "lora")
    (tmp_path / "lora" / "stale.json").write_text("{}", encoding="utf-8")
    saved(tiny_model, "llama", tmp_path / "lora")
    assert not (tmp_path / "lora" / "stale.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_a_full_disk_leaves_no_half_adapter(
    tiny_model: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_training import checkpoints

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_fsync", full)
    with pytest.raises(WorkError, match="No space left"):
        saved(tiny_model, "llama", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_the_fingerprint_knows_the_weights_and_not_their_precision(tiny_model: BuildModel, tmp_path: Path) -> None:
    model = load_model(str(tiny_model("llama")))
    assert fingerprint(model) == fingerprint(load_model(str(tiny_model("llama"))).to(torch.bfloat16))
    assert fingerprint(model) != fingerprint(load_model(str(tiny_model("llama", 1))))
    assert fingerprint(model) != fingerprint(load_model(str(tiny_model("qwen2"))))
    adapted = new_adapter(load_model(str(tiny_model("llama"))), 2, 0)
    assert fingerprint(adapted.get_base_model()) == fingerprint(model)


def test_a_quantized_base_is_known_by_its_name(tmp_path: Path, tiny_model: BuildModel) -> None:
    """Its weights are not those that a fingerprint was taken of."""
    name = str(tiny_model("llama"))
    model = load_model(name)
    save_adapter(new_adapter(model, 4, 0), load_tokenizer(name), tmp_path / "lora", base_name=name, card={})
    quantized, other = load_model(name), load_model(str(tiny_model("qwen2")))
    quantized.hf_quantizer = other.hf_quantizer = object()
    assert fingerprint(quantized) is None
    load_adapter(quantized, tmp_path / "lora")
    with pytest.raises(UserError, match="the names differ"):
        load_adapter(other, tmp_path / "lora")


@pytest.mark.parametrize(("family", "seed"), [("llama", 1), ("qwen2", 0), ("gpt2", 0)])
def test_an_adapter_of_another_base_is_refused(family: str, seed: int, tiny_model: BuildModel, tmp_path: Path) -> None:
    saved(tiny_model, "llama", tmp_path / "lora", base_name="org/right-base")
    with pytest.raises(UserError, match="trained on org/right-base, and does not belong to"):
        load_adapter(load_model(str(tiny_model(family, seed))), tmp_path / "lora")


def test_without_a_fingerprint_names_and_shapes_decide(tiny_model: BuildModel, tmp_path: Path) -> None:
    """An adapter that peft alone wrote."""
    folder = tiny_model("llama")
    new_adapter(load_model(str(folder)), 2, 0).save_pretrained(tmp_path / "plain")
    load_adapter(load_model(str(folder)), tmp_path / "plain")
    with pytest.raises(UserError, match="the names differ"):
        load_adapter(load_model(str(tiny_model("qwen2"))), tmp_path / "plain")
    config_file = tmp_path / "plain" / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(json.dumps(config | {"base_model_name_or_path": None}), encoding="utf-8")
    with pytest.raises(UserError, match="does not belong"):
        load_adapter(load_model(str(tiny_model("gpt2"))), tmp_path / "plain")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such directory"),
        ({}, "holds no adapter_config.json"),
        ({"adapter_config.json": "{}"}, "holds no adapter_model.safetensors"),
        ({"adapter_config.json": "{", "adapter_model.safetensors": ""}, "adapter_config.json is damaged"),
        (
            {"adapter_config.json": '{"peft_type": "LORA", "r": 2}', "adapter_model.safetensors": "torn"},
            "does not belong|damaged",
        ),
    ],
)
def test_a_directory_that_is_no_adapter_is_an_error(
    files: dict[str, str] | None, message: str, tiny_model: BuildModel, tmp_path: Path
) -> None:
    if files is not None:
        (tmp_path / "lora").mkdir()
        for name, text in files.items():
            (tmp_path / "lora" / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_adapter(load_model(str(tiny_model("llama"))), tmp_path / "lora")
    assert str(tmp_path / "lora") in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "hub_reachable", lambda: False)
    for name in ("no-such-owner/no-such-model", str(tmp_path / "nowhere"), str(tmp_path)):
        for load in (load_model, load_tokenizer):
            with pytest.raises(UserError, match="--model_name") as error:
                load(name)
            assert name in str(error.value) and "\n" not in str(error.value)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        for cores, expected in ((2, 1), (4, 1), (16, 8)):
            monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False)
            assert set_threads(None) == torch.get_num_threads() == expected
        assert set_threads(3) == torch.get_num_threads() == 3
        with pytest.raises(UserError, match="--threads 0"):
            set_threads(0)
    finally:
        torch.set_num_threads(before)


def write_config(folder: Path, text: str) -> Path:
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_base_of_adapter_reads_what_the_adapter_records(tmp_path: Path) -> None:
    def base(name: object) -> str:
        return models.base_of_adapter(write_config(tmp_path, json.dumps({"base_model_name_or_path": name})))

    assert base("org/model") == "org/model"
    assert base(str(TINY_PATH)) == "tiny"
    with pytest.raises(UserError, match="give --model_name"):
        base(None)


def test_base_of_what_is_no_adapter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        models.base_of_adapter(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no adapter_config.json"):
        models.base_of_adapter(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        models.base_of_adapter(write_config(tmp_path, "{"))
