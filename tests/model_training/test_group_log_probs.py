"""A prompt computed once for its completions gives TRL's log-probabilities, entropies and gradients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, MambaConfig, MistralConfig
from trl import GRPOTrainer

from model_training import group_log_probs as group_log_probs_module
from model_training.group_log_probs import Sharing, find_sharing, group_log_probs, group_rows, pays, together
from model_training.grpo import SegmentTrainer
from model_training.models import load_model, new_adapter
from model_training.pairs import PADDING, tree_mask
from model_training.secret import train
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import FAMILIES, VOCABULARY, make_records, small_config
from utils.runs import read_metrics

PAD = 3
TOLERANCE = 1e-5
TEMPERATURE = 0.7
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,
}
PROMPTS = (40, 40, 31, 40, 31, 40)
"""Tokens of each row's prompt; equal lengths are the same prompt. The batch is shuffled as TRL does."""
COMPLETIONS = (7, 1, 5, 4, 6, 7)


def trl_batch(prompts: tuple[int, ...] = PROMPTS, completions: tuple[int, ...] = COMPLETIONS) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` as TRL pads them: prompts on the left, completions on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((len(prompts), max(prompts) + max(completions)), PAD)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        same = torch.Generator().manual_seed(prompt)
        ids[row, max(prompts) - prompt : max(prompts)] = torch.randint(0, VOCABULARY, (prompt,), generator=same)
        end = max(prompts) + completion
        ids[row, max(prompts) : end] = torch.randint(0, VOCABULARY, (completion,), generator=generator)
        mask[row, max(prompts) - prompt : end] = 1
    return ids, mask


def by_trl(model: Any, ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    trainer: Any = SimpleNamespace(
        model_kwarg_keys={"logits_to_keep"}, temperature=TEMPERATURE, _entropy_bonus_enabled=False
    )
    logps, entropies, _ = GRPOTrainer._full_logits_logps(trainer, model, ids, mask, width, compute_entropy=True)
    assert entropies is not None
    return logps, entropies


def sharing_of(model: Any) -> Sharing:
    found = find_sharing(model, PAD, TEMPERATURE)
    assert isinstance(found, Sharing), found
    return found


def assert_like_trl(model: Any) -> None:
    ids, mask = trl_batch()
    width, weights = max(COMPLETIONS), torch.linspace(-1, 1, len(ids) * max(COMPLETIONS)).view(len(ids), -1)
    sharing = sharing_of(model)
    rows = group_rows(sharing, ids, mask, width)
    assert rows is not None and len(rows.input_ids) == 2
    shared = group_log_probs(model, sharing, rows, (len(ids), width), entropy=True)
    results = []
    for logps, entropies in (shared, by_trl(model, ids, mask, width)):
        assert entropies is not None and not entropies.requires_grad
        model.zero_grad()
        (logps * weights).sum().backward()
        slopes = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        results.append((logps.detach(), entropies * mask[:, -width:], slopes))
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0
        assert (ours - theirs).abs().max() < TOLERANCE * max(1.0, theirs.abs().max().item())
    without, nothing = group_log_probs(model, sharing, rows, (len(ids), width), entropy=False)
    assert nothing is None and torch.equal(without, results[0][0])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_results_and_gradients_are_those_of_trl(family: str, checkpointing: bool, tiny_model: BuildModel) -> None:
    model = new_adapter(load_model(str(tiny_model(family))), 4, seed=0)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    assert_like_trl(model)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=9),
        Gemma2Config(**SMALL, sliding_window=9, final_logit_softcapping=3.0, attn_implementation="eager"),
    ],
    ids=["windows", "capped logits"],
)
def test_windows_and_capped_logits(config: Any) -> None:
    torch.manual_seed(0)
    assert_like_trl(new_adapter(AutoModelForCausalLM.from_config(config), 4, seed=0))


def sharing_like(balance: float) -> Sharing:
    return Sharing(head=None, balance=balance, pad_id=PAD)  # type: ignore[arg-type]


def test_each_row_is_a_prompt_and_its_completions_once() -> None:
    ids, mask = trl_batch()
    rows = group_rows(sharing_like(25_000), ids, mask, max(COMPLETIONS))
    assert rows is not None
    assert rows.input_ids.shape == (2, 40 + 7 + 1 + 4 + 7)
    assert (rows.segments != PADDING).sum().item() == 40 + 31 + sum(COMPLETIONS)
    third = rows.segments[0] == 3
    sees = tree_mask(rows)[0, 0, third].any(0)
    assert sees.nonzero()[:, 0].tolist() == [*range(40), *range(48, 52)]


def test_sharing_pays_by_the_work_that_it_saves() -> None:
    large = sharing_like(25_000)
    assert pays(large, [1000], [[64] * 8])
    assert not pays(large, [1000] * 8, [[64]] * 8), "nothing is shared"
    assert not pays(large, [20], [[64] * 8]), "a prompt too short to matter"
    small = sharing_like(1_500)
    assert not pays(small, [100], [[256] * 8]), "attention over one long row costs more than it saves"
    assert pays(large, [256], [[256] * 8])
    assert pays(large, [100] * 2, [[5] * 4, [5] * 4]) and not pays(large, [100] * 2, [[90] * 7, [5]]), "padding counts"
    tokens = sharing_like(float("inf"))
    assert pays(tokens, [20], [[20] * 2]) and not pays(tokens, [10], [[20] * 2])  # 60 of 80 tokens, 50 of 60


def test_micro_batches_are_split_anew_by_prompt_and_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = trl_batch((40, 31, 40, 31), (3, 2, 1, 2))
    whole = {
        "prompt_ids": ids[:, :40],
        "prompt_mask": mask[:, :40],
        "completion_ids": ids[:, 40:],
        "completion_mask": mask[:, 40:],
        "advantages": torch.arange(4.0),
        "num_items_in_batch": torch.tensor(8),
        "old_per_token_logps": None,
    }
    halves = [{k: v[n : n + 2] if v is not None and v.ndim else v for k, v in whole.items()} for n in (0, 2)]
    again = together(sharing_like(25_000), halves)
    assert [batch["advantages"].tolist() for batch in again] == [[0, 2], [1, 3]]
    assert torch.equal(torch.cat([batch["completion_ids"] for batch in again]), ids[[0, 2, 1, 3], 40:])
    assert again[1]["num_items_in_batch"].item() == 8 and again[0]["old_per_token_logps"] is None
    monkeypatch.setattr(group_log_probs_module, "SHARE_BELOW", 0.5)
    assert together(sharing_like(25_000), halves) is halves


def test_a_model_that_cannot_share_says_why() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    found = find_sharing(AutoModelForCausalLM.from_config(config), PAD, 1.0)
    assert isinstance(found, str) and found.startswith("MambaForCausalLM")


# --- in the training ------------------------------------------------------------------------------------------------


def train_and_count(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any
) -> tuple[list[dict[str, Any]], int]:
    """The rows of a GRPO run, and how many micro-batches (or parts of reference batches) shared their prompts."""
    from model_training import grpo

    calls = []
    original = grpo.group_log_probs
    with monkeypatch.context() as patch:
        patch.setattr(grpo, "group_log_probs", lambda *given: calls.append(given) or original(*given))
        places = {"output_dir": str(root / name), "save_lora_path": str(root / f"{name} lora")}
        train(small_config(root, model, sft_steps=0, max_steps=3, **places, **changes))
    return [row for row in read_metrics(root / name) if row["split"] == "grpo"], len(calls)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_that_shares_is_the_training_that_does_not(
    checkpointing: bool, tmp_path: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a KL penalty to the start, and several micro-batches in a step."""
    make_records(tmp_path / "data.json")
    changes = {"beta": 0.1, "max_completion_length": 8, "gradient_checkpointing": checkpointing}
    shared, count = train_and_count(tmp_path, tiny_model("llama"), monkeypatch, "shared", **changes)
    assert count == 3 * (2 + 2), "two micro-batches a step, and two of the reference model"
    monkeypatch.setattr(SegmentTrainer, "sharing", property(lambda _: None, lambda _, __: None))
    plain, none = train_and_count(tmp_path, tiny_model("llama"), monkeypatch, "plain", **changes)
    assert none == 0
    assert plain[-1]["kl"] > 0
    for ours, theirs in zip(shared, plain, strict=True):
        for key in ("loss", "grad_norm", "entropy", "kl", "reward", "completions/mean_length"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=2e-6), key


def test_short_prompts_take_the_way_of_trl(
    tmp_path: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_records(tmp_path / "data.json")
    monkeypatch.setattr(group_log_probs_module, "SHARE_BELOW", 0.01)
    _, count = train_and_count(tmp_path, tiny_model("llama"), monkeypatch, "plain")
    assert count == 0
