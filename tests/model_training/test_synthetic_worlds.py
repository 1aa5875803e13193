"""The synthetic worlds against sampling and against integrals done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model_training.synthetic_worlds import (
    Env,
    best_bradley_terry,
    borda_count,
    draw_utilities,
    expected_utility,
    grids,
    label_entropy,
    label_probability,
    population_loss,
    rank_spread,
    true_explained_variance,
    utility_rank,
    utility_spread,
    value_and_probability,
)

MODES = [("1d", False), ("1d", True), ("2d", False), ("2d", True)]
DRAWS = 100_000
TOLERANCE = 5 * 0.5 / math.sqrt(DRAWS)
"""Five standard errors of a share."""

STATES: dict[Env, Tensor] = {
    "1d": torch.tensor([[0.05], [0.5], [0.79], [0.8], [0.95]], dtype=torch.float64),
    "2d": torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.5, 0.5], [0.9, 0.9], [0.99, 0.98]], dtype=torch.float64),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def preferred(env: Env, first: Tensor, second: Tensor, shared: bool, tie: float = 0.5) -> Tensor:
    """Sampled: how often each of the first states (N, D) is preferred to the second states (DRAWS, D)."""
    contexts = random(2, DRAWS, seed=1)
    of_second = draw_utilities(env, second, contexts[1])
    of_first = torch.stack([draw_utilities(env, s.expand_as(second), contexts[1 if shared else 0]) for s in first])
    return ((of_first > of_second).double() + tie * (of_first == of_second).double()).mean(1)


@pytest.mark.parametrize(("env", "shared"), MODES)
def test_borda_count_is_what_sampling_gives(env: Env, shared: bool) -> None:
    states = STATES[env]
    opponents = random(DRAWS, states.shape[1])
    sampled = preferred(env, states, opponents, shared)
    assert (borda_count(env, states, shared) - sampled).abs().max() < TOLERANCE
    averaged = torch.stack([label_probability(env, s, opponents, shared).mean() for s in states])
    assert (borda_count(env, states, shared) - averaged).abs().max() < TOLERANCE


@pytest.mark.parametrize(("env", "shared"), MODES)
@pytest.mark.parametrize("tie", [0.5, 1.0])
def test_labels_are_averaged_over_the_hidden_context(env: Env, shared: bool, tie: float) -> None:
    states = STATES[env]
    for second in states:
        sampled = preferred(env, states, second.expand(DRAWS, -1), shared, tie)
        assert (label_probability(env, states, second, shared, tie) - sampled).abs().max() < TOLERANCE


def test_borda_count_of_1d_is_the_formula_of_the_paper() -> None:
    a = torch.tensor([[0.001], [0.4], [0.7999], [0.8], [1.0]], dtype=torch.float64)
    assert borda_count("1d", a).tolist() == pytest.approx([0.101, 0.5, 0.8999, 0.475, 0.525])
    assert borda_count("1d", a, shared=True).tolist() == pytest.approx([0.101, 0.5, 0.8999, 0.45, 0.55])


def test_the_published_borda_count_of_2d_is_another_function() -> None:
    """At (0, 1) it is 1, though utilities above 1 are common: 1/4 + (ln 2)/2 + 1/4 is true."""
    corner = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert borda_count("2d", corner).item() == pytest.approx(0.5 + math.log(2) / 2)
    states = grids("2d", 40)[0]
    x, y = states.T
    published = 0.25 + y - y**2 / 4 - x * y / 8 - x * y**2 + x * y**3 / 4
    assert 0.14 < (published - borda_count("2d", states)).abs().max() < 0.154


@pytest.mark.parametrize(("env", "shared"), MODES)
def test_borda_counts_average_to_one_half(env: Env, shared: bool) -> None:
    states = grids(env, 15)[1]
    assert borda_count(env, states, shared).mean().item() == pytest.approx(0.5, abs=3e-4)


@pytest.mark.parametrize("env", ["1d", "2d"])
def test_mean_and_spread_of_the_utility_and_of_its_rank(env: Env) -> None:
    states = STATES[env]
    draws = torch.stack([draw_utilities(env, s.expand(DRAWS, -1), random(DRAWS)) for s in states])
    of_rank = utility_rank(env, draws)
    largest = draws.max()
    assert (draws.mean(1) - expected_utility(states)).abs().max() < 0.015 * largest
    assert (draws.std(1) - utility_spread(env, states)).abs().max() < 0.015 * largest
    assert (of_rank.std(1) - rank_spread(env, states)).abs().max() < 0.01
    population = draw_utilities(env, random(DRAWS, states.shape[1], seed=2), random(DRAWS, seed=3))
    value, _ = value_and_probability(env, states)
    below = (population < value.unsqueeze(1)).double().mean(1)
    assert (utility_rank(env, value) - below).abs().max() < TOLERANCE
    zero = (population == 0).double().mean() / 2
    assert utility_rank(env, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(zero.item(), abs=TOLERANCE)


@pytest.mark.parametrize(("env", "known"), [("1d", 0.3388), ("2d", 1 / 6)])
def test_true_explained_variance(env: Env, known: float) -> None:
    states = grids(env, 200)[1]
    between = expected_utility(states).var()
    integrated = between / (between + utility_spread(env, states).square().mean())
    assert true_explained_variance(env) == pytest.approx(known, abs=5e-5)
    assert integrated.item() == pytest.approx(known, abs=1e-3)


def test_bounds_of_1d() -> None:
    """Both contexts matter in 0.32 of the pairs, where nothing is known, and in 0.04, where 5/8 is."""
    mixed = -(5 / 8) * math.log(5 / 8) - (3 / 8) * math.log(3 / 8)
    assert label_entropy("1d", 50) == pytest.approx(0.32 * math.log(2) + 0.04 * mixed, abs=1e-9)
    first_wins = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2 + math.log(2) / 2
    assert label_entropy("1d", 50, tie=1.0) == pytest.approx(0.32 * math.log(2) + 0.04 * first_wins, abs=1e-9)
    states, rewards, value = best_bradley_terry("1d", 500)
    assert value == pytest.approx(0.48605, abs=1e-5)
    known = {0.0: -2.762, 0.2: -1.109, 0.4: 0.0, 0.6: 1.109, 0.7995: 2.762, 0.8005: -0.131, 0.9: 0.0, 1.0: 0.131}
    for a, reward in known.items():
        assert rewards[(states[:, 0] - a).abs().argmin()].item() == pytest.approx(reward, abs=0.01)


@pytest.mark.parametrize(("env", "shared"), MODES)
def test_the_best_reward_ranks_by_borda_count(env: Env, shared: bool) -> None:
    """By the Borda count among the grid's own states, exactly; and no other reward has a lower loss."""
    states, rewards, value = best_bradley_terry(env, 10, shared)
    p = label_probability(env, states.unsqueeze(1), states.unsqueeze(0), shared)
    assert torch.equal(rewards[p.mean(1).argsort()].sort().values, rewards[p.mean(1).argsort()])

    def loss_of(other: Tensor) -> float:
        return (2 * p * torch.nn.functional.softplus(other.unsqueeze(0) - other.unsqueeze(1))).mean().item()

    assert value == pytest.approx(loss_of(rewards))
    assert value < min(loss_of(rewards + 0.05 * (random(len(rewards), seed=s) - 0.5)) for s in range(5))


@pytest.mark.parametrize(("env", "cells"), [("1d", 50), ("2d", 8)])
def test_population_loss_weighs_every_pair_alike(env: Env, cells: int) -> None:
    """A model that knows nothing has ln 2; one that only looks at the first state has the mean of its own loss."""
    first, second = grids(env, cells)

    def by_first(rows: slice) -> tuple[Tensor, Tensor]:
        win = (0.25 + 0.5 * first[rows, :1]).expand(-1, len(second))
        return -win.log(), -(1 - win).log()

    def blind(rows: slice) -> tuple[Tensor, Tensor]:
        half = torch.full((len(first[rows]), len(second)), math.log(2))
        return half, half

    assert population_loss(env, blind, cells) == pytest.approx(math.log(2))
    borda, win = borda_count(env, first), 0.25 + 0.5 * first[:, 0]
    expected = -(borda * win.log() + (1 - borda) * (1 - win).log()).mean().item()
    assert population_loss(env, by_first, cells) == pytest.approx(expected, abs=2e-3)
