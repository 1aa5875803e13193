"""Shared prompts are exact: losses and gradients are those of the plain forward, whatever the pair and the model."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from model_training.loading import TINY_PATH
from model_training.pairs import (
    CHOSEN,
    PADDING,
    PREFIX,
    REJECTED,
    Pair,
    PairBatch,
    check_shared,
    collate_pairs,
    pair_hidden,
    pair_outputs,
    row_length,
    tree_mask,
)
from model_training.preference_losses import loss
from tests.model_training.tiny_models import FAMILIES, VOCABULARY, make_config
from utils.errors import UserError

PAD = 0
TOLERANCE = 1e-5
"""Of float32 outputs, losses and gradients, the largest error over the largest value; measured: up to 3.4e-6."""
HALF_TOLERANCE = 0.03
"""Of bfloat16, whose numbers are 0.8 % apart: of outputs (measured: 0) and of the gradient's norm (up to 0.01)."""
SIZES = {
    "ordinary": (10, 5, 7),
    "long": (90, 3, 40),
    "no prompt": (0, 4, 3),
    "chosen begins rejected": (6, 0, 5),
    "rejected begins chosen": (3, 6, 0),
    "identical": (8, 0, 0),
    "one token": (0, 1, 1),
}
REAL_PAIRS = Path(__file__).parents[2] / "../shared/data/preference/relabeled_helpful_test.jsonl.gz"
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "init_lora_weights": False, "target_modules": "all-linear"}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
WINDOWED: dict[str, Callable[[], Any]] = {
    "every layer": lambda: MistralConfig(**SMALL, sliding_window=7),
    "upper layers": lambda: Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "alternating": lambda: Gemma3TextConfig(
        **SMALL, sliding_window=7, layer_types=["sliding_attention", "full_attention"]
    ),
}


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


def make_pairs(sizes: list[tuple[int, int, int]], seed: int = 0) -> list[Pair]:
    """Random texts; sizes: tokens of the prompt, of the rest of chosen, of the rest of rejected. No token is PAD."""
    rng = random.Random(seed)

    def text(first: int, size: int) -> list[int]:
        return [first if n == 0 else rng.randrange(3, VOCABULARY) for n in range(size)]

    pairs = []
    for size, chosen, rejected in sizes:
        prompt = text(5, size)
        pairs.append((prompt + text(1, chosen), prompt + text(2, rejected)))
    return pairs


ALL_PAIRS = make_pairs(list(SIZES.values()))


@cache
def classifier(family: str, attention: str = "sdpa") -> Any:
    """A random classifier with two outputs whose attention is far from even, dropout off."""
    torch.manual_seed(0)
    config = WINDOWED[family]() if family in WINDOWED else make_config(family)
    config.num_labels, config.pad_token_id, config.initializer_range = 2, PAD, 0.2
    if family == "gpt2":
        config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention, dtype=torch.float32)


def padded(texts: list[list[int]], side: str = "right") -> dict[str, Tensor]:
    """What a tokenizer makes of texts; position ids only where padding on the left would shift them."""
    width = max(map(len, texts))
    rows, masks = [], []
    for text in texts:
        fill, ones = [PAD] * (width - len(text)), [1] * len(text)
        rows.append(text + fill if side == "right" else fill + text)
        masks.append(ones + [0] * len(fill) if side == "right" else [0] * len(fill) + ones)
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    if side == "left":
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return inputs


def plain_outputs(model: Any, pairs: list[Pair], side: str = "right") -> tuple[Tensor, Tensor]:
    """transformers' own forward and pooling."""
    texts = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    chosen, rejected = model(**padded(texts, side)).logits.float().chunk(2)
    return chosen, rejected


def shared_outputs(model: Any, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    return pair_outputs(model, collate_pairs(pairs, PAD))


def loss_and_gradients(model: Any, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The losses of the pairs (B,), and the gradients of their mean, all parameters in a row."""
    losses = loss("mean_and_variance", *outputs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses.mean(), trained, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in gradients)
    return losses.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def assert_close(result: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


def assert_exact(model: Any, pairs: list[Pair], tolerance: float = TOLERANCE, side: str = "right") -> None:
    """Outputs, losses and gradients with a shared prompt against the plain forward."""
    plain, shared = plain_outputs(model, pairs, side), shared_outputs(model, pairs)
    for result, expected in zip(shared, plain, strict=True):
        assert_close(result, expected, tolerance)
    expected = loss_and_gradients(model, plain)
    for result, one in zip(loss_and_gradients(model, shared), expected, strict=True):
        assert_close(result, one, tolerance)


# --- the batch ------------------------------------------------------------------------------------------------------


def test_a_pair_is_one_row() -> None:
    batch = collate_pairs([([5, 6, 7], [5, 6, 8, 9]), ([3], [4])], pad_id=PAD)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, PAD, PAD, PAD]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3], [0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [
        [PREFIX, PREFIX, CHOSEN, REJECTED, REJECTED],
        [CHOSEN, REJECTED, PADDING, PADDING, PADDING],
    ]
    assert batch.previous.tolist() == [-1, 0, 1, 1, 3, -1, -1, -1, -1, -1]
    assert batch.chosen_at.tolist() == [[0, 1, 2], [5, -1, -1]]
    assert batch.rejected_at.tolist() == [[0, 1, 3, 4], [6, -1, -1, -1]]
    assert (batch.chosen_last.tolist(), batch.rejected_last.tolist()) == ([2, 5], [4, 6])
    assert batch.prefix_lengths.tolist() == [2, 0]


def test_without_sharing_a_pair_is_two_rows() -> None:
    batch = collate_pairs([([5, 6, 7], [5, 6, 8, 9]), ([3], [4])], pad_id=PAD, shared=False)
    assert batch.input_ids.tolist() == [[5, 6, 7, PAD], [3, PAD, PAD, PAD], [5, 6, 8, 9], [4, PAD, PAD, PAD]]
    assert batch.rejected_at.tolist() == [[8, 9, 10, 11], [12, -1, -1, -1]]
    assert batch.previous.tolist() == [-1, 0, 1, -1, -1, -1, -1, -1, -1, 8, 9, 10, -1, -1, -1, -1]
    assert (batch.chosen_last.tolist(), batch.rejected_last.tolist()) == ([2, 4], [11, 12])
    assert batch.prefix_lengths.tolist() == [2, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_every_text_is_read_back(shared: bool) -> None:
    batch = collate_pairs(ALL_PAIRS, PAD, shared)
    tokens, positions = batch.input_ids.flatten(), batch.positions.flatten()
    for number, pair in enumerate(ALL_PAIRS):
        for places, text in zip((batch.chosen_at[number], batch.rejected_at[number]), pair, strict=True):
            places = places[places >= 0]
            assert tokens[places].tolist() == text
            assert positions[places].tolist() == list(range(len(text)))
            assert batch.previous[places].tolist() == [-1, *places[:-1].tolist()]
    widths = [row_length(pair, shared) for pair in ALL_PAIRS]
    assert batch.input_ids.shape[1] == max(widths)
    if shared:
        assert (batch.segments != PADDING).sum(1).tolist() == widths


def test_identical_texts_are_scored_at_one_token() -> None:
    batch = collate_pairs([([7, 8, 9], [7, 8, 9])], PAD)
    assert batch.input_ids.tolist() == [[7, 8, 9]]
    assert batch.chosen_last.tolist() == batch.rejected_last.tolist() == [2]


def test_the_scored_token_is_the_last_that_is_not_the_pad_token() -> None:
    batch = collate_pairs([([7, PAD, 8, PAD, PAD], [7, PAD])], PAD)
    assert (batch.chosen_last.tolist(), batch.rejected_last.tolist()) == ([2], [0])
    assert batch.chosen_at.shape == (1, 5)


@pytest.mark.parametrize("text", [[], [PAD, PAD]])
def test_a_text_without_tokens_is_an_error(text: list[int]) -> None:
    with pytest.raises(ValueError, match="pair 1 "):
        collate_pairs([([4], [5]), ([4, 5], text)], PAD)


def test_the_mask_is_a_tree() -> None:
    batch = collate_pairs([([5, 6, 7, 8], [5, 6, 9]), ([5, 6], [5, 7])], PAD)
    first, second = tree_mask(batch)[:, 0].int().tolist()
    assert first == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert second[:3] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]
    windowed = tree_mask(batch, window=2)[0, 0].int().tolist()
    assert windowed == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]


def test_a_batch_moves_whole() -> None:
    batch = collate_pairs(ALL_PAIRS, PAD)
    moved = vars(batch.to("meta"))
    assert {name for name, value in vars(batch).items() if isinstance(value, Tensor)} == {
        name for name, value in moved.items() if isinstance(value, Tensor) and value.is_meta
    }
    assert moved["shared"] is True


# --- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_plain_forward(family: str, attention: str) -> None:
    assert_exact(classifier(family, attention), ALL_PAIRS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", SIZES)
def test_a_batch_of_one(family: str, kind: str) -> None:
    pairs = make_pairs([SIZES[kind]])
    model = classifier(family)
    for result, expected in zip(shared_outputs(model, pairs), plain_outputs(model, pairs), strict=True):
        assert_close(result, expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_padding_on_the_left_says_the_same(family: str) -> None:
    assert_exact(classifier(family), ALL_PAIRS, side="left")


@pytest.mark.parametrize("max_length", [96, 91, 20, 1])
def test_texts_cut_at_max_length(max_length: int) -> None:
    pairs = [(chosen[:max_length], rejected[:max_length]) for chosen, rejected in ALL_PAIRS]
    assert_exact(classifier("llama"), pairs)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_lora_and_a_trained_head(family: str, checkpointing: bool) -> None:
    model = get_peft_model(
        AutoModelForSequenceClassification.from_config(classifier(family).config, dtype=torch.float32),
        LoraConfig(task_type="SEQ_CLS", **LORA),
    )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_" in name for name in trained) and any("score.modules_to_save" in name for name in trained)
    assert_exact(model.train(), ALL_PAIRS)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16(family: str, how: str) -> None:
    model = AutoModelForSequenceClassification.from_config(classifier(family).config, dtype=torch.float32)
    if how == "weights":
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        assert {output.dtype for output in shared_outputs(model, ALL_PAIRS)} == {torch.float32}
        plain, shared = plain_outputs(model, ALL_PAIRS), shared_outputs(model, ALL_PAIRS)
        for result, expected in zip(shared, plain, strict=True):
            assert_close(result, expected, HALF_TOLERANCE)
        expected, result = (loss_and_gradients(model, outputs)[1].float() for outputs in (plain, shared))
    assert (result - expected).norm() <= HALF_TOLERANCE * expected.norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("windows", WINDOWED)
def test_sliding_windows_shorter_than_the_texts(windows: str, attention: str) -> None:
    model = classifier(windows, attention)
    assert_exact(model, ALL_PAIRS)
    check_shared(model, PAD)


@pytest.mark.skipif(not REAL_PAIRS.is_file(), reason="the real pairs are not beside this checkout")
def test_real_pairs_on_the_embedded_model() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_PATH)
    rows = [json.loads(line) for line in gzip.decompress(REAL_PAIRS.read_bytes()).decode("utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: len(row["chosen"] + row["rejected"]))[400:1600:300]
    sides = [tokenizer([row[side] for row in rows])["input_ids"] for side in ("chosen", "rejected")]
    pairs = list(zip(*sides, strict=True))
    assert sum(map(row_length, pairs)) < 0.75 * sum(len(text) for pair in pairs for text in pair)
    model = AutoModelForSequenceClassification.from_pretrained(TINY_PATH, num_labels=2, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    assert_exact(model, pairs)


def test_without_sharing_outputs_are_the_plain_ones() -> None:
    model = classifier("gpt2")
    plain, apart = plain_outputs(model, ALL_PAIRS), pair_outputs(model, collate_pairs(ALL_PAIRS, PAD, shared=False))
    assert all(torch.equal(result, expected) for result, expected in zip(apart, plain, strict=True))


def test_the_outermost_model_is_called_and_gradients_of_devices_are_joined(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(classifier("llama").config, dtype=torch.float32)
    expected = loss_and_gradients(model, plain_outputs(model, ALL_PAIRS))[1]
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        joined = []
        wrapped.register_comm_hook(None, lambda _, bucket: _joined(joined, bucket))
        loss("mean_and_variance", *shared_outputs(wrapped, ALL_PAIRS)).mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert sum(joined) == sum(parameter.numel() for parameter in model.parameters())
    assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), expected)


def _joined(joined: list[int], bucket: Any) -> Any:
    joined.append(bucket.buffer().numel())
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


# --- hidden states of a causal LM -----------------------------------------------------------------------------------


def token_log_probs(model: Any, batch: PairBatch, places: Tensor) -> list[list[float]]:
    """Log-probability of every token of every text but its first, as ORPO takes it."""
    hidden = pair_hidden(model, batch)
    result = []
    for text in places:
        tokens = text[text >= 0][1:]
        log_probs = model.get_output_embeddings()(hidden[batch.previous[tokens]]).log_softmax(-1)
        targets = batch.input_ids.flatten()[tokens]
        result.append(log_probs[torch.arange(len(tokens)), targets].tolist())
    return result


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("shared", [True, False])
def test_hidden_states_predict_every_token_of_both_texts(family: str, shared: bool) -> None:
    config = classifier(family).config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    batch = collate_pairs(ALL_PAIRS, PAD, shared)
    with torch.no_grad():
        for places, side in ((batch.chosen_at, 0), (batch.rejected_at, 1)):
            for result, pair in zip(token_log_probs(model, batch, places), ALL_PAIRS, strict=True):
                text = torch.tensor([pair[side]])
                log_probs = model(input_ids=text).logits[0, :-1].log_softmax(-1)
                expected = log_probs[torch.arange(text.numel() - 1), text[0, 1:]].tolist()
                assert result == pytest.approx(expected, abs=1e-4)


def test_hidden_states_through_an_adapter() -> None:
    model = AutoModelForCausalLM.from_config(classifier("qwen2").config, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    texts = padded([chosen for chosen, _ in ALL_PAIRS])
    batch = collate_pairs(ALL_PAIRS, PAD)
    expected = adapted(**texts, output_hidden_states=True).hidden_states[-1]
    real = texts["attention_mask"].bool()
    assert_close(pair_hidden(adapted, batch)[batch.chosen_at[batch.chosen_at >= 0]], expected[real])


# --- models that cannot ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_can_share_pass(family: str) -> None:
    model = AutoModelForCausalLM.from_config(make_config(family), dtype=torch.float32).train()
    assert family != "gpt2" or model.config.attn_pdrop > 0
    check_shared(model, PAD)
    assert model.training


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2),
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=10,
        ),
    ],
    ids=["positions from the mask", "no attention", "a window of its own"],
)
def test_models_that_cannot_share_are_refused(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with pytest.raises(UserError, match="--shared_prompt false"):
        check_shared(model, PAD)
    assert not model.training


def test_a_refusal_names_the_model_behind_its_adapter() -> None:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2, pad_token_id=PAD)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    with pytest.raises(UserError, match="^BloomForSequenceClassification with "):
        check_shared(get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **LORA)), PAD)
