"""What the four networks of a synthetic experiment learned, beside what is true: numbers, curves and a table.

Labels without noise tell nothing of a scale: an increasing change of all utilities leaves every one as it is. Networks
drive the spread of mean_and_variance from 1e-6, where nobody disagrees, to 1e5, where anyone may win. So what they
learned is compared with the truth by what such a change leaves alone:

    implied Borda count   the mean of P(state preferred) over all opponents, of any of the four
    rank                  of a utility, or of a reward or atom that the network assigns: the share of the population's
                          distribution below it plus half of the share at it; r2 and spread are those of ranks
    population loss       of all pairs of states, by quadrature, beside the least that such a model can have

r2 of the rewards themselves is given, too, with spreads clipped at the range of the means; its size means little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from model_training.preference_config import TrainPreferenceConfig
from model_training.preference_losses import Likelihood, explained_variance, loss, mean_and_spread, win_probability
from model_training.synthetic_networks import Name, log_odds, raw_outputs
from model_training.synthetic_worlds import (
    Env,
    best_bradley_terry,
    borda_count,
    expected_utility,
    grids,
    label_entropy,
    population_loss,
    rank_spread,
    true_explained_variance,
    utility_rank,
    utility_spread,
    value_and_probability,
)

Result = dict[str, Any]

STATES: dict[Env, int] = {"1d": 100, "2d": 24}
"""Cells a dimension of the grid of states that are drawn and counted."""
OPPONENTS: dict[Env, int] = {"1d": 200, "2d": 10}
"""Of the grid of opponents for implied Borda counts."""
BEST_CELLS: dict[Env, int] = {"1d": 500, "2d": 48}
"""Of the grid of the best possible reward."""
LOSS_CELLS: dict[Env, int] = {"1d": 500, "2d": 24}
CLASSIFIER_CELLS: dict[Env, int] = {"1d": 200, "2d": 12}
"""Of the grids of population losses; the classifier takes a forward for each pair. Halving the cells moves the loss of
a trained network by at most 3e-4 in 1d and 6e-4 in 2d."""
QUANTILES = 50
CONTESTED, AGREED = 0.82, 0.78
"""1d: states on either side of the jump, which networks smooth."""
RANKS_OF_BRANCHES: dict[Env, tuple[float, float]] = {"1d": (0.15, 0.85), "2d": (0.25, 1.0)}
"""Atoms below the first rank hold the utility 0 of contested states, those above the second their other one."""


# --- population loss ------------------------------------------------------------------------------------------------


def network_loss(
    env: Env, name: Name, network: nn.Module, likelihood: Likelihood = "probit", shared: bool = False, tie: float = 0.5
) -> float:
    """The population loss of a network in evaluation mode, by quadrature."""
    training = network.training
    network.eval()
    with torch.no_grad():
        losses, cells = _pair_losses(env, name, network, likelihood)
        value = population_loss(env, losses, cells, shared, tie)
    network.train(training)
    return value


def _pair_losses(
    env: Env, name: Name, network: nn.Module, likelihood: Likelihood
) -> tuple[Callable[[slice], tuple[Tensor, Tensor]], int]:
    if name == "classifier":
        cells = CLASSIFIER_CELLS[env]
        first, second = (side.float() for side in grids(env, cells))

        def of_pairs(rows: slice) -> tuple[Tensor, Tensor]:
            odds = _all_log_odds(network, first[rows], second).double()
            return softplus(-odds), softplus(odds)

        return of_pairs, cells
    cells = LOSS_CELLS[env]
    firsts, seconds = (raw_outputs(name, network, side.float()).double() for side in grids(env, cells))

    def of_states(rows: slice) -> tuple[Tensor, Tensor]:
        a, b = firsts[rows].unsqueeze(1), seconds.unsqueeze(0)
        return loss(name, a, b, likelihood), loss(name, b, a, likelihood)

    return of_states, cells


def _all_log_odds(network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """(N, D) and (M, D) to (N, M)."""
    rows, columns = len(first), len(second)
    odds = log_odds(network, first.repeat_interleave(columns, 0), second.repeat(rows, 1))
    return odds.view(rows, columns)


def least_losses(env: Env, best_reward: float, shared: bool = False, tie: float = 0.5) -> dict[Name, float]:
    """The least population loss of each kind of network: that of the best reward for `base`, the entropy of the labels
    for the others (with the classifier's own rule for ties, the first side or a half)."""
    entropy = label_entropy(env, LOSS_CELLS[env], shared)
    return {
        "base": best_reward,
        "mean_and_variance": entropy,
        "categorical": entropy,
        "classifier": label_entropy(env, CLASSIFIER_CELLS[env], shared, tie),
    }


# --- curves and numbers ---------------------------------------------------------------------------------------------


def measure(config: TrainPreferenceConfig, networks: Mapping[Name, nn.Module]) -> Result:
    """Everything that table and figure show, as plain lists and numbers; N states in the order of `states`."""
    env, shared = config.env, config.shared_context
    assert env is not None
    states = grids(env, STATES[env])[0]
    value, p = value_and_probability(env, states)
    truth = {
        "expected_utility": expected_utility(states),
        "borda_count": borda_count(env, states, shared),
        "spread": utility_spread(env, states),
        "mean_rank": borda_count(env, states),
        "rank_spread": rank_spread(env, states),
        "probability": p,
        "rank_of_value": utility_rank(env, value),
        "rank_of_zero": utility_rank(env, torch.zeros_like(value)),
    }
    with torch.no_grad():
        learned = {name: _curves(config, env, name, networks[name].eval(), states.float()) for name in networks}
    nodes, best, loss_of_best = best_bradley_terry(env, BEST_CELLS[env], shared)
    distances = torch.cdist(states, nodes)
    nearest = (distances < distances.amin(1, keepdim=True) + 1e-9).double()
    learned["base"]["best"] = nearest @ best / nearest.sum(1)
    tie = 1.0 if config.estimator == "pairs" else 0.5
    losses = {
        name: network_loss(env, name, networks[name], config.likelihood, shared, tie if name == "classifier" else 0.5)
        for name in networks
    }
    return {
        "env": env,
        "states": states.tolist(),
        "truth": _lists(truth),
        "learned": {name: _lists(curves) for name, curves in learned.items()},
        "population_loss": losses,
        "least_loss": least_losses(env, loss_of_best, shared, tie),
        "numbers": _numbers(env, states, truth, learned),
    }


def _curves(
    config: TrainPreferenceConfig, env: Env, name: Name, network: nn.Module, states: Tensor
) -> dict[str, Tensor]:
    """What one network says of each state; the implied Borda count is of any kind."""
    opponents = grids(env, OPPONENTS[env])[0].float()
    if name == "classifier":
        blocks = [torch.sigmoid(_all_log_odds(network, block, opponents)).mean(1) for block in states.split(100)]
        return {"borda_count": torch.cat(blocks)}
    outputs, theirs = raw_outputs(name, network, states), raw_outputs(name, network, opponents)
    wins = win_probability(name, outputs.unsqueeze(1), theirs.unsqueeze(0), config.likelihood)
    mean, spread = mean_and_spread(name, outputs)
    if name == "base":
        return {"borda_count": wins.mean(1), "mean": mean - mean.mean()}
    curves = {"borda_count": wins.mean(1), "mean": mean, "spread": spread}
    if name == "mean_and_variance":
        ranks_ = _normal_ranks(mean, spread, *mean_and_spread(name, theirs))
        return curves | {"mean_rank": ranks_.mean(1), "rank_spread": ranks_.std(1, correction=0)}
    distribution, share = torch.softmax(outputs, -1), torch.softmax(theirs, -1).mean(0)
    rank = share.cumsum(0) - share / 2
    mean_rank = distribution @ rank
    low, high = RANKS_OF_BRANCHES[env]
    return curves | {
        "mean_rank": mean_rank,
        "rank_spread": (distribution * (rank - mean_rank.unsqueeze(1)).square()).sum(1).sqrt(),
        "distribution": distribution,
        "share_of_atoms": share,
        "low_mass": distribution[:, rank < low].sum(1),
        "high_mass": distribution[:, rank > high].sum(1),
    }


def _normal_ranks(mean: Tensor, spread: Tensor, their_mean: Tensor, their_spread: Tensor) -> Tensor:
    """Ranks in the population, M normal distributions of equal weight, of the QUANTILES quantiles in the middle of
    equal parts of N normal distributions: (N, QUANTILES)."""
    middles = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    rewards = mean.unsqueeze(1) + spread.unsqueeze(1) * torch.special.ndtri(middles)
    return torch.special.ndtr((rewards.unsqueeze(2) - their_mean) / their_spread).mean(2)


def _numbers(
    env: Env, states: Tensor, truth: Mapping[str, Tensor], learned: Mapping[Name, Mapping[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Agreement of each network with the truth; `truth` holds what a perfect one would have."""
    numbers: dict[str, dict[str, float]] = {"truth": _true_numbers(env, truth)}
    contested, agreed = states[:, 0] > CONTESTED, states[:, 0] < AGREED
    for name, curves in learned.items():
        score = curves.get("mean", curves["borda_count"])
        row = numbers[name] = {
            "spearman_borda_count": spearman(score, truth["borda_count"]),
            "spearman_expected_utility": spearman(score, truth["expected_utility"]),
            "distance_borda_count": _distance(curves["borda_count"], truth["borda_count"]),
        }
        if "spread" in curves:
            mean, spread = curves["mean"], curves["spread"]
            row["r2"] = explained_variance(mean, spread.clamp(max=(mean.max() - mean.min()).item())).item()
            row["r2_rank"] = explained_variance(curves["mean_rank"], curves["rank_spread"]).item()
            row["distance_rank_spread"] = _distance(curves["rank_spread"], truth["rank_spread"])
            if env == "1d":
                row["auroc_spread"] = auroc(spread[contested], spread[agreed])
            else:
                row["spearman_spread"] = spearman(spread, truth["spread"])
        if "low_mass" in curves and env == "1d":
            row |= {f"{end}_mass": curves[f"{end}_mass"][contested].mean().item() for end in ("low", "high")}
        elif "low_mass" in curves:
            row["distance_low_mass"] = _distance(curves["low_mass"], 1 - truth["probability"])
    return numbers


def _true_numbers(env: Env, truth: Mapping[str, Tensor]) -> dict[str, float]:
    numbers = {
        "spearman_borda_count": 1.0,
        "spearman_expected_utility": spearman(truth["borda_count"], truth["expected_utility"]),
        "distance_borda_count": 0.0,
        "r2": true_explained_variance(env),
        "r2_rank": explained_variance(truth["mean_rank"], truth["rank_spread"]).item(),
        "distance_rank_spread": 0.0,
    }
    if env == "1d":
        return numbers | {"auroc_spread": 1.0, "low_mass": 0.5, "high_mass": 0.5}
    return numbers | {"spearman_spread": 1.0, "distance_low_mass": 0.0}


def _distance(first: Tensor, second: Tensor) -> float:
    """Mean absolute difference of (N,) and (N,)."""
    return float((first - second).abs().mean())


def _lists(curves: Mapping[str, Tensor]) -> dict[str, Any]:
    return {key: curve.tolist() for key, curve in curves.items()}


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing their mean rank: (N,) to (N,), float64."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of (N,) and (N,)."""
    return float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])


def auroc(positive: Tensor, negative: Tensor) -> float:
    """P(a positive is above a negative) + half of P(equal): (P,) and (N,)."""
    above = float(ranks(torch.cat([positive, negative]))[: len(positive)].sum())
    return (above - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative))


# --- the table ------------------------------------------------------------------------------------------------------

SHORT: dict[Name, str] = {
    "base": "base",
    "mean_and_variance": "mean & var",
    "categorical": "categorical",
    "classifier": "classifier",
}
POINT_ROWS: dict[str, dict[str, tuple[str, str]]] = {
    "truth": {
        "expected_utility": ("expected utility", ".3f"),
        "borda_count": ("Borda count", ".3f"),
        "rank_spread": ("spread of ranks", ".3f"),
    },
    "base": {
        "mean": ("base: reward", ".2f"),
        "best": ("  the best possible", ".2f"),
        "borda_count": ("  implied Borda count", ".3f"),
    },
    "mean_and_variance": {
        "mean": ("mean and variance: mean", ".2f"),
        "spread": ("  spread", ".0e"),
        "borda_count": ("  implied Borda count", ".3f"),
        "rank_spread": ("  spread of ranks", ".3f"),
    },
    "categorical": {
        "low_mass": ("categorical: lower branch", ".3f"),
        "borda_count": ("  implied Borda count", ".3f"),
        "rank_spread": ("  spread of ranks", ".3f"),
    },
    "classifier": {"borda_count": ("classifier: implied Borda count", ".3f")},
}
NUMBER_ROWS = {
    "spearman_borda_count": "Spearman of score and Borda count",
    "spearman_expected_utility": "  and expected utility",
    "distance_borda_count": "mean distance of implied Borda count",
    "auroc_spread": f"AUROC of spread, a > {CONTESTED} over a < {AGREED}",
    "spearman_spread": "Spearman of spread and true spread",
    "distance_rank_spread": "mean distance of spread of ranks",
    "r2_rank": "r2 of ranks",
    "r2": "r2 of rewards, spreads clipped",
    "low_mass": f"a > {CONTESTED}: probability on lower branch",
    "high_mass": "  on upper branch",
    "distance_low_mass": "mean distance of P(utility 0)",
}
NOTES = """\
The score is the reward or its mean; of the classifier, its implied Borda count. Labels without noise have no
natural scale: rewards, spreads and atoms can be stretched at will, so compare ranks (the share of the
population below), and r2 of rewards not at all."""


def report(result: Result) -> str:
    """The classical check as text: what was learned at fixed points, agreement with the truth, losses and bounds."""
    return "\n\n".join([_points(result), _agreement(result), NOTES])


def _points(result: Result) -> str:
    env, truth, learned = result["env"], result["truth"], result["learned"]
    if env == "1d":
        chosen = [5, 20, 40, 60, 75, 82, 90, 97]
        heads = [f"{result['states'][i][0]:.3f}" for i in chosen]
    else:
        chosen = [STATES[env] * x + y for x in (3, 11, 20) for y in (3, 11, 20)]
        heads = ["{:.2f},{:.2f}".format(*result["states"][i]) for i in chosen]
    rows = [("truth", key, form) for key, form in POINT_ROWS["truth"].items()]
    rows += [(name, key, form) for name in learned for key, form in POINT_ROWS[name].items()]
    texts = []
    for part, key, (text, form) in rows:
        values = truth[key] if part == "truth" else learned[part][key]
        texts.append((text, [format(values[i], form) for i in chosen]))
    return _table(f"what was learned at {'a' if env == '1d' else 'x,y'} =", heads, texts)


def _agreement(result: Result) -> str:
    numbers, losses, least = result["numbers"], result["population_loss"], result["least_loss"]
    columns = [*losses, "truth"]
    rows: list[tuple[str, list[float | None]]] = [
        (text, [numbers[column].get(key) for column in columns]) for key, text in NUMBER_ROWS.items()
    ]
    rows.append(("population loss", [*losses.values(), None]))
    rows.append(("  the least that is possible", [*(least[name] for name in losses), None]))
    texts = [(text, ["" if value is None else f"{value:.4f}" for value in values]) for text, values in rows]
    heads = ["truth" if column == "truth" else SHORT[column] for column in columns]
    return _table("agreement with the truth", heads, [row for row in texts if any(row[1])])


def _table(title: str, heads: list[str], rows: list[tuple[str, list[str]]]) -> str:
    width = max(len(text) for text, _ in [(title, heads), *rows])
    column = max(len(cell) for _, cells in [(title, heads), *rows] for cell in cells) + 2
    lines = [
        f"{text:<{width}}" + "".join(f"{cell:>{column}}" for cell in cells) for text, cells in [(title, heads), *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
