"""Equal prompts are read once, and what is sampled stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from model_training.models import load_model, new_adapter
from model_training.prefill import prompts_once
from tests.model_training.conftest import BuildModel
from tests.model_training.test_group_log_probs import SMALL
from tests.model_training.tiny_models import FAMILIES

PAD = 3


def sample(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    options = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": PAD}
    found: torch.Tensor = model.generate(input_ids=ids, attention_mask=mask, **options)
    return found


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 400, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :6], mask[1, :6] = PAD, 0
    return ids[[0, 0, 1, 1, 0]], mask[[0, 0, 1, 1, 0]]


@pytest.mark.parametrize("family", [*FAMILIES, "windows"])
def test_completions_are_those_of_the_plain_way(
    family: str, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if family == "windows":
        model = AutoModelForCausalLM.from_config(MistralConfig(**SMALL, sliding_window=9))
    else:
        model = load_model(str(tiny_model(family)))
    model = new_adapter(model, 4, seed=0).eval()
    ids, mask = prompts()
    plain = sample(model, ids, mask)
    read = []
    base = model.get_base_model()
    hook = base.register_forward_pre_hook(lambda _m, _a, given: read.append(given["input_ids"].shape), with_kwargs=True)
    with prompts_once(model):
        shared = sample(model, ids, mask)
    assert torch.equal(shared, plain)
    assert len({tuple(row) for row in shared[:, 20:].tolist()}) == 5, "the samples differ"
    assert read[:2] == [(2, 20), (5, 1)]
    read.clear()
    sample(model, ids, mask)
    hook.remove()
    assert read[0] == (5, 20), "afterwards all is as before"
