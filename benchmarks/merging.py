"""Merge three LoRA adapters into one of a lower rank: SVD of a small core against peft's SVD of the whole delta.

    OMP_NUM_THREADS=1 python -m benchmarks.merging
    OMP_NUM_THREADS=1 python -m benchmarks.merging --sizes 512 1024 --repeats 5

One linear layer of each size with three random adapters of rank 16; weights 1, 0.5 and -1. Ours is `merge_layer` (QR of
the concatenated factors, SVD of the small core), peft's is `add_weighted_adapter(combination_type="svd")` with reduced
matrices (`--full` for its default). Both run in turn in one process; times are medians, and the goal is 50 ms at 2048.
`difference` is |ours - peft's|_F / |peft's|_F of the two merged deltas in float64; `error` is ours against the true sum
by their factors, `peft's error` by its delta, formed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from model_training.merge_methods import Term, merge_layer, squared_error

WEIGHTS = [1.0, 0.5, -1.0]
GOAL_S = 0.05


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rank", type=int, default=16, help="of each adapter, and of the merge")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="peft's default: full matrices of the SVD")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, three adapters of rank {arguments.rank}\n")
    columns = ["layer", "ours", "peft", "ratio", "difference", "error", "peft's error"]
    print("".join(f"{column:>14}" for column in columns))
    for size in arguments.sizes:
        print("".join(f"{cell:>14}" for cell in row(size, arguments.rank, arguments.repeats, arguments.full)))
    print(f"\ngoal: ours at 2048 in at most {GOAL_S * 1000:.0f} ms")


def row(size: int, rank: int, repeats: int, full: bool) -> list[str]:
    """The cells of one size."""
    model = adapted_layer(size, rank)
    terms = terms_of(model)
    merge_layer("svd", terms, rank, 1.0)
    ours_s, peft_s = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        A, B = merge_layer("svd", terms, rank, 1.0)
        ours_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        model.add_weighted_adapter(
            adapter_names(), WEIGHTS, "merged", combination_type="svd", svd_rank=rank, svd_full_matrices=full
        )
        peft_s.append(time.perf_counter() - start)
        theirs = delta_of(model, "merged")
        model.delete_adapter("merged")
    true = sum(term.c * (term.B_OR.double() @ term.A_RI.double()) for term in terms)
    error, whole = squared_error((A, B), terms)
    ours = B.double() @ A.double()
    return [
        f"{size} x {size}",
        f"{statistics.median(ours_s) * 1000:.1f} ms",
        f"{statistics.median(peft_s) * 1000:.0f} ms",
        f"x {statistics.median(peft_s) / statistics.median(ours_s):.0f}",
        f"{float((ours - theirs).norm() / theirs.norm()):.1e}",
        f"{(error / whole) ** 0.5:.4f}",
        f"{float((theirs - true).norm() / true.norm()):.4f}",
    ]


def adapter_names() -> list[str]:
    return [f"adapter_{number}" for number in range(len(WEIGHTS))]


def adapted_layer(size: int, rank: int) -> Any:
    """A linear layer with random adapters on it."""
    first, *others = adapter_names()
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["layer"], init_lora_weights=False)
    model: Any = get_peft_model(torch.nn.ModuleDict({"layer": torch.nn.Linear(size, size)}), config, first)
    for name in others:
        model.add_adapter(name, config)
    return model


def lora_layer(model: Any) -> Any:
    return model.base_model.model["layer"]


def terms_of(model: Any) -> list[Term]:
    layer = lora_layer(model)
    return [
        Term(weight * layer.scaling[name], layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach())
        for name, weight in zip(adapter_names(), WEIGHTS, strict=True)
    ]


def delta_of(model: Any, name: str) -> torch.Tensor:
    """The delta of an adapter, (out, in) in float64."""
    layer = lora_layer(model)
    delta: torch.Tensor = layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double() * layer.scaling[name]
    return delta.detach()


if __name__ == "__main__":
    main()
