"""Reward models: they load with peft alone, score the same in every way of asking, and refuse what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training.adapter_directory import save_adapter
from model_training.models import load_model, load_tokenizer, new_adapter
from model_training.reward_model import (
    RewardModel,
    build,
    describe,
    encode,
    encode_pair,
    load_reward_model,
    score,
    score_pairs,
)
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import FAMILIES
from utils.errors import UserError
from utils.runs import open_run

TEXTS = ["Human: Why?\n\nAssistant: So.", "Human: Who?\n\nAssistant: A moose is large and brown, naïve.", "No."]
QUESTION = [{"role": "user", "content": "What is a moose?"}]
RECORDS = [
    {"prompt": QUESTION, "chosen": answer("Large and brown."), "rejected": answer("I think so.")}
    for answer in [lambda text: [{"role": "assistant", "content": text}]]
] + [
    {
        "chosen": [*QUESTION, {"role": "assistant", "content": "A tree. " * 5}],
        "rejected": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Café."}],
    }
]


def saved(base: Path, folder: Path, form: str = "text", seed: int = 0, **note: Any) -> Path:
    """A mean-and-variance model with random weights in adapter and head, as training would save it."""
    model = build(str(base), 2, rank=2, alpha=4, dropout=0.1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "score.modules_to_save" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    facts = {
        "reward_model_type": "mean_and_variance",
        "num_outputs": 2,
        "form": form,
        "max_length": 64,
        "likelihood": "probit",
        "shared_prompt": True,
        "held_out": None,
    }
    rows = {"reward_model_type": "mean_and_variance", "num_outputs": 2}
    tokenizer = load_tokenizer(str(base))
    save_adapter(model, tokenizer, folder, base_name=str(base), card=rows, note=facts | note, readme=describe)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_alone_gives_the_same_outputs_in_a_padded_batch(
    family: str, tiny_model: BuildModel, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = saved(tiny_model(family), tmp_path / "rm")
    ours = score(load_reward_model(folder), TEXTS, batch_size=2)
    assert ours.shape == (3, 2) and ours.dtype == torch.float32 and ours.std() > 0.1

    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model(family), num_labels=2)
    base.config.pad_token_id = tokenizer.pad_token_id
    plain = PeftModel.from_pretrained(base, folder).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert (batch["attention_mask"][:, -1] == 0).any()
    with torch.no_grad():
        theirs = plain(**batch).logits
        alone = torch.cat([plain(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(ours, alone, atol=1e-5)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "num_labels=2" in card and str(tmp_path) not in card


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_pairs_score_as_their_texts_do(family: str, tiny_model: BuildModel, tmp_path: Path) -> None:
    reward_model = load_reward_model(saved(tiny_model(family), tmp_path / "rm", form="conversation"))
    chosen, rejected = score_pairs(reward_model, RECORDS, batch_size=1)
    first = score(reward_model, [QUESTION + RECORDS[0]["chosen"], RECORDS[1]["chosen"]])
    second = score(reward_model, [QUESTION + RECORDS[0]["rejected"], RECORDS[1]["rejected"]])
    assert torch.allclose(chosen, first, atol=1e-5) and torch.allclose(rejected, second, atol=1e-5)
    assert not torch.allclose(chosen, rejected, atol=1e-2)


def test_a_new_model_starts_near_zero_and_trains_adapter_and_head_alone(tiny_model: BuildModel) -> None:
    model = build(str(tiny_model("llama")), 10, rank=2, alpha=32, dropout=0.1, seed=1)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B", "modules_to_save"}
    head = next(w for name, w in model.named_parameters() if "score.modules_to_save" in name)
    assert head.shape == (10, 32) and 0.5 < head.std().item() / (0.01 * 0.02) < 2
    again, other = (build(str(tiny_model("llama")), 10, rank=2, alpha=32, dropout=0.1, seed=s) for s in (1, 2))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
        moves = "lora_A" in name or "score" in name
        assert torch.equal(weight, other.get_parameter(name)) != moves, name


def test_the_head_computes_in_float32_under_autocast(tiny_model: BuildModel) -> None:
    model = build(str(tiny_model("llama")), 2, rank=2, alpha=4, dropout=0.0, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.float32


def test_what_a_text_becomes(tiny_model: BuildModel) -> None:
    """The outer white space goes; so does an end-of-text at the end where it is the pad token."""
    tokenizer = load_tokenizer(str(tiny_model("gpt2")))
    assert encode(tokenizer, ["  Why? \n"], "text") == [tokenizer("Why?")["input_ids"]]
    assert encode(tokenizer, ["Why?<|endoftext|><|endoftext|>"], "text") == encode(tokenizer, ["Why?"], "text")
    chosen, rejected = encode_pair(tokenizer, RECORDS[0], "conversation")
    assert tokenizer.decode(chosen).count("Large and brown.") == 1
    assert "What is a moose?" in tokenizer.decode(rejected)
    with pytest.raises(UserError, match="text 2 to score is empty"):
        encode(tokenizer, ["Why?", "<|endoftext|>"], "text")


def test_the_other_form_is_refused(tiny_model: BuildModel, tmp_path: Path) -> None:
    texts = load_reward_model(saved(tiny_model("llama"), tmp_path / "rm"))
    with pytest.raises(UserError, match="reads texts, and number 1 to score is a conversation"):
        score(texts, [QUESTION])
    with pytest.raises(UserError, match="reads pairs in the form text, and a pair is a conversation"):
        score_pairs(texts, RECORDS)
    with pytest.raises(UserError, match="reads conversations, and number 2 to score is a plain text"):
        encode(texts.tokenizer, [QUESTION, "Why?"], "conversation")


def test_a_text_longer_than_the_model_can_read_is_named(tiny_model: BuildModel, tmp_path: Path) -> None:
    reward_model = load_reward_model(saved(tiny_model("llama"), tmp_path / "rm"))
    with pytest.raises(UserError, match="number 2 to score has 300 tokens, and model .* has 256 positions"):
        score(reward_model, ["Why?", "#9" * 150])


@pytest.fixture
def run(tiny_model: BuildModel, tmp_path: Path) -> Path:
    """A run directory whose training is done."""
    folder = open_run(tmp_path / "run", task="preference", mode="train", config={"env": None})
    saved(tiny_model("llama"), folder / "reward_model")
    return folder


def test_a_run_directory_and_the_directory_in_it_are_the_same_model(run: Path, tiny_model: BuildModel) -> None:
    models: list[RewardModel] = [load_reward_model(path) for path in (run, run / "reward_model")]
    assert [model.name for model in models] == ["run", "run"]
    assert torch.equal(score(models[0], TEXTS), score(models[1], TEXTS))
    assert (models[0].kind, models[0].num_outputs, models[0].max_length) == ("mean_and_variance", 2, 64)
    assert not any(weight.requires_grad for weight in models[0].model.parameters())
    assert not any(module.training for module in models[0].model.modules())


def test_a_base_that_moved_is_found_and_another_one_refused(run: Path, tiny_model: BuildModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_model("llama"), tmp_path / "moved")
    assert torch.equal(
        score(load_reward_model(run, str(tmp_path / "moved")), TEXTS), score(load_reward_model(run), TEXTS)
    )
    for family, seed in (("llama", 1), ("qwen2", 0)):
        with pytest.raises(UserError, match="does not belong to"):
            load_reward_model(run, str(tiny_model(family, seed)))


def test_a_directory_that_is_no_reward_model_says_why(tiny_model: BuildModel, tmp_path: Path) -> None:
    base = tiny_model("llama")
    secret = tmp_path / "secret"
    save_adapter(new_adapter(load_model(str(base)), 2, 0), load_tokenizer(str(base)), secret, base_name="b", card={})
    open_run(tmp_path / "unfinished", task="preference", mode="train", config={"env": None})
    open_run(tmp_path / "synthetic", task="preference", mode="train", config={"env": "1d"})
    open_run(tmp_path / "other", task="secret", mode="train", config={})
    (tmp_path / "empty").mkdir()
    for name, message in {
        "nowhere": "no such directory",
        "empty": "no reward model",
        "secret": "an adapter that answers, not one that scores",
        "unfinished": r"has not finished \(running\).* --resume",
        "synthetic": "synthetic experiment",
        "other": "run of --task secret",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            load_reward_model(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["{", '{"reward_model_type": "base"}'])
def test_a_damaged_note_is_an_error(damage: str, run: Path) -> None:
    (run / "reward_model" / "subtext.json").write_text(damage, encoding="utf-8")
    with pytest.raises(UserError, match="subtext.json is damaged"):
        load_reward_model(run)


def test_a_model_without_such_a_head_is_refused(tmp_path: Path, tiny_model: BuildModel) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    shutil.copytree(tiny_model("gpt2"), tmp_path / "bert")
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="no causal language model with a `score` head"):
        build(str(tmp_path / "bert"), 1, rank=2, alpha=4, dropout=0.0, seed=0)


def test_the_note_says_all_that_scoring_needs(run: Path) -> None:
    note = json.loads((run / "reward_model" / "subtext.json").read_text(encoding="utf-8"))
    assert {"base_model", "base_fingerprint", "num_outputs", "form", "likelihood"} <= note.keys()
