"""Merge the adapters of several guardrails into one plain peft adapter, and measure how far it is from their sum.

    merged = merge_adapters(find_adapters(...), "svd", "outputs", weights=[1, 1, 1], rank=16)
    merged.path, merged.note["relative_error"]

The ways to merge are in merge_methods.py. The error of a merge is that of all layers together,

    |merged - sum_i w_i delta_i|_F / |sum_i w_i delta_i|_F,   delta_i = s_i B_i A_i

Weight 1 each keeps every guard whole; 1/n would cut each to an n-th. A merge needs neither the base model nor a large
matrix, so it takes milliseconds a layer. It is written to OUTPUT_DIR/merged/MODE-HASH, with the hash of all that it is
made of, in one move: what lies there is whole and never stale, and is used again once its own hash is found right.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_training.checkpoints import PARTIAL, disk_errors, publish_directory
from model_training.guard_adapters import DEFAULT_THRESHOLD, NOTE, GuardAdapter, common_base
from model_training.guardrail_config import Merge
from model_training.lora_files import CONFIG, WEIGHTS, LoraLayers, in_order, read_lora, write_lora
from model_training.merge_methods import Factors, Term, merge_layer, squared_error
from utils.errors import UserError
from utils.files import sha256_file

MERGED = "merged"
FORMAT = 1
"""Counted up when merges of the same inputs come out differently."""
NEED_EQUAL_RANKS = ("linear", "ties", "dare_ties")
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)


def merge_adapters(
    adapters: Sequence[GuardAdapter],
    mode: Merge,
    output_dir: str | Path,
    *,
    weights: Sequence[float] = (),
    rank: int = 0,
    density: float = 0.5,
    seed: int = 0,
    model_name: str | None = None,
) -> GuardAdapter:
    """The merge of the adapters, made or found below OUTPUT_DIR/merged.

    `weights` are 1 each by default, `rank` of the svd the largest of the adapters'; `model_name` is their base where
    it no longer stands where they recorded it.

    Raises:
        UserError: fewer than two adapters, another number of weights or none but zeros, different bases, ranks that
            the mode cannot merge, or what is no plain LoRA adapter.
        WorkError: the directory cannot be written.
    """
    chosen = _weights(adapters, weights)
    base = common_base(adapters, model_name)
    loras = [read_lora(adapter.path) for adapter in adapters]
    if mode in NEED_EQUAL_RANKS:
        _check_ranks(mode, loras)
    settings: dict[str, Any] = {"mode": mode, "weights": chosen}
    if mode == "svd":
        settings["rank"] = rank or max(lora.rank for lora in loras)
    if mode in ("ties", "dare_ties"):
        settings["density"] = density
    if mode == "dare_ties":
        settings["seed"] = seed
    inputs = [_input(adapter, lora) for adapter, lora in zip(adapters, loras, strict=True)]
    digest = hashlib.sha256(json.dumps([FORMAT, base, settings, inputs], sort_keys=True).encode()).hexdigest()
    target = Path(output_dir) / MERGED / f"{mode}-{digest[:16]}"
    note = _whole(target)
    if note is None:
        factors, error = _merged(loras, mode, chosen, settings.get("rank", 0), density, seed)
        tags = {name: tag for adapter in adapters for name, tag in adapter.tags.items()}
        prints = [adapter.note["base_fingerprint"] for adapter in adapters if "base_fingerprint" in adapter.note]
        note = {
            "base_model": base,
            **({"base_fingerprint": prints[0]} if prints else {}),
            "task": "guardrail",
            **settings,
            "behaviors": list(tags),
            "tags": tags,
            "relative_error": error,
            "inputs": inputs,
        }
        note = _write(target, factors, loras, base, note)
    return GuardAdapter(mode, target, None, note["tags"], DEFAULT_THRESHOLD, note)


def _merged(
    loras: list[LoraLayers], mode: Merge, weights: list[float], rank: int, density: float, seed: int
) -> tuple[dict[str, Factors], float]:
    """The merged factors by layer, and their relative error over all layers."""
    import torch

    factors: dict[str, Factors] = {}
    errors = sums = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in sorted({layer for lora in loras for layer in lora.factors}):
            terms = [
                Term(weight * lora.scales[layer], *lora.factors[layer])
                for lora, weight in zip(loras, weights, strict=True)
                if layer in lora.factors
            ]
            _check_shapes(layer, terms, loras)
            factors[layer] = merge_layer(mode, terms, rank, density)
            of_layer = squared_error(factors[layer], terms)
            errors, sums = errors + of_layer[0], sums + of_layer[1]
    if sums == 0:
        raise UserError(f"--adapter_mode {mode}: the weighted sum of the adapters is zero; there is nothing to merge")
    return factors, math.sqrt(errors / sums)


# --- what can be merged -----------------------------------------------------------------------------------------------


def _weights(adapters: Sequence[GuardAdapter], weights: Sequence[float]) -> list[float]:
    names = [adapter.name for adapter in adapters]
    if len(adapters) < 2:
        raise UserError(f"a merge takes two adapters or more, not {len(adapters)}; for one, take --adapter_mode single")
    if weights and len(weights) != len(adapters):
        raise UserError(f"--merge_weights has {len(weights)} numbers for {len(adapters)} adapters ({', '.join(names)})")
    if weights and not any(weights):
        raise UserError("--merge_weights are all 0: nothing is left to merge; give one that is not")
    return [float(weight) for weight in weights] or [1.0] * len(adapters)


def _check_ranks(mode: Merge, loras: list[LoraLayers]) -> None:
    for layer in sorted({layer for lora in loras for layer in lora.factors}):
        ranks = {str(lora.path): lora.factors[layer][0].shape[0] for lora in loras if layer in lora.factors}
        if len(set(ranks.values())) > 1:
            listed = ", ".join(f"{path} has {rank}" for path, rank in ranks.items())
            raise UserError(
                f"--adapter_mode {mode}: the adapters differ in rank ({listed}, in {layer}); cat and svd merge them"
            )


def _check_shapes(layer: str, terms: list[Term], loras: list[LoraLayers]) -> None:
    shapes = {(term.B_OR.shape[0], term.A_RI.shape[1]) for term in terms}
    if len(shapes) > 1:
        paths = ", ".join(str(lora.path) for lora in loras)
        raise UserError(f"adapters of different base models: {layer} has not one shape in {paths} ({sorted(shapes)})")


# --- the directory ----------------------------------------------------------------------------------------------------


def _input(adapter: GuardAdapter, lora: LoraLayers) -> dict[str, Any]:
    """What identifies an adapter: its name, its tags, and its files by content."""
    config = json.dumps(in_order(lora.config), sort_keys=True)
    digests = {CONFIG: hashlib.sha256(config.encode()).hexdigest(), WEIGHTS: sha256_file(adapter.path / WEIGHTS)}
    return {"name": adapter.name, "tags": adapter.tags, "sha256": digests}


def _whole(target: Path) -> dict[str, Any] | None:
    """The note of a merge that lies there as it was written; None where there is none, or one that was changed."""
    try:
        note: dict[str, Any] = json.loads((target / NOTE).read_bytes())
        intact = all(sha256_file(target / file) == digest for file, digest in note["sha256"].items())
    except (OSError, ValueError, KeyError, UserError):
        return None
    return note if intact else None


def _write(
    target: Path, factors: dict[str, Factors], loras: list[LoraLayers], base: str, note: dict[str, Any]
) -> dict[str, Any]:
    """Publish the adapter directory in one move; returns the note with what only the files can say."""
    temporary = target.parent / f"{PARTIAL}{target.name}"
    with disk_errors(f"adapter {target}"):
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        for file in (file for pattern in TOKENIZER_FILES for file in loras[0].path.glob(pattern)):
            shutil.copyfile(file, temporary / file.name)
        rank = write_lora(temporary, factors, loras, base)
        digests = {file: sha256_file(temporary / file) for file in (CONFIG, WEIGHTS)}
        note = note | {"rank": rank, "sha256": digests}
        (temporary / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_card(base, note), encoding="utf-8")
        publish_directory(temporary, target)
    return note


def _card(base: str, note: dict[str, Any]) -> str:
    from model_training.adapter_directory import card_frame

    shown = Path(base).name if Path(base).is_absolute() else base
    weights = zip(note["inputs"], note["weights"], strict=True)
    listed = ", ".join(f"{source['name']} x {weight:g}" for source, weight in weights)
    body = (
        f"# Guardrail adapters in one: {note['mode']}\n\n"
        f"A merge of LoRA adapters ({listed}) for `{shown}`, whose relative Frobenius error against their weighted sum "
        f"is {note['relative_error']:.3g}. It is an adapter as peft writes them:\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{shown}"), "this/directory")\n'
        "```\n"
    )
    said = ("mode", "rank", "density", "seed", "relative_error")
    rows: dict[str, Any] = {key: note[key] for key in said if key in note}
    return card_frame(shown, "text-generation", ["guardrail", "merge"], body, rows)
