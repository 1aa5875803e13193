"""LoRA adapters as files: their layers are read and written without the base model, and what is no plain LoRA refused.

A plain LoRA adapter adds s B A to linear layers and changes nothing else: no biases, embeddings, magnitudes (DoRA),
whole modules, nor a base that its own initialisation has altered (PiSSA, OLoRA and their kin).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_training.merge_methods import Factors
from utils.errors import UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
NOT_PLAIN = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices"),
    *("target_parameters", "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config"),
)
"""Options of peft's that make an adapter more than s B A."""

_LAYER = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class LoraLayers:
    """What an adapter's files hold: peft's configuration and, by layer, the scale s and the factors in float32."""

    path: Path
    config: dict[str, Any]
    scales: dict[str, float]
    factors: dict[str, Factors]

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(int(A.shape[0]) for A, _ in self.factors.values())


def read_lora(path: Path) -> LoraLayers:
    """The layers of the adapter in that directory.

    Raises:
        UserError: its files are missing or damaged, or it is no plain LoRA adapter.
    """
    from peft.utils.other import get_pattern_key

    config = _plain_config(path)
    factors = _factors(path)
    alphas = config.get("alpha_pattern") or {}
    scales = {}
    for layer, (A_RI, _) in factors.items():
        alpha, rank = alphas.get(get_pattern_key(list(alphas), layer), config["lora_alpha"]), A_RI.shape[0]
        scales[layer] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraLayers(path, config, scales, factors)


def write_lora(folder: Path, factors: Mapping[str, Factors], like: list[LoraLayers], base_name: str) -> int:
    """Write factors as a plain adapter of scale 1 on the layers of `like`, and return its rank.

    Layers of a lower rank are filled up with zeros, so that one rank holds for all.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank = max(int(A.shape[0]) for A, _ in factors.values())
    tensors = {}
    for layer, (A_RI, B_OR) in factors.items():
        fill = rank - A_RI.shape[0]
        name = f"base_model.model.{layer}"
        tensors[f"{name}.lora_A.weight"] = torch.nn.functional.pad(A_RI, (0, 0, 0, fill)).contiguous()
        tensors[f"{name}.lora_B.weight"] = torch.nn.functional.pad(B_OR, (0, fill)).contiguous()
    selections = [{key: lora.config.get(key) for key in SELECTION} for lora in like]
    alike = all(in_order(selection) == in_order(selections[0]) for selection in selections)
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        task_type=like[0].config.get("task_type"),
        fan_in_fan_out=bool(like[0].config.get("fan_in_fan_out")),
        base_model_name_or_path=base_name,
        inference_mode=True,
        **(selections[0] if alike else {"target_modules": sorted(factors)}),
    ).save_pretrained(str(folder))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(in_order(config), indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return rank


def in_order(config: dict[str, Any]) -> dict[str, Any]:
    """The options with their lists sorted: peft keeps sets, and writes the same one in another order each time."""
    return {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}


def _plain_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"adapter {path}: cannot read {CONFIG} ({error}); train it anew") from error
    if not isinstance(config, dict) or not isinstance(config.get("lora_alpha"), (int, float)):
        raise UserError(f"adapter {path}: {CONFIG} is not that of a LoRA adapter; only LoRA adapters can be merged")
    faults = [name for name in NOT_PLAIN if config.get(name)]
    if config.get("bias", "none") != "none":
        faults.append(f"bias={config['bias']}")
    if config.get("init_lora_weights") not in PLAIN_INITIALISATIONS:
        faults.append(f"init_lora_weights={config['init_lora_weights']}")
    if faults:
        raise UserError(f"adapter {path}: it cannot be merged, for it is more than plain LoRA ({', '.join(faults)})")
    return config


def _factors(path: Path) -> dict[str, Factors]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"adapter {path}: {WEIGHTS} is missing or damaged ({error}); train it anew") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _LAYER.fullmatch(key)
        if match is None or tensor.ndim != 2:
            raise UserError(f"adapter {path}: it cannot be merged, for {key} is no factor of a linear layer")
        found.setdefault(match[1], {})[match[2]] = tensor.float()
    if not found:
        raise UserError(f"adapter {path}: {WEIGHTS} holds no layer; train it anew")
    for layer, pair in found.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise UserError(f"adapter {path}: the factors of {layer} do not belong together; train it anew")
    return {layer: (pair["A"], pair["B"]) for layer, pair in sorted(found.items())}
