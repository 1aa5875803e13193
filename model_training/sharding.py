"""Trained weights of a model whose parameters lie in parts on several processes (FSDP2), and of any other.

A sharded parameter is a DTensor: each process holds a slice of it. To save an adapter its weights are put together,
and to load one each process takes its slice; both are done by all processes at once.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

TRAINED = ("lora_", "modules_to_save")
"""In the names of what an adapter consists of."""


def whole(weight: Tensor) -> Tensor:
    """The weight, put together if it lies in parts."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def is_sharded(model: Any) -> bool:
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def adapter_weights(model: Any) -> dict[str, Tensor] | None:
    """The adapter's weights by their names in the model, put together; None where they lie whole in the model."""
    if not is_sharded(model):
        return None
    return {
        name: whole(weight).cpu()
        for name, weight in model.state_dict().items()
        if any(part in name for part in TRAINED)
    }


def sharded_like(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's weights, by their names in its file, each as the model holds it."""
    if not is_sharded(model):
        return weights
    held = {
        name.replace(".modules_to_save.default.", ".").replace(".default.", "."): weight
        for name, weight in model.named_parameters()
        if isinstance(weight, DTensor)
    }
    return {
        name: distribute_tensor(weight, held[name].device_mesh, held[name].placements) if name in held else weight
        for name, weight in weights.items()
    }
