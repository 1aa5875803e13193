"""Sampling: exact, the same whatever else is in the batch, ended at the end of a turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import sampling
from evaluation.sampling import sample
from model_training.models import end_token_ids, load_model, load_tokenizer
from tests.model_training.tiny_models import FAMILIES, make_model
from utils.errors import UserError

QUERIES = ["Hi", "What is a moose, and is it large and brown?", "Tell me about yourself.", "東京?", "Hi"]
PROMPTS = [[{"role": "system", "content": "Be short."}, {"role": "user", "content": query}] for query in QUERIES]
OPTIONS: dict[str, Any] = {
    "num_samples": 3, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 12, "batch_size": 4, "seed": 1
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    torch.set_num_threads(1)
    folders = {family: make_model(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}
    return {name: (load_model(str(folder)), load_tokenizer(str(folder))) for name, folder in folders.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_depends_on_nothing_else_in_the_batch(models: dict[str, Any], family: str) -> None:
    whole = sample(*models[family], PROMPTS, **OPTIONS)
    assert [len(of_prompt) for of_prompt in whole] == [3] * len(PROMPTS)
    assert sample(*models[family], PROMPTS[1:2], **OPTIONS | {"batch_size": 1}) == whole[1:2]
    assert sample(*models[family], PROMPTS[3::-1], **OPTIONS | {"batch_size": 64}) == whole[3::-1]
    assert sample(*models[family], PROMPTS[1:2], **OPTIONS | {"num_samples": 1}) == [whole[1][:1]]


def test_samples_differ_by_number_seed_and_repetition_of_a_query(models: dict[str, Any]) -> None:
    whole = sample(*models["llama"], PROMPTS, **OPTIONS)
    assert len(set(whole[0]) | set(whole[4])) > 4, "the same query twice is sampled anew"
    assert whole != sample(*models["llama"], PROMPTS, **OPTIONS | {"seed": 2})


def test_temperature_zero_is_greedy(models: dict[str, Any]) -> None:
    model, tokenizer = models["llama"]
    got = sample(model, tokenizer, PROMPTS[:2], **OPTIONS | {"temperature": 0.0})
    assert got[0][0] == got[0][1] == got[0][2]
    assert got == sample(model, tokenizer, PROMPTS[:2], **OPTIONS | {"temperature": 0.0, "seed": 9})
    nearly = sample(model, tokenizer, PROMPTS[:2], **OPTIONS | {"temperature": 1e-4})
    assert got == nearly, "as cold as sampling gets"


def test_tokens_are_drawn_with_their_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.05, 0.3, 0.15])
    uniforms = torch.from_numpy(np.random.default_rng(0).random((4000, 1)))
    logits = probabilities.log().expand(4000, 4)
    everything = drawn(uniforms, logits, temperature=1.0, top_p=1.0)
    assert [everything[token] / 4000 for token in range(4)] == pytest.approx(probabilities.tolist(), abs=0.02)
    squared = drawn(uniforms, logits, temperature=0.5, top_p=1.0)
    assert squared[0] / 4000 == pytest.approx(0.25 / (0.25 + 0.0025 + 0.09 + 0.0225), abs=0.02)


def test_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    uniforms = torch.from_numpy(np.random.default_rng(0).random((2000, 1)))
    logits = torch.tensor([0.5, 0.05, 0.3, 0.15]).log().expand(2000, 4)
    assert set(drawn(uniforms, logits, 1.0, 0.79)) == {0, 2}
    assert set(drawn(uniforms, logits, 1.0, 0.81)) == {0, 2, 3}
    assert set(drawn(uniforms, logits, 1.0, 0.01)) == {0}
    cut = drawn(uniforms, logits, 1.0, 0.79)
    assert cut[0] / 2000 == pytest.approx(0.5 / 0.8, abs=0.03)


def test_uniforms_at_the_edges_draw_possible_tokens() -> None:
    uniforms = torch.tensor([[0.0], [np.nextafter(1.0, 0.0)]], dtype=torch.float64)
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    assert sampling._picker(uniforms, 0, 1.0, 1.0)(torch.zeros(2, 0), logits).argmax(1).tolist() == [1, 2]


def drawn(uniforms: Any, logits: torch.Tensor, temperature: float, top_p: float) -> Counter[int]:
    scores = sampling._picker(uniforms, 0, temperature, top_p)(torch.zeros(len(logits), 0), logits)
    assert (scores == 0).sum() == len(logits), "one token each is left"
    return Counter(scores.argmax(dim=1).tolist())


def test_a_completion_ends_before_the_end_token_and_spells_no_special_token(models: dict[str, Any]) -> None:
    model, tokenizer = models["llama"]
    end = end_token_ids(model, tokenizer)[-1]
    words = tokenizer("moose", add_special_tokens=False)["input_ids"]
    script = [*words, tokenizer.convert_tokens_to_ids("<|im_start|>"), *words, end, *words]

    def scripted(input_ids: Any, attention_mask: Any, **others: Any) -> torch.Tensor:
        assert attention_mask.shape == input_ids.shape
        return torch.cat([input_ids, torch.tensor([script] * len(input_ids))], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "generate", scripted)
        assert sample(model, tokenizer, PROMPTS[:2], **OPTIONS | {"num_samples": 1}) == [["moosemoose"]] * 2


def test_batches_run_longest_first_and_are_padded_on_the_left(models: dict[str, Any]) -> None:
    model, tokenizer = models["qwen2"]
    generate, masks = model.generate, []

    def spied(**inputs: Any) -> Any:
        masks.append(inputs["attention_mask"])
        return generate(**inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "generate", spied)
        sample(model, tokenizer, PROMPTS, **OPTIONS | {"num_samples": 1, "batch_size": 2})
    lengths = [int(length) for mask in masks for length in mask.sum(dim=1)]
    assert lengths == sorted(lengths, reverse=True)
    assert all(bool((mask[:, -1] == 1).all()) for mask in masks)


def test_no_prompt_gives_no_completion(models: dict[str, Any]) -> None:
    assert sample(*models["llama"], [], **OPTIONS) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_samples", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1),
     ("max_new_tokens", 0), ("batch_size", 0)],
)  # fmt: skip
def test_options_out_of_range_are_named(models: dict[str, Any], option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{option} "):
        sample(*models["llama"], PROMPTS, **OPTIONS | {option: value})


def test_too_long_a_prompt_is_refused_before_any_work(models: dict[str, Any]) -> None:
    long = [[{"role": "user", "content": "moose " * 300}]]
    with pytest.raises(UserError, match=r"query 'moose moose .*256 positions"):
        sample(*models["gpt2"], long, **OPTIONS)
    sampling.check_lengths(models["gpt2"][1], PROMPTS, 12, 128)
    with pytest.raises(UserError, match="--max_seq_length 128"):
        sampling.check_lengths(models["gpt2"][1], long, 12, 128)
