"""The four networks of the synthetic experiments, and the loss of an iteration's comparisons by either estimator.

A comparison of states a and b whose label prefers a with probability p costs p loss(a, b) + (1 - p) loss(b, a) nats.
`pairs_loss` draws a and b afresh for each and utilities for each side; `all_pairs_loss` and `weighted_pairs_loss`
average the label over the hidden context in closed form. All have the same expectation, but for ties and for pairs
within one of the equal parts of the world that `stratified_states` draws one state from.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from model_training.preference_losses import Kind, Likelihood, loss, num_outputs
from model_training.synthetic_worlds import (
    NUM_ATOMS,
    NUM_FEATURES,
    Env,
    draw_utilities,
    label_probability,
    value_and_probability,
)

Name = Literal["base", "mean_and_variance", "categorical", "classifier"]

NAMES: tuple[Name, ...] = get_args(Name)
HIDDEN_LAYERS, WIDTH = 3, 512
NEAR = 0.1
"""Neighbours are at most this share of the states apart."""


# --- networks -------------------------------------------------------------------------------------------------------


def make_network(env: Env, name: Name, seed: int, width: int = WIDTH) -> nn.Sequential:
    """A network with its first weights; (N, features) to (N, outputs)."""
    features = NUM_FEATURES[env] * (2 if name == "classifier" else 1)
    outputs = 1 if name == "classifier" else num_outputs(name, NUM_ATOMS[env])
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, NAMES.index(name)]).generate_state(1)[0]))
        for _ in range(HIDDEN_LAYERS):
            layers.append(nn.Linear(features, width))
            if name == "categorical":
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU())
            features = width
        layers.append(nn.Linear(features, outputs))
    return nn.Sequential(*layers)


def raw_outputs(name: Name, network: nn.Module, states: Tensor) -> Tensor:
    """What preference_losses.py reads: (N, D) to (N, K). The second output of mean_and_variance, log s + 2, becomes the
    number whose softplus is s."""
    outputs: Tensor = network(states)
    if name != "mean_and_variance":
        return outputs
    spread = torch.exp(outputs[:, 1] - 2).clamp(min=torch.finfo(outputs.dtype).tiny)
    return torch.stack([outputs[:, 0], spread + torch.log(-torch.expm1(-spread))], -1)


def log_odds(network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """The classifier's log-odds that the first state is preferred: (N, D) and (N, D) to (N,)."""
    outputs: Tensor = network(torch.cat([first, second], -1))
    return outputs.squeeze(-1)


# --- comparisons ----------------------------------------------------------------------------------------------------


def pairs_loss(
    env: Env,
    name: Name,
    network: nn.Module,
    count: int,
    rng: np.random.Generator,
    likelihood: Likelihood,
    shared: bool,
) -> Tensor:
    """The mean loss of `count` fresh comparisons with drawn utilities, as in the published code; a scalar."""
    first, second = torch.from_numpy(rng.random((2, count, NUM_FEATURES[env]), dtype=np.float32))
    contexts = torch.from_numpy(rng.random((1 if shared else 2, count), dtype=np.float32))
    first_wins = draw_utilities(env, first, contexts[0]) >= draw_utilities(env, second, contexts[-1])
    if name == "classifier":
        return binary_cross_entropy_with_logits(log_odds(network, first, second), first_wins.float())
    outputs = raw_outputs(name, network, first), raw_outputs(name, network, second)
    chosen, rejected = (torch.where(first_wins.unsqueeze(-1), *sides) for sides in (outputs, outputs[::-1]))
    return loss(name, chosen, rejected, likelihood).mean()


def all_pairs_loss(
    env: Env, kind: Kind, network: nn.Module, states: Tensor, likelihood: Likelihood, shared: bool
) -> Tensor:
    """The mean loss of every state (n, D) against every other, labels averaged over the hidden context; a scalar.

    p(a, b) = 1 - p(b, a), so the sum of p loss over ordered pairs holds both terms of each label.
    """
    p = label_probability(env, states.unsqueeze(1), states.unsqueeze(0), shared).fill_diagonal_(0)
    outputs = raw_outputs(kind, network, states)
    return (p * loss(kind, outputs.unsqueeze(1), outputs.unsqueeze(0), likelihood)).sum() / p.sum()


def weighted_pairs_loss(env: Env, network: nn.Module, count: int, rng: np.random.Generator, shared: bool) -> Tensor:
    """The classifier's mean loss over `count` or so pairs of as many states, labels averaged; a scalar.

    Labels jump where both states are worth the same, v(a) = v(b), so half of the pairs are neighbours: at most NEAR of
    all states apart in the order of v, round in a circle. Every pair is weighed by how often it would be drawn if all
    were alike, over how often it is: the same expectation.
    """
    states = stratified_states(env, count, rng)
    states = states[value_and_probability(env, states)[0].argsort()]
    count = len(states)
    reach = max(1, round(NEAR * count))
    near = rng.integers(1, reach + 1, count // 2) * rng.choice([-1, 1], count // 2)
    steps = np.concatenate([near, rng.integers(1, count, count - len(near))]) % count
    is_near = np.minimum(steps, count - steps) <= reach
    weights = 1 / (0.5 + 0.5 * is_near * (count - 1) / (2 * reach))
    chosen = rng.permutation(count)
    first, second = states[chosen], states[(chosen + steps) % count]
    p = label_probability(env, first, second, shared)
    return binary_cross_entropy_with_logits(log_odds(network, first, second), p, torch.from_numpy(weights).float())


def stratified_states(env: Env, count: int, rng: np.random.Generator) -> Tensor:
    """One random state in each of `count` equal parts of the world: (count, D). In 2d the parts are the cells of a
    grid, as few more as it takes to fill it."""
    shape = [count] if env == "1d" else [math.isqrt(count), math.ceil(count / math.isqrt(count))]
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
    return torch.from_numpy(((cells + rng.random(cells.shape)) / shape).astype(np.float32))
