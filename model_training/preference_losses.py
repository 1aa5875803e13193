"""Distributional preference learning (DPL) as pure functions: from the raw outputs for two texts to a loss, and from
the raw outputs for one text to a mean, a spread and a quantile of its reward.

People who choose between two answers differ in ways that the data does not record. An ordinary reward model then learns
how often an answer wins (its Borda count), not how good it is on average. DPL learns a distribution over the reward:
its spread shows where people disagree, and a low quantile of it is a reward that avoids what some would hate
(Siththaranjan, Laidlaw and Hadfield-Menell, ICLR 2024, arXiv 2312.08358). Three kinds of model, K raw outputs r a text:

    base               K = 1    reward r                       P(a over b) = sigmoid(r_a - r_b)        (Bradley-Terry)
    mean_and_variance  K = 2    reward ~ N(mu, s^2), mu = r[0], s = softplus(r[1])
                                P(a over b) = Phi(z), z = (mu_a - mu_b) / sqrt(s_a^2 + s_b^2)
    categorical        K atoms  reward is v_i = i / (K - 1) with probability softmax(r)_i
                                P(a over b) = P(A > B) + 1/2 P(A = B), A and B independent

The loss of a pair is -log P(chosen over rejected). Where the published code departs from the paper both are here:
`likelihood="logistic"` puts sigmoid(sqrt(2 pi) z) in the place of Phi(z), which is off by up to 0.0945 (at |z| = 0.71)
and so learns spreads about 1.5 times too wide; `entropy(..., "marginal")` is that of the batch's mean distribution in
the place of each answer's own.

All functions broadcast over the leading dimensions, so a column of states against a row of states gives all pairs.
Half precision is raised to float32 first; equal rewards, spreads near 0 and saturated logits give finite losses and
gradients. Spreads are at least SMALLEST_SPREAD.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

Kind = Literal["base", "mean_and_variance", "categorical"]
Likelihood = Literal["probit", "logistic"]
EntropyBonus = Literal["conditional", "marginal"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SMALLEST_SPREAD = 1e-6


def num_outputs(kind: Kind, num_atoms: int) -> int:
    """K, the raw outputs a text; `num_atoms` counts for the categorical kind alone."""
    return {"base": 1, "mean_and_variance": 2, "categorical": num_atoms}[kind]


# --- pairs ----------------------------------------------------------------------------------------------------------


def loss(kind: Kind, chosen: Tensor, rejected: Tensor, likelihood: Likelihood = "probit") -> Tensor:
    """-log P(chosen over rejected), in nats: (..., K) and (..., K) to (...)."""
    if kind == "base":
        return base_loss(chosen, rejected)
    if kind == "mean_and_variance":
        return mean_and_variance_loss(chosen, rejected, likelihood)
    return categorical_loss(chosen, rejected)


def base_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected): (..., 1) and (..., 1) to (...)."""
    return -logsigmoid(_full(chosen) - _full(rejected)).squeeze(-1)


def mean_and_variance_loss(chosen: Tensor, rejected: Tensor, likelihood: Likelihood = "probit") -> Tensor:
    """-log Phi(z), or -log sigmoid(sqrt(2 pi) z): (..., 2) and (..., 2) to (...)."""
    mean_c, spread_c = mean_and_spread("mean_and_variance", chosen)
    mean_r, spread_r = mean_and_spread("mean_and_variance", rejected)
    z = (mean_c - mean_r) / torch.hypot(spread_c, spread_r)
    return -(log_normal_cdf(z) if likelihood == "probit" else logsigmoid(math.sqrt(2 * math.pi) * z))


def log_normal_cdf(z: Tensor) -> Tensor:
    """log Phi(z), any shape. Through erfcx below 0, where the gradient of torch's log_ndtr ends in 0 or NaN."""
    below, above = z.clamp(max=0) / math.sqrt(2), z.clamp(min=0) / math.sqrt(2)
    tail = torch.log(torch.special.erfcx(-below) / 2) - below.square()
    return torch.where(z < 0, tail, torch.log1p(-torch.erfc(above) / 2))


def categorical_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log( sum_i c_i (R_i + r_i / 2) ), R_i the probability of the atoms below i: (..., K) and (..., K) to (...).

    In logarithms throughout, so that no probability underflows.
    """
    log_c, log_r = torch.log_softmax(_full(chosen), -1), torch.log_softmax(_full(rejected), -1)
    below = torch.logcumsumexp(log_r, -1)[..., :-1]
    ties = log_r - math.log(2)
    at_most = torch.cat([ties[..., :1], torch.logaddexp(below, ties[..., 1:])], -1)
    return -torch.logsumexp(log_c + at_most, -1)


def win_probability(kind: Kind, first: Tensor, second: Tensor, likelihood: Likelihood = "probit") -> Tensor:
    """P(first over second): (..., K) and (..., K) to (...)."""
    return torch.exp(-loss(kind, first, second, likelihood))


# --- what training adds ---------------------------------------------------------------------------------------------


def training_loss(
    kind: Kind,
    chosen: Tensor,
    rejected: Tensor,
    *,
    likelihood: Likelihood = "probit",
    variance_penalty: float = 0.0,
    entropy_coeff: float = 0.0,
    entropy_bonus: EntropyBonus = "conditional",
    whole_batch: Callable[[Tensor], Tensor] = lambda outputs: outputs,
) -> Tensor:
    """The mean loss of B pairs with the regulariser of its kind, (B, K) and (B, K) to a scalar:

    mean_and_variance  + variance_penalty x mean(s_chosen^2 + s_rejected^2)
    categorical        - entropy_coeff x entropy

    Where the pairs are a part of a batch, `whole_batch` gives the outputs of all, whose mean distribution `marginal`
    takes.
    """
    total = loss(kind, chosen, rejected, likelihood).mean()
    if kind == "mean_and_variance" and variance_penalty:
        total = total + variance_penalty * mean_sum_of_variances(chosen, rejected)
    if kind == "categorical" and entropy_coeff:
        total = total - entropy_coeff * entropy(whole_batch(torch.cat([chosen, rejected])), entropy_bonus)
    return total


def mean_sum_of_variances(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean over the pairs of s_chosen^2 + s_rejected^2: (B, 2) and (B, 2) to a scalar."""
    variances = [mean_and_spread("mean_and_variance", outputs)[1].square() for outputs in (chosen, rejected)]
    return (variances[0] + variances[1]).mean()


def entropy(outputs: Tensor, which: EntropyBonus = "conditional") -> Tensor:
    """Entropy in nats of categorical outputs, (B, K) to a scalar: the mean over the B distributions (`conditional`),
    or that of their mean distribution (`marginal`), which different but certain answers raise as well."""
    log_p = torch.log_softmax(_full(outputs), -1)
    if which == "marginal":
        log_p = torch.logsumexp(log_p, 0, keepdim=True) - math.log(len(log_p))
    return -(log_p.exp() * log_p).sum(-1).mean()


# --- one text -------------------------------------------------------------------------------------------------------


def mean_and_spread(kind: Kind, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the reward: (..., K) to (...) and (...). The spread of `base` is 0."""
    outputs = _full(outputs)
    if kind == "base":
        return outputs.squeeze(-1), torch.zeros_like(outputs).squeeze(-1)
    if kind == "mean_and_variance":
        return outputs[..., 0], softplus(outputs[..., 1]).clamp(min=SMALLEST_SPREAD)
    p = torch.softmax(outputs, -1)
    atoms = torch.linspace(0, 1, outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
    mean = (p * atoms).sum(-1)
    variance = (p * (atoms - mean.unsqueeze(-1)).square()).sum(-1)
    return mean, variance.clamp(min=SMALLEST_SPREAD**2).sqrt()


def quantile(kind: Kind, outputs: Tensor, alpha: float) -> Tensor:
    """The risk-averse reward, the value that the reward stays below with probability alpha: (..., K) to (...).

    mu + Phi^-1(alpha) s; for K atoms each probability spread evenly over its bucket [i/K, (i+1)/K]: with F_i the
    probability of the buckets below i and F_i < alpha <= F_(i+1), (i + (alpha - F_i) / (F_(i+1) - F_i)) / K. The reward
    itself for `base`.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; a quantile lies between 0 and 1")
    mean, spread = mean_and_spread(kind, outputs)
    if kind == "base":
        return mean
    if kind == "mean_and_variance":
        return mean + torch.special.ndtri(torch.tensor(alpha, dtype=torch.float64)).item() * spread
    p = torch.softmax(outputs.double(), -1)
    above = p.cumsum(-1)
    bucket = (above < alpha).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
    p_of_bucket, top = p.gather(-1, bucket), above.gather(-1, bucket)
    share = ((alpha - (top - p_of_bucket)) / p_of_bucket).clamp(0, 1)
    return ((bucket + share) / p.shape[-1]).squeeze(-1).to(mean.dtype)


def explained_variance(means: Tensor, spreads: Tensor) -> Tensor:
    """r2 = Var(means) / (Var(means) + mean(spreads^2)) over texts, chosen and rejected alike: (N,), (N,) to a scalar.

    Near 1 no hidden context; lower, more. NaN where nothing varies.
    """
    between = means.var(correction=0)
    return between / (between + spreads.square().mean())


def _full(outputs: Tensor) -> Tensor:
    """At least float32, in which differences of large rewards and sums of small probabilities keep their digits."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
