"""Trained weights of a model whose parameters lie in parts on several processes (FSDP2, ZeRO-3), and of any other.

Each process holds a slice of a parameter: of FSDP2 a DTensor; of DeepSpeed's ZeRO-3 an empty tensor with a `ds_id`, its
slice beside it, which DeepSpeed fills while a layer is computed. To save an adapter its weights are put together, and
to load one each process takes its slice; both are done by all processes at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.errors import WorkError

TRAINED = ("lora_", "modules_to_save")
"""In the names of what an adapter consists of."""


def is_sharded(model: Any) -> bool:
    return any(isinstance(weight, DTensor) or _is_zero3(weight) for weight in model.parameters())


def _is_zero3(weight: Tensor) -> bool:
    return hasattr(weight, "ds_id")


def whole(weight: Tensor) -> Tensor:
    """The weight, put together if it lies in parts; a parameter itself, since what is detached knows no parts."""
    if isinstance(weight, DTensor):
        return weight.full_tensor()
    if not _is_zero3(weight):
        return weight
    from deepspeed import zero

    with zero.GatheredParameters([weight]):
        return weight.detach().clone()


def adapter_weights(model: Any) -> dict[str, Tensor] | None:
    """The adapter's weights by their names in the model, put together; None where they lie whole in the model."""
    if not is_sharded(model):
        return None
    return {
        name: whole(weight).detach().cpu()
        for name, weight in model.state_dict(keep_vars=True).items()
        if _trained(name)
    }


def check_whole(model: Any, weights: dict[str, Tensor] | None) -> None:
    """WorkError if a weight of the adapter is missing or empty in those to be saved; None: those in the model."""
    held = model.state_dict()
    weights = held if weights is None else weights
    for name in held:
        if _trained(name) and ".default" in name and (name not in weights or not weights[name].numel()):
            raise WorkError(f"the adapter is not whole, {name} is empty: nothing is saved; use one process, or DDP")


def _trained(name: str) -> bool:
    return any(part in name for part in TRAINED)


def sharded_like(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's weights, by their names in its file, each as the model holds it (ZeRO-3: in `writable`)."""
    held = {
        name.replace(".modules_to_save.default.", ".").replace(".default.", "."): weight
        for name, weight in model.named_parameters()
        if isinstance(weight, DTensor)
    }
    return {
        name: distribute_tensor(weight, held[name].device_mesh, held[name].placements) if name in held else weight
        for name, weight in weights.items()
    }


@contextmanager
def writable(model: Any) -> Iterator[None]:
    """Within it, what is written to the adapter's weights under ZeRO-3 reaches every process's slice."""
    weights = [weight for name, weight in model.named_parameters() if _trained(name) and _is_zero3(weight)]
    if not weights:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(weights, modifier_rank=0):
        yield
