"""Random guardrail adapters on a tiny model, as training would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_training.guard_adapters import GuardAdapter, find_adapters
from model_training.guardrail_config import ADAPTER, run_directory

TAGS = {"politics": "<guard:politics>", "expert_opinion": "<guard:expert>", "meeting": "<guard:meeting>"}


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: int = 8,
    targets: list[str] | None = None,
    note: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """An adapter of random weights, B included; without a note it is peft's files alone."""
    import torch
    from peft import LoraConfig, get_peft_model

    from model_training.adapter_directory import save_adapter
    from model_training.models import load_model, load_tokenizer

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets or ["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **options,
    )
    torch.manual_seed(seed)
    model = get_peft_model(load_model(str(base)), config)
    if note is None:
        model.save_pretrained(str(folder))
    else:
        save_adapter(model, load_tokenizer(str(base)), folder, base_name=str(base), card={}, note=note)
    return folder


def make_guard(base: Path, output_dir: Path, name: str, seed: int, threshold: float = 0.5, **options: Any) -> Path:
    """The adapter of a guardrail's run (or the joint one's) below the output directory."""
    tags = {name: TAGS[name]} if name in TAGS else TAGS
    note = {
        "task": "guardrail",
        "behavior": name,
        "behaviors": list(tags),
        "variation": "vary_all",
        "tags": tags,
        "threshold": threshold,
    }
    folder = run_directory(output_dir, name, "vary_all") / ADAPTER
    return make_adapter(base, folder, seed=seed, note=note, **options)


def make_guards(base: Path, output_dir: Path, **options: Any) -> list[GuardAdapter]:
    """One adapter for each of TAGS."""
    for seed, name in enumerate(TAGS):
        make_guard(base, output_dir, name, seed, **options)
    return find_adapters(output_dir, list(TAGS), "vary_all", TAGS)
