"""Merging the factors of one layer, against dense matrices."""

from __future__ import annotations

import pytest
import torch

from model_training.merge_methods import Term, concatenated, merge_layer, squared_error, truncated

OUT, IN = 24, 20


def random_terms(ranks: list[int], scales: list[float], shape: tuple[int, int] = (OUT, IN)) -> list[Term]:
    generator = torch.Generator().manual_seed(7)
    out, into = shape
    return [
        Term(c, torch.randn(r, into, generator=generator), torch.randn(out, r, generator=generator))
        for r, c in zip(ranks, scales, strict=True)
    ]


def dense(terms: list[Term]) -> torch.Tensor:
    return torch.stack([term.c * term.B_OR.double() @ term.A_RI.double() for term in terms]).sum(0)


def test_cat_is_the_sum_at_mixed_ranks_and_signs() -> None:
    terms = random_terms([2, 3, 5], [2.0, -0.5, 0.0])
    A, B = merge_layer("cat", terms, 0, 1.0)
    assert A.shape == (10, IN)
    assert B.shape == (OUT, 10)
    torch.testing.assert_close(B.double() @ A.double(), dense(terms), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 7, 10])
def test_svd_is_the_best_approximation_at_each_rank(rank: int) -> None:
    terms = random_terms([2, 3, 5], [2.0, -0.5, 1.0])
    A, B = merge_layer("svd", terms, rank, 1.0)
    U, S, Vt = torch.linalg.svd(dense(terms))
    torch.testing.assert_close(B.double() @ A.double(), U[:, :rank] * S[:rank] @ Vt[:rank], rtol=0, atol=1e-4)
    torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0), msg="the singular values are split evenly")


def test_svd_beyond_the_sum_of_ranks_is_the_sum_and_no_larger() -> None:
    terms = random_terms([2, 3], [1.0, 1.0])
    A, B = merge_layer("svd", terms, 16, 1.0)
    assert A.shape[0] == B.shape[1] == 5
    error, whole = squared_error((A, B), terms)
    assert (error / whole) ** 0.5 < 1e-6


def test_more_ranks_than_dimensions() -> None:
    terms = random_terms([6, 6, 6], [1.0, 1.0, 1.0], (8, 10))
    A, B = truncated(concatenated(terms), 18)
    assert A.shape == (8, 10)
    torch.testing.assert_close(B.double() @ A.double(), dense(terms), rtol=0, atol=1e-4)


def test_errors_are_those_of_the_dense_matrices() -> None:
    terms = random_terms([4, 4, 4], [1.0, 2.0, -1.0])
    true = dense(terms)
    torch.manual_seed(0)
    for mode in ("svd", "linear", "ties", "dare_ties"):
        A, B = merge_layer(mode, terms, 4, 0.5)
        error, whole = squared_error((A, B), terms)
        assert error == pytest.approx(float((B.double() @ A.double() - true).square().sum()), rel=1e-9)
        assert whole == pytest.approx(float(true.square().sum()), rel=1e-9)


def test_linear_has_cross_terms() -> None:
    terms = random_terms([4, 4, 4], [1.0, 1.0, 1.0])
    error, whole = squared_error(merge_layer("linear", terms, 0, 1.0), terms)
    assert (error / whole) ** 0.5 == pytest.approx(2**0.5, abs=0.2)


def test_linear_of_one_term_is_that_term_whatever_its_sign() -> None:
    (term,) = random_terms([4], [-1.7])
    error, whole = squared_error(merge_layer("linear", [term], 0, 1.0), [term])
    assert error / whole < 1e-12
