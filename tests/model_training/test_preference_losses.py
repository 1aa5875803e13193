"""The losses against closed forms, the published values, finite differences, and inputs at the edge of the floats."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from model_training import preference_losses as dpl

ATOMS_A = torch.tensor([0.3 * i for i in range(10)], dtype=torch.float64)
ATOMS_B = torch.tensor([0.1 * (9 - i) ** 2 / 9 for i in range(10)], dtype=torch.float64)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


# --- published values -----------------------------------------------------------------------------------------------


def test_base_loss_has_the_published_values():
    found = dpl.base_loss(doubles([[0.3], [1.5]]), doubles([[0.1], [2.0]]))
    assert found.tolist() == pytest.approx([0.598139, 0.974077], abs=1e-6)


def test_logistic_loss_has_the_published_values():
    chosen, rejected = doubles([[0.3, -1.0], [1.5, 0.2]]), doubles([[0.1, 0.5], [2.0, -2.0]])
    found = dpl.mean_and_variance_loss(chosen, rejected, "logistic")
    assert found.tolist() == pytest.approx([0.4778817, 1.7431430], abs=1e-7)


def test_categorical_loss_has_the_published_values():
    assert dpl.categorical_loss(ATOMS_A, ATOMS_B).item() == pytest.approx(0.24485294200582966, abs=1e-13)
    assert dpl.categorical_loss(ATOMS_B, ATOMS_A).item() == pytest.approx(1.527027163086248, abs=1e-13)


def test_categorical_moments_entropy_and_quantiles_have_the_published_values():
    both = torch.stack([ATOMS_A, ATOMS_B])
    mean, spread = dpl.mean_and_spread("categorical", both)
    assert mean.tolist() == pytest.approx([0.7406290057, 0.4035121291], abs=1e-9)
    assert spread.tolist() == pytest.approx([0.2609112922, 0.3213085420], abs=1e-9)
    assert -dpl.entropy(both, "marginal").item() == pytest.approx(-2.2621971141, abs=1e-9)
    for alpha, of_a, of_b in (
        (0.01, 0.05455211, 0.00584967),
        (0.05, 0.22073118, 0.02924837),
        (0.5, 0.78318492, 0.36531807),
    ):
        assert dpl.quantile("categorical", both, alpha).tolist() == pytest.approx([of_a, of_b], abs=1e-8)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_the_probit_loss_is_minus_log_of_the_normal_cdf_at_the_standardised_difference():
    # softplus(log(e^s - 1)) = s: spreads 0.6 and 0.8 add up to 1, so z is the difference of the means.
    raw = [math.log(math.expm1(s)) for s in (0.6, 0.8)]
    found = dpl.mean_and_variance_loss(doubles([1.3, raw[0]]), doubles([0.3, raw[1]]))
    assert found.item() == pytest.approx(-math.log(0.8413447460685429), abs=1e-12)


def test_the_logistic_stand_in_is_off_by_a_tenth_in_probability_where_the_docstring_says():
    raw = math.log(math.expm1(math.sqrt(0.5)))  # both spreads sqrt(1/2): z is the difference of the means
    z = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    chosen, rejected = torch.stack([z, torch.full_like(z, raw)], -1), doubles([0.0, raw])
    probit, logistic = (
        dpl.win_probability("mean_and_variance", chosen, rejected, likelihood) for likelihood in ("probit", "logistic")
    )
    gap = (probit - logistic).abs()
    assert gap.max().item() == pytest.approx(0.0945, abs=5e-5)
    assert abs(z[gap.argmax()].item()) == pytest.approx(0.71, abs=0.005)


def test_two_certain_atoms_compare_as_their_values_do():
    certain = torch.eye(3, dtype=torch.float64) * 800
    won = dpl.win_probability("categorical", certain[:, None], certain[None, :])
    assert won.tolist() == [[0.5, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.5]]


@pytest.mark.parametrize("z", [-1e10, -1e6, -38.0, -5.0, -1e-3, 0.0, 1e-3, 5.0, 40.0])
def test_the_logarithm_of_the_normal_cdf_and_its_gradient_hold_everywhere(z):
    x = torch.tensor(z, requires_grad=True)
    value = dpl.log_normal_cdf(x)
    value.backward()
    expected = torch.special.log_ndtr(torch.tensor(z, dtype=torch.float64)).item()
    # Phi' / Phi: the inverse Mills ratio, which tends to -z in the lower tail
    mills = math.exp(-z * z / 2 - expected) / math.sqrt(2 * math.pi) if z > -30 else -z + 1 / -z
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert x.grad.item() == pytest.approx(mills, rel=1e-5)


@pytest.mark.parametrize("kind", dpl.KINDS)
@pytest.mark.parametrize("likelihood", ["probit", "logistic"])
def test_the_two_orders_of_a_pair_share_the_probability(kind, likelihood):
    torch.manual_seed(0)
    first, second = torch.randn(2, 50, dpl.num_outputs(kind, 7), dtype=torch.float64) * 2
    forward, backward = (dpl.win_probability(kind, a, b, likelihood) for a, b in ((first, second), (second, first)))
    torch.testing.assert_close(forward + backward, torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(dpl.win_probability(kind, first, first, likelihood), torch.full_like(forward, 0.5))


@pytest.mark.parametrize("kind", dpl.KINDS)
def test_a_column_against_a_row_gives_every_pair(kind):
    torch.manual_seed(0)
    states = torch.randn(6, dpl.num_outputs(kind, 5), dtype=torch.float64)
    table = dpl.loss(kind, states[:, None], states[None, :])
    assert table.shape == (6, 6)
    torch.testing.assert_close(table[2, 4], dpl.loss(kind, states[2], states[4]))


def test_the_categorical_probability_is_that_of_counting_all_pairs_of_atoms():
    torch.manual_seed(1)
    p, q = torch.softmax(torch.randn(2, 6, dtype=torch.float64), -1)
    counted = sum(p[i] * q[j] * (1.0 if i > j else 0.5 if i == j else 0.0) for i in range(6) for j in range(6))
    torch.testing.assert_close(dpl.win_probability("categorical", p.log(), q.log()), counted)


def test_the_mean_and_spread_of_a_normal_reward_are_its_parameters():
    mean, spread = dpl.mean_and_spread("mean_and_variance", doubles([[0.25, math.log(math.expm1(2.0))]]))
    assert (mean.item(), spread.item()) == pytest.approx((0.25, 2.0))
    assert dpl.quantile(
        "mean_and_variance", doubles([[0.25, math.log(math.expm1(2.0))]]), 0.01
    ).item() == pytest.approx(0.25 - 2 * 2.3263478740408408)


def test_a_base_reward_has_no_spread_and_is_its_own_quantile():
    mean, spread = dpl.mean_and_spread("base", doubles([[3.0], [-1.0]]))
    assert (mean.tolist(), spread.tolist()) == ([3.0, -1.0], [0.0, 0.0])
    assert dpl.quantile("base", doubles([[3.0], [-1.0]]), 0.01).tolist() == [3.0, -1.0]


def test_the_quantile_of_atoms_is_a_number_at_the_edges_of_the_buckets():
    halves = doubles([[0.5, 0.5]]).log()
    assert dpl.quantile("categorical", halves, 0.5).item() == 0.5
    assert dpl.quantile("categorical", halves, 0.25).item() == 0.25
    certain = doubles([[-1e4, 0.0, -1e4]])
    assert 1 / 3 < dpl.quantile("categorical", certain, 0.01).item() < 2 / 3
    assert dpl.quantile("categorical", certain, 1 - 1e-16).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_a_quantile_outside_of_0_and_1_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        dpl.quantile("base", doubles([[1.0]]), alpha)


def test_explained_variance_weighs_variance_between_texts_against_that_within():
    assert dpl.explained_variance(doubles([0, 2.0]), doubles([1.0, 1.0])).item() == 0.5
    assert dpl.explained_variance(doubles([0, 2.0]), doubles([0, 0.0])).item() == 1
    assert dpl.explained_variance(doubles([1, 1.0]), doubles([1, 2.0])).item() == 0


def test_the_conditional_entropy_does_not_pay_for_certain_answers_that_differ():
    certain = torch.eye(4, dtype=torch.float64) * 800
    assert dpl.entropy(certain, "conditional").item() == 0
    assert dpl.entropy(certain, "marginal").item() == pytest.approx(math.log(4))
    assert dpl.entropy(torch.zeros(3, 4), "conditional").item() == pytest.approx(math.log(4))


def test_the_training_loss_adds_the_regulariser_of_its_kind_alone():
    raw = math.log(math.expm1(1.0))
    chosen, rejected = doubles([[0.3, raw]]), doubles([[0.1, raw]])
    plain = dpl.loss("mean_and_variance", chosen, rejected).mean()
    penalised = dpl.training_loss("mean_and_variance", chosen, rejected, variance_penalty=0.5, entropy_coeff=9)
    assert (penalised - plain).item() == pytest.approx(0.5 * (1 + 1))
    atoms = torch.stack([ATOMS_A, ATOMS_B])
    plain = dpl.loss("categorical", atoms[:1], atoms[1:]).mean()
    for which in ("conditional", "marginal"):
        rewarded = dpl.training_loss(
            "categorical", atoms[:1], atoms[1:], entropy_coeff=0.1, entropy_bonus=which, variance_penalty=9
        )
        torch.testing.assert_close(rewarded, plain - 0.1 * dpl.entropy(atoms, which))


# --- gradients and the edge of the floats ---------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["probit", "logistic"])
@pytest.mark.parametrize("bonus", ["conditional", "marginal"])
@pytest.mark.parametrize("kind", dpl.KINDS)
def test_gradients_agree_with_finite_differences(kind, bonus, likelihood):
    torch.manual_seed(2)
    chosen, rejected = (
        (torch.randn(4, dpl.num_outputs(kind, 5), dtype=torch.float64) * 2).requires_grad_() for _ in range(2)
    )
    chosen.data[0] = rejected.data[0]

    def total(c, r):
        return dpl.training_loss(
            kind, c, r, likelihood=likelihood, variance_penalty=0.3, entropy_coeff=0.2, entropy_bonus=bonus
        )

    assert gradcheck(total, (chosen, rejected))


EDGES = {
    "base": [[0.0], [1e4], [-1e4], [3e4]],
    "mean_and_variance": [[0.0, 0.0], [0.0, -1e4], [0.0, -80.0], [1e4, -1e4], [-1e4, 1e4], [1.0, -30.0]],
    "categorical": [[0.0] * 5, [1e4, 0, 0, 0, 0], [0, 0, 0, 0, 1e4], [-1e4, 0, 0, 0, -1e4], [0, 0, 1e4, 0, 0]],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("likelihood", ["probit", "logistic"])
@pytest.mark.parametrize("kind", dpl.KINDS)
def test_losses_and_gradients_stay_finite_at_the_edge(kind, likelihood, dtype):
    states = torch.tensor(EDGES[kind], dtype=dtype)
    n = len(states)
    chosen = states.repeat_interleave(n, 0).requires_grad_()
    rejected = states.repeat(n, 1).requires_grad_()
    each = dpl.loss(kind, chosen, rejected, likelihood)
    assert each.dtype == torch.float32
    assert each.isfinite().all()
    total = dpl.training_loss(
        kind,
        chosen,
        rejected,
        likelihood=likelihood,
        variance_penalty=1e-3,
        entropy_coeff=0.1,
        entropy_bonus="marginal",
    )
    total.backward()
    assert chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


def test_a_wrong_order_is_pulled_right_even_where_the_spreads_are_all_but_zero():
    chosen = torch.tensor([[0.0, -30.0]], requires_grad=True)
    dpl.loss("mean_and_variance", chosen, torch.tensor([[1.0, -30.0]])).sum().backward()
    assert chosen.grad[0, 0] < 0


def test_a_saturated_wrong_order_is_pulled_right():
    chosen = torch.tensor([[1e3, 0.0, 0.0]], requires_grad=True)
    dpl.loss("categorical", chosen, torch.tensor([[0.0, 0.0, 1e3]])).sum().backward()
    assert chosen.grad[0, 0] > 0 and chosen.grad[0, 2] < 0


def test_bfloat16_outputs_lose_no_more_than_their_own_rounding():
    torch.manual_seed(3)
    for kind in dpl.KINDS:
        first, second = torch.randn(2, 200, dpl.num_outputs(kind, 10)).bfloat16()
        torch.testing.assert_close(dpl.loss(kind, first, second), dpl.loss(kind, first.float(), second.float()))
