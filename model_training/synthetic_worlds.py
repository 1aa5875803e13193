"""The two synthetic worlds of distributional preference learning, and what is true in them.

A state is a point of the unit interval (`1d`) or square (`2d`), drawn evenly. Its utility is v(state) with probability
p(state), else 0: the hidden context. That suffices to write down everything that a model could learn from comparisons.

    1d   a < 0.8:   v = a,  p = 1             a >= 0.8:   v = 2a,  p = 1/2
    2d   v = y / (1 - xy),  p = 1 - xy

    expected utility   p v                     a in 1d, y in 2d
    Borda count        P(u(state) > u(b)) + 1/2 P(u(state) = u(b)), b another state: what ordinary learning ranks by
    spread             v sqrt(p (1 - p))       the standard deviation of the utility

A comparison asks which of two utilities is larger. Each side has a context of its own, as in the published code, or
(`shared`) one context z ~ U(0, 1) serves both, as in the paper: a state has utility v where z < p. A tie counts as 1/2
(`tie`; in the published code the first side wins, which is tie = 1).

The published code draws 0.25 + y - y^2/4 - xy/8 - x y^2 + x y^3 / 4 as the Borda count of 2d. It compares by y where
utilities are compared and is wrong by up to 0.15, at (0, 1); `borda_count` integrates the true one.

Losses over the whole population are integrals over pairs of states, computed on two midpoint grids (`grids`): nothing
is sampled, and the nodes of the one grid lie on the borders of the other's cells, so that no node meets itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Env = Literal["1d", "2d"]

NUM_FEATURES: dict[Env, int] = {"1d": 1, "2d": 2}
NUM_ATOMS: dict[Env, int] = {"1d": 20, "2d": 8}
"""Atoms of the categorical network."""
JUMP = 0.8
"""Where the hidden context of 1d begins."""
ROWS_AT_ONCE = 64
MOST_NEWTON_STEPS = 50


# --- utilities ------------------------------------------------------------------------------------------------------


def value_and_probability(env: Env, states: Tensor) -> tuple[Tensor, Tensor]:
    """v and p: the utility of each state (..., D) is v (...) with probability p (...), else 0."""
    if env == "1d":
        a = states[..., 0]
        contested = a >= JUMP
        return torch.where(contested, 2 * a, a), torch.where(contested, 0.5, 1.0).to(a)
    x, y = states.unbind(-1)
    p = (1 - x * y).clamp(min=torch.finfo(states.dtype).tiny)
    return y / p, p


def draw_utilities(env: Env, states: Tensor, contexts: Tensor) -> Tensor:
    """The utility of each state (..., D) in its context, z ~ U(0, 1) of shape (...)."""
    value, p = value_and_probability(env, states)
    return torch.where(contexts < p, value, 0.0)


def expected_utility(states: Tensor) -> Tensor:
    """(..., D) to (...): a in 1d, y in 2d."""
    return states[..., -1]


def utility_spread(env: Env, states: Tensor) -> Tensor:
    """Standard deviation of the utility over its contexts: (..., D) to (...)."""
    value, p = value_and_probability(env, states)
    return value * (p * (1 - p)).sqrt()


def true_explained_variance(env: Env) -> float:
    """The true r2 = Var(expected utility) / (that + mean(spread^2)), in closed form: 0.3388 in 1d, 1/6 in 2d.

    Both expected utilities are even on (0, 1): variance 1/12. The mean of spread^2 is the integral of a^2 from 0.8 to
    1, and that of y^2 xy / (1 - xy) over the square, 5/12.
    """
    within = (1 - JUMP**3) / 3 if env == "1d" else 5 / 12
    return (1 / 12) / (1 / 12 + within)


def label_probability(env: Env, first: Tensor, second: Tensor, shared: bool = False, tie: float = 0.5) -> Tensor:
    """P(the first state is preferred), over the hidden context in closed form: (..., D) and (..., D) to (...)."""
    (v1, p1), (v2, p2) = value_and_probability(env, first), value_and_probability(env, second)
    if shared:
        both, only_first, only_second = torch.minimum(p1, p2), (p1 - p2).clamp(min=0), (p2 - p1).clamp(min=0)
    else:
        both, only_first, only_second = p1 * p2, p1 * (1 - p2), (1 - p1) * p2
    neither = 1 - both - only_first - only_second
    higher = torch.heaviside(v1 - v2, v1.new_tensor(tie))
    return both * higher + only_first + neither * tie


# --- Borda count ----------------------------------------------------------------------------------------------------


def utility_rank(env: Env, utility: Tensor) -> Tensor:
    """The share of the population with a lower utility plus half of the share with the same, any shape: a measure that
    no increasing change of all utilities alters. 0 has 0.05 in 1d and 0.125 in 2d."""
    if env == "1d":
        zero = (1 - JUMP) / 2
        above = zero + utility.clamp(max=JUMP) + (utility - 2 * JUMP).clamp(min=0) / 4
    else:
        zero = 1 / 4
        above = zero + _positive_below(utility)
    return torch.where(utility > 0, above, zero / 2)


def rank_spread(env: Env, states: Tensor) -> Tensor:
    """Standard deviation over the contexts of the rank of the utility: (..., D) to (...)."""
    value, p = value_and_probability(env, states)
    return (utility_rank(env, value) - utility_rank(env, torch.zeros_like(value))) * (p * (1 - p)).sqrt()


def borda_count(env: Env, states: Tensor, shared: bool = False) -> Tensor:
    """How often each state (..., D) is preferred to a state drawn at random, ties 1/2: (...). Exact to 1e-6.

    With contexts of their own it is the mean rank of the state's utility.
    """
    value, p = value_and_probability(env, states)
    if not shared:
        return p * utility_rank(env, value) + (1 - p) * utility_rank(env, torch.zeros_like(value))
    if env == "2d":
        return _borda_2d_shared(value, p)
    a = states[..., 0]
    return torch.where(a < JUMP, 0.1 + a, 0.05 + 0.5 * a)


def _positive_below(u: Tensor) -> Tensor:
    """P(0 < utility < u) of a random state of 2d, any shape.

    The integral of 1 - xy over y < Y(x) = min(1, u / (1 + ux)), where v < u. With c = max(0, 1 - 1/u), Y = 1 for x < c:

        c - c^2/4  +  1/2 ln((1 + u) / max(1, u))  +  1/2 (1 / max(1, u) - 1 / (1 + u))
    """
    m = u.clamp(min=1)
    c = 1 - 1 / m
    return c - c.square() / 4 + 0.5 * torch.log(1 / m + u / m) + 0.5 * (1 / m - 1 / (1 + u))


def _borda_2d_shared(value: Tensor, p: Tensor, nodes: int = 2000) -> Tensor:
    """One z for both sides. The mean over states b of min(p, p_b) [v_b < v] + max(0, p - p_b) + (1 - max(p, p_b)) / 2:
    in closed form over b's y, by the midpoint rule over its x."""
    x = (torch.arange(nodes, dtype=value.dtype) + 0.5) / nodes
    u, m = value.unsqueeze(-1), 1 - p.unsqueeze(-1)
    top = (u / (1 + u * x)).clamp(max=1)
    level = (m / x).clamp(max=1)
    bend = torch.minimum(top, level)
    wins = (1 - m) * bend + (top - bend) - x * (top.square() - bend.square()) / 2
    alone = x * (1 - level.square()) / 2 - m * (1 - level)
    ties = 0.5 * (x * level.square() / 2 + m * (1 - level))
    return (wins + alone + ties).mean(-1)


# --- integrals over pairs of states ---------------------------------------------------------------------------------


def grids(env: Env, cells: int) -> tuple[Tensor, Tensor]:
    """Nodes of the midpoint rule: (N, D) of `cells` a dimension and (M, D) of twice as many, float64.

    A node of the first is a border of the second's cells, so the step at a = b falls between nodes; with `cells` a
    multiple of 5 the jump of 1d does, too.
    """
    axes = [(torch.arange(count, dtype=torch.float64) + 0.5) / count for count in (cells, 2 * cells)]
    if env == "1d":
        return axes[0].unsqueeze(-1), axes[1].unsqueeze(-1)
    return torch.cartesian_prod(axes[0], axes[0]), torch.cartesian_prod(axes[1], axes[1])


def population_loss(
    env: Env, losses: Callable[[slice], tuple[Tensor, Tensor]], cells: int, shared: bool = False, tie: float = 0.5
) -> float:
    """The mean over all pairs of states and contexts of -log P(the label), by quadrature on `grids(env, cells)`.

    `losses` gives, for R rows of the first grid against the whole second grid, -log P(first preferred) and
    -log P(second preferred), (R, M) each.
    """
    first, second = grids(env, cells)
    total = 0.0
    for start in range(0, len(first), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        won, lost = losses(rows)
        p = label_probability(env, first[rows].unsqueeze(1), second.unsqueeze(0), shared, tie)
        total += (p * won + (1 - p) * lost).sum(dtype=torch.float64).item()
    return total / (len(first) * len(second))


def label_entropy(env: Env, cells: int, shared: bool = False, tie: float = 0.5) -> float:
    """The entropy of the labels in nats: the least population loss that any model of pairs can have."""
    first, second = grids(env, cells)

    def own_losses(rows: slice) -> tuple[Tensor, Tensor]:
        p = label_probability(env, first[rows].unsqueeze(1), second.unsqueeze(0), shared, tie)
        smallest = torch.finfo(p.dtype).tiny
        return -p.clamp(min=smallest).log(), -(1 - p).clamp(min=smallest).log()

    return population_loss(env, own_losses, cells, shared, tie)


def best_bradley_terry(env: Env, cells: int, shared: bool = False) -> tuple[Tensor, Tensor, float]:
    """What an ordinary reward model with no limits would learn: states (N, D), their rewards (N,) with mean 0, and its
    population loss.

    The loss is convex in the N rewards; Newton's method with p = 1/2 at a = b, its Hessian made regular by the mean.
    """
    states = grids(env, cells)[0]
    count = len(states)
    p = label_probability(env, states.unsqueeze(1), states.unsqueeze(0), shared)
    rewards = torch.zeros(count, dtype=torch.float64)
    for _ in range(MOST_NEWTON_STEPS):
        win = torch.sigmoid(rewards.unsqueeze(1) - rewards.unsqueeze(0))
        slope = (win - p).sum(1)
        curvature = win * (1 - win)
        hessian = torch.diag(curvature.sum(1)) - curvature + 1 / count
        step = torch.linalg.solve(hessian, slope)
        rewards = rewards - step
        if step.abs().max() < 1e-9:
            break
    margins = rewards.unsqueeze(1) - rewards.unsqueeze(0)
    return states, rewards - rewards.mean(), (2 * p * torch.nn.functional.softplus(-margins)).mean().item()
