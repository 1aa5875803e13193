"""Ways to merge the LoRA adapters of one layer into one, and how far each is from their true sum.

A LoRA layer adds s B A to its weight: A is (rank, in), B is (out, rank), s = alpha / rank (alpha / sqrt(rank) with
rsLoRA). The merge that is meant is the weighted sum, D = sum_i c_i B_i A_i with c_i = weight_i x s_i. Side by side,
B = [B_1 B_2 ...] and A = [c_1 A_1; c_2 A_2; ...], it is D = B A: exact, at the sum of the ranks. So

    cat         keeps these factors: exact, ranks and scales may differ
    svd         the best approximation of D at a given rank (Eckart and Young 1936): exact again at the sum of the ranks
    linear      sqrt(c_i)-weighted sums of the A_i and of the B_i: their product has all cross terms B_i A_j
    ties        as linear, of the largest entries of each factor that have the majority's sign (Yadav et al. 2023)
    dare_ties   as ties, of entries drawn at random and scaled up (Yu et al. 2024)

linear, ties and dare_ties are what peft defines under these names, by peft's own functions; they need equal ranks. An
adapter that does not change a layer is nothing in its sum, in all of them.

D, (out, in), is never formed. With B = Q_B R_B and A^T = Q_A R_A, the singular values of D are those of the small
R_B R_A^T = U S V^T, its singular vectors are Q_B U and Q_A V, and |B A|_F^2 = trace((B^T B) (A A^T)).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from model_training.guardrail_config import Merge

Factors = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in) and B (out, rank) of a layer; the scale is in them."""


class Term(NamedTuple):
    """One adapter's part in the sum of a layer: c B A."""

    c: float
    A_RI: torch.Tensor
    B_OR: torch.Tensor


def merge_layer(mode: Merge, terms: Sequence[Term], rank: int, density: float) -> Factors:
    """The factors of one layer, merged; `rank` is the svd's, `density` that of ties and dare_ties.

    dare_ties draws from torch's global generator. All but cat and svd need terms of equal rank.
    """
    if mode == "cat":
        return concatenated(terms)
    if mode == "svd":
        return truncated(concatenated(terms), rank)
    return _as_peft_does(mode, terms, density)


def concatenated(terms: Sequence[Term]) -> Factors:
    """The exact sum: factors of the sum of the ranks."""
    A_RI = torch.cat([term.A_RI * term.c for term in terms])
    B_OR = torch.cat([term.B_OR for term in terms], dim=1)
    return A_RI, B_OR


def truncated(factors: Factors, rank: int) -> Factors:
    """The factors of the best approximation of B A at that rank; the root of each singular value goes to either."""
    A_RI, B_OR = factors
    Q_B, R_B = torch.linalg.qr(B_OR)
    Q_A, R_A = torch.linalg.qr(A_RI.T)
    U, S, Vt = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    root = S[:rank].sqrt()
    return (root[:, None] * Vt[:rank]) @ Q_A.T, Q_B @ (U[:, :rank] * root)


def _as_peft_does(mode: Merge, terms: Sequence[Term], density: float) -> Factors:
    """What peft's `add_weighted_adapter` makes of one layer: the sign of a weight goes to A, its root to both."""
    from peft.utils.merge_utils import dare_ties, task_arithmetic, ties

    roots = torch.tensor([math.sqrt(abs(term.c)) for term in terms])
    signs = torch.tensor([1.0 if term.c >= 0 else -1.0 for term in terms])

    def merged(parts: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        if mode == "linear":
            return task_arithmetic(parts, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The density")
            return (ties if mode == "ties" else dare_ties)(parts, weights, density)

    return merged([term.A_RI for term in terms], roots * signs), merged([term.B_OR for term in terms], roots)


def squared_error(merged: Factors, terms: Sequence[Term]) -> tuple[float, float]:
    """|merged - D|_F^2 and |D|_F^2 of one layer, in float64: relative errors below some 1e-8 are rounding."""
    A_RI, B_OR = concatenated([Term(term.c, term.A_RI.double(), term.B_OR.double()) for term in terms])
    A, B = (factor.double() for factor in merged)
    return _squared_norm(torch.cat([A, -A_RI]), torch.cat([B, B_OR], dim=1)), _squared_norm(A_RI, B_OR)


def _squared_norm(A_RI: torch.Tensor, B_OR: torch.Tensor) -> float:
    """|B A|_F^2, from the Gram matrices of the factors."""
    return max(0.0, float(((B_OR.T @ B_OR) * (A_RI @ A_RI.T)).sum()))
