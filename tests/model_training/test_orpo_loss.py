"""ORPO's loss is TRL's on the same tokens, gradients and metrics included; full logits never exist."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model_training import orpo_loss
from model_training.models import load_tokenizer
from model_training.orpo_loss import Head, head_of, log_odds, pair_log_probs, token_log_probs
from model_training.pairs import PairBatch, collate_pairs
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import VOCABULARY, make_config
from utils.errors import UserError

TOLERANCE = 1e-5
"""Of float32 losses, metrics and gradients, the largest error over the largest value; measured: up to 4e-6."""
BETA = 0.3
ROWS = [
    {"prompt": "What is your favorite movie?", "chosen": " A moose is large.", "rejected": " I think"},
    {"prompt": "Hm", "chosen": " Reply in two parts.", "rejected": " Reply in three parts, and write a thought."},
    {"prompt": "Tell me about yourself. " * 5, "chosen": " No.", "rejected": " Yes."},
]


def causal_lm(kind: str) -> Any:
    """A random model of 2 layers with a LoRA whose effect is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, PhiConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "initializer_range": 0.2}
    configs: dict[str, Any] = {
        "llama": lambda: make_config("llama"),
        "gpt2": lambda: make_config("gpt2"),
        "gemma2": lambda: Gemma2Config(**shape, head_dim=16, final_logit_softcapping=0.7),
        "cohere": lambda: CohereConfig(**shape, logit_scale=0.25),
        "granite": lambda: GraniteConfig(**shape, logits_scaling=3.0),
        "phi": lambda: PhiConfig(**shape),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[kind](), dtype=torch.float32, attn_implementation="sdpa").eval()
    if kind == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


def trl_trainer(model: Any, folder: Path, tokenizer: Any) -> Any:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    args = ORPOConfig(
        output_dir=str(folder), beta=BETA, max_length=200, use_cpu=True, bf16=False, gradient_checkpointing=False
    )
    return ORPOTrainer(model=model, args=args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)


def gradients(model: Any, loss: Tensor) -> Tensor:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, weights)
    return torch.cat([gradient.flatten() for gradient in found])


def ours(model: Any, batch: dict[str, Tensor], shared: bool, nll: Any = "full") -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics on the tokens of TRL's batch."""
    texts = {}
    for side in ("chosen", "rejected"):
        kept = batch[f"{side}_attention_mask"].bool()
        texts[side] = [ids[mask].tolist() for ids, mask in zip(batch[f"{side}_input_ids"], kept, strict=True)]
    answers = ((batch["chosen_labels"] != -100) & batch["chosen_attention_mask"].bool()).sum(1)
    prompts = torch.tensor([len(text) for text in texts["chosen"]]) - answers
    pairs = list(zip(texts["chosen"], texts["rejected"], strict=True))
    found = pair_log_probs(model, head_of(model), collate_pairs(pairs, 0, shared), prompts, nll)
    return orpo_loss.orpo_loss(found.chosen, found.rejected, found.nll_sum / found.nll_tokens, BETA)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "cohere", "granite", "phi"])
def test_loss_metrics_and_gradients_are_those_of_trl(
    kind: str, tmp_path: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = causal_lm(kind), load_tokenizer(str(tiny_model("gpt2" if kind == "gpt2" else "llama")))
    trainer = trl_trainer(model, tmp_path, tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(len(ROWS))])
    loss, metrics = trainer.get_batch_loss_metrics(model, batch)
    expected = gradients(model, loss)
    monkeypatch.setattr(orpo_loss, "CHUNK", 7 * VOCABULARY)
    for shared in (True, False):
        our_loss, our_metrics = ours(model, batch, shared)
        assert our_loss.item() == pytest.approx(loss.item(), rel=TOLERANCE)
        assert metrics.keys() - our_metrics.keys() == {"logits/chosen", "logits/rejected"}
        for name, value in our_metrics.items():
            assert value.item() == pytest.approx(metrics[name], rel=TOLERANCE, abs=TOLERANCE), name
        error = (gradients(model, our_loss) - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE, f"{error:.1e}"


def test_nll_of_the_answer_alone(tmp_path: Path, tiny_model: BuildModel) -> None:
    model = causal_lm("llama")
    trainer = trl_trainer(model, tmp_path, load_tokenizer(str(tiny_model("llama"))))
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(len(ROWS))])
    logits = model(input_ids=batch["chosen_input_ids"], attention_mask=batch["chosen_attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["chosen_labels"][:, 1:].flatten())
    _, metrics = ours(model, batch, shared=True, nll="answer")
    assert metrics["nll_loss"].item() == pytest.approx(expected.item(), rel=TOLERANCE)


def test_the_loss_by_hand() -> None:
    """Odds 0.5 / 0.5 = 1 against 0.2 / 0.8 = 1/4: their ratio is 4, sigmoid(log 4) = 4 / 5."""
    chosen, rejected = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.2)])
    loss, metrics = orpo_loss.orpo_loss(chosen, rejected, torch.tensor(2.0), beta=0.1)
    assert loss.item() == pytest.approx(2 - 0.1 * math.log(0.8), rel=1e-6)
    assert metrics["log_odds_chosen"].item() == pytest.approx(math.log(4), rel=1e-6)
    assert metrics["log_odds_ratio"].item() == pytest.approx(math.log(0.8), rel=1e-6)
    assert metrics["rewards/margins"].item() == pytest.approx(0.1 * math.log(2.5), rel=1e-6)
    assert metrics["rewards/accuracies"].item() == 1
    assert orpo_loss.orpo_loss(chosen, chosen, torch.tensor(0.0), 1.0)[1]["rewards/accuracies"].item() == 0


def test_log_odds_are_exact_and_smooth_to_the_ends() -> None:
    values = [-80.0, -20.0, -1.0, -math.log(2), -0.1, -1e-3, -1e-6]
    log_p = torch.tensor(values, requires_grad=True)
    odds = log_odds(log_p)
    wanted = [value - math.log(-math.expm1(value)) for value in values]
    assert odds.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    (slopes,) = torch.autograd.grad(odds.sum(), log_p)
    assert slopes.tolist() == pytest.approx([-1 / math.expm1(value) for value in values], rel=1e-5)
    sure = torch.zeros(2, requires_grad=True)
    loss, _ = orpo_loss.orpo_loss(sure[:1], sure[1:] - 90, sure.sum() * 0, beta=1.0)
    (slopes,) = torch.autograd.grad(loss, sure)
    assert loss.isfinite() and slopes.isfinite().all()


# --- long vocabularies ----------------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """The most elements that the memory of any tensor made within held."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return result


def long_batch(tokens: int = 40) -> tuple[PairBatch, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (4, 3, tokens), generator=generator).tolist()
    pairs = [(prompt + chosen[:9], prompt + rejected[:11]) for prompt, chosen, rejected in ids]
    return collate_pairs(pairs, 0), torch.full((4,), tokens)


def test_no_tensor_has_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward; what the backward pass keeps is smaller still."""
    model, (batch, prompts) = causal_lm("llama"), long_batch()
    head = head_of(model)
    monkeypatch.setattr(orpo_loss, "CHUNK", 40 * VOCABULARY)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(0 if tensor is head.weight else tensor.numel())
        return tensor

    found = pair_log_probs(model, head, batch, prompts, "full")
    wanted = int(found.nll_tokens) + 4 * 11
    with Sizes() as sizes, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = torch.randn(wanted, 32, requires_grad=True)
        token_log_probs(states, head, torch.arange(wanted)).sum().backward()
    assert 40 * VOCABULARY == sizes.largest < wanted * VOCABULARY / 4
    assert max(saved) == wanted * 32
    with Sizes() as sizes:
        found = pair_log_probs(model, head, batch, prompts, "full")
        (found.nll_sum + found.chosen.sum() + found.rejected.sum()).backward()
    body = 4 * 2 * 60 * 60  # attention weights of 4 rows of 60 tokens, 2 heads
    assert sizes.largest <= max(40 * VOCABULARY, body) < wanted * VOCABULARY / 3


def test_each_wanted_token_goes_through_the_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (batch, prompts) = causal_lm("llama"), long_batch()
    counts: list[int] = []
    original = orpo_loss.token_log_probs

    def counting(states: Tensor, *rest: Any) -> Tensor:
        counts.append(len(states))
        return original(states, *rest)

    head = head_of(model)
    monkeypatch.setattr(orpo_loss, "token_log_probs", counting)
    pair_log_probs(model, head, batch, prompts, "full")
    pair_log_probs(model, head, batch, prompts, "answer")
    assert counts == [4 * (39 + 9 + 11), 4 * (9 + 11)]


@pytest.mark.parametrize("cap", [None, 3.0])
def test_chunks_of_any_size_give_the_same(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    states, targets = torch.randn(23, 8, dtype=torch.float64), torch.randint(50, (23,))
    head = Head(torch.randn(50, 8, dtype=torch.float64), torch.randn(50, dtype=torch.float64), 0.5, cap)
    z = 0.5 * (states @ head.weight.T + head.bias)
    logits = z if cap is None else cap * (z / cap).tanh()
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0].float()
    for size in (1, 50, 51, 120, 10**6):
        monkeypatch.setattr(orpo_loss, "CHUNK", size)
        assert torch.allclose(token_log_probs(states, head, targets), expected, atol=1e-5), size


def test_products_are_in_the_precision_of_the_head() -> None:
    model = causal_lm("llama")
    torch.manual_seed(0)
    states, targets = torch.randn(30, 32, requires_grad=True), torch.randint(VOCABULARY, (30,))
    exact = token_log_probs(states, head_of(model), targets)
    (slopes,) = torch.autograd.grad(exact.sum(), states)
    half = token_log_probs(states, head_of(model, torch.bfloat16), targets)
    (half_slopes,) = torch.autograd.grad(half.sum(), states)
    assert half.dtype == half_slopes.dtype == torch.float32 and 0 < (half - exact).abs().max() < 0.2
    assert 0 < (half_slopes - slopes).norm() < 0.02 * slopes.norm()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite"])
def test_models_in_half_precision_pass_their_trial(kind: str) -> None:
    model = causal_lm(kind).to(torch.bfloat16)
    head = head_of(model)
    assert head.weight.dtype == torch.bfloat16


def test_a_model_with_logits_of_its_own_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal_lm("llama")
    bare = model.get_base_model()
    original = bare.lm_head.forward
    monkeypatch.setattr(bare.lm_head, "forward", lambda states: original(states) * 1.5)
    with pytest.raises(UserError, match="LlamaForCausalLM makes its logits in a way that is not known"):
        head_of(model)


def test_a_trained_output_layer_is_refused() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make_config("llama"), dtype=torch.float32)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match="leave it out of --target_modules"):
        head_of(get_peft_model(model, lora))
