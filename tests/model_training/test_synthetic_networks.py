"""The networks of the synthetic experiments and the two estimators of their loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_training.preference_losses import KINDS, Kind, loss
from model_training.synthetic_measures import network_loss
from model_training.synthetic_networks import (
    NAMES,
    Name,
    all_pairs_loss,
    log_odds,
    make_network,
    pairs_loss,
    raw_outputs,
    stratified_states,
    weighted_pairs_loss,
)
from model_training.synthetic_worlds import Env, grids, label_probability


def opinionated(env: Env, name: Name) -> nn.Sequential:
    """A small network whose outputs differ between states as much as after training."""
    network = make_network(env, name, seed=1, width=16).eval()
    states = grids(env, 8)[1].float()
    with torch.no_grad():
        outputs = network(torch.cat([states, states.flip(0)], -1) if name == "classifier" else states)
        scale = 1.5 / outputs.std(0)
        network[-1].bias.copy_((network[-1].bias - outputs.mean(0)) * scale)
        network[-1].weight.mul_(scale.unsqueeze(1))
        if name == "mean_and_variance":
            network[-1].bias[1] += 2.0
    return network


def test_the_spread_of_mean_and_variance_is_exp_of_its_output_minus_two() -> None:
    given = torch.tensor([[1.0, x] for x in (-11.0, -5.0, 0.0, 2.0, 12.0)], requires_grad=True)
    raw = raw_outputs("mean_and_variance", nn.Identity(), given)
    spreads = torch.nn.functional.softplus(raw[:, 1])
    assert torch.allclose(spreads, torch.exp(given[:, 1] - 2), rtol=1e-4)
    assert torch.equal(raw[:, 0], given[:, 0])
    spreads.log().sum().backward()
    assert given.grad is not None and torch.allclose(given.grad[:, 1], torch.ones(5), rtol=1e-3)
    extreme = raw_outputs("mean_and_variance", nn.Identity(), torch.tensor([[0.0, -200.0], [0.0, 60.0]]))
    assert extreme.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_all_pairs_is_the_mean_over_every_comparison_of_two_states(kind: Kind) -> None:
    network, states = opinionated("1d", kind), torch.tensor([[0.1], [0.5], [0.83], [0.97]])
    outputs = raw_outputs(kind, network, states)
    total = 0.0
    for i in range(4):
        for j in range(i):
            p = label_probability("1d", states[i], states[j]).item()
            total += p * loss(kind, outputs[i], outputs[j]).item() + (1 - p) * loss(kind, outputs[j], outputs[i]).item()
    assert all_pairs_loss("1d", kind, network, states, "probit", False).item() == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("env", "shared"), [("1d", False), ("1d", True), ("2d", False), ("2d", True)])
def test_both_estimators_expect_the_population_loss(env: Env, name: Name, shared: bool) -> None:
    """Sampling, all pairs and quadrature agree within five standard errors; sampled ties go to the first side."""
    network = opinionated(env, name)
    rng = np.random.default_rng(0)

    def averaged() -> Tensor:
        if name == "classifier":
            return weighted_pairs_loss(env, network, 4096, rng, shared)
        return all_pairs_loss(env, name, network, stratified_states(env, 144, rng), "probit", shared)

    with torch.no_grad():
        for tie, draw in (
            (1.0 if name == "classifier" else 0.5, lambda: pairs_loss(env, name, network, 4096, rng, "probit", shared)),
            (0.5, averaged),
        ):
            draws = torch.stack([draw() for _ in range(8)]).double()
            error = draws.std().item() / math.sqrt(len(draws))
            known = network_loss(env, name, network, "probit", shared, tie)
            assert draws.mean().item() == pytest.approx(known, abs=5 * error + 1e-3 * known)


class Certain(nn.Module):
    """A classifier that bets on the larger of two contested states of 1d, and on nothing else."""

    def forward(self, pairs: Tensor) -> Tensor:
        contested = pairs.amin(-1, keepdim=True) >= 0.8
        return torch.where(contested & (pairs[:, :1] > pairs[:, 1:]), 5.0, 0.0)


@pytest.mark.parametrize(("shared", "p"), [(False, 0.75), (True, 1.0)])
def test_sampled_sides_have_a_context_each_or_one_together(shared: bool, p: float) -> None:
    """Of two contested states the larger loses where it alone is worth 0, never in a common context; ties are won."""
    mine = p * math.log1p(math.exp(-5)) + (1 - p) * math.log1p(math.exp(5))
    expected = 0.02 * mine + 0.98 * math.log(2)
    sampled = pairs_loss("1d", "classifier", Certain(), 200_000, np.random.default_rng(0), "probit", shared).item()
    assert sampled == pytest.approx(expected, abs=0.004)
    assert network_loss("1d", "classifier", Certain(), shared=shared, tie=1.0) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("env", "count", "shape"), [("1d", 7, [7]), ("2d", 12, [3, 4]), ("2d", 13, [3, 5])])
def test_one_state_lies_in_each_part_of_the_world(env: Env, count: int, shape: list[int]) -> None:
    states = stratified_states(env, count, np.random.default_rng(0))
    cells = (states * torch.tensor(shape)).floor().long()
    assert cells.unique(dim=0).shape == (math.prod(shape), len(shape)) == tuple(states.shape)
    assert cells.amax(0).tolist() == [side - 1 for side in shape]
    assert not torch.equal(states, stratified_states(env, count, np.random.default_rng(1)))


def test_first_weights_depend_on_seed_and_network_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (make_network("1d", "base", seed, width=4)[0].weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, make_network("1d", "mean_and_variance", 0, width=4)[0].weight)


def test_shapes() -> None:
    for env, features, atoms in (("1d", 1, 20), ("2d", 2, 8)):
        states = torch.rand(5, features)
        for kind, outputs in (("base", 1), ("mean_and_variance", 2), ("categorical", atoms)):
            network = make_network(env, kind, 0)
            assert raw_outputs(kind, network, states).shape == (5, outputs)
            widths = [layer.out_features for layer in network if isinstance(layer, nn.Linear)]
            assert widths == [512, 512, 512, outputs]
            assert any(isinstance(layer, nn.BatchNorm1d) for layer in network) == (kind == "categorical")
        assert log_odds(make_network(env, "classifier", 0), states, states).shape == (5,)
