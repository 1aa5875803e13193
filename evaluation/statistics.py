"""Numbers with their uncertainty: every estimate is {"value", "n", "low", "high"} with a 95 % interval.

Completions of one prompt resemble each other, so the unit that is resampled is the prompt, never the completion:

- one 0/1 value a prompt: Wilson's interval, (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n), z2 = z squared
- anything else: bootstrap. Of P prompts, P are drawn with replacement, 2,000 times; the value of a draw is its sum over
  its count, so prompts may have different numbers of values; the interval is the 2.5th to the 97.5th percentile.
- two models on the same prompts: the same, of the difference, both models' values taken from the same draws. Prompts
  for which either model has no value are left out.
- two ratios on the same prompts that are not over the same ones (precisions: each over what its model flagged): the
  same, with all prompts that either ratio counts.
- where all prompts agree, a bootstrap of 0/1 values would claim certainty; Wilson over the prompts stands in, and for
  a difference the share of prompts that may differ after all, z2 / (P + z2).
- distinct things among all things (drawing with replacement would shrink that): the jackknife of `distinct_share`.
- any other statistic of independent units, such as r2 over pairs: `bootstrap`, by the units' indices.
- an area under the ROC curve: Newcombe's score interval of `auroc`, which also holds where nothing overlaps.

A prompt's values come as `(sum, count)`: `Cells` is an array of shape (P, 2). n = 0 gives the value None; of a single
prompt's mean no interval can be told: None.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Estimate = dict[str, float | int | None]
Cells = NDArray[np.float64]
Indices = NDArray[np.int64]
Groups = Sequence[Sequence[Hashable]]
"""The things seen, one sequence a prompt."""

Z = 1.959963984540054
"""Standard normal quantile of 97.5 %."""
RESAMPLES = 2000
DRAWN_AT_ONCE = 1 << 18
"""Indices that a bootstrap holds in memory at a time."""
NOTHING: Estimate = {"value": None, "n": 0, "low": None, "high": None}


def cells(values: Sequence[Sequence[float | None]]) -> Cells:
    """The (sum, count) of each prompt's values; None is no value. Shape (P, 2)."""
    kept = [[float(value) for value in of_prompt if value is not None] for of_prompt in values]
    return np.array([[math.fsum(of_prompt), len(of_prompt)] for of_prompt in kept], dtype=np.float64).reshape(-1, 2)


def wilson(successes: float, n: int) -> Estimate:
    """A proportion of independent cases with Wilson's score interval."""
    if n == 0:
        return dict(NOTHING)
    share, z2 = successes / n, Z * Z
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if successes <= 0 else center - half
    high = 1.0 if successes >= n else center + half
    return {"value": share, "n": n, "low": low, "high": high}


def rate(of_prompts: Cells, seed: int) -> Estimate:
    """A share of 0/1 values: Wilson if no prompt has two, else bootstrap over prompts. n counts values."""
    sums, counts = of_prompts[of_prompts[:, 1] > 0].T
    n = int(counts.sum())
    if n == len(counts):
        return wilson(float(sums.sum()), n)
    shares = sums / counts
    if shares.min() == shares.max() and shares[0] in (0.0, 1.0):
        return {**wilson(float(sums.sum() / n * len(counts)), len(counts)), "n": n}
    return mean(of_prompts, seed)


def mean(of_prompts: Cells, seed: int) -> Estimate:
    """The mean of all values with a bootstrap interval over prompts. n counts values."""
    kept = of_prompts[of_prompts[:, 1] > 0]
    if len(kept) == 0:
        return dict(NOTHING)
    totals = kept.sum(axis=0)
    low, high = _interval(_ratios(_draws(len(kept), seed), kept)) if len(kept) > 1 else (None, None)
    return {"value": float(totals[0] / totals[1]), "n": int(totals[1]), "low": low, "high": high}


def difference(first: Cells, second: Cells, seed: int, is_rate: bool = False) -> Estimate:
    """first - second on the prompts where both have values, with a paired bootstrap interval. n counts prompts."""
    both = (first[:, 1] > 0) & (second[:, 1] > 0)
    first, second = first[both], second[both]
    prompts = len(first)
    if prompts == 0:
        return dict(NOTHING)
    ratio_of = [float(c[:, 0].sum() / c[:, 1].sum()) for c in (first, second)]
    value = ratio_of[0] - ratio_of[1]
    by_prompt = first[:, 0] / first[:, 1] - second[:, 0] / second[:, 1]
    if is_rate and by_prompt.min() == by_prompt.max() and value in (-1.0, 0.0, 1.0):
        doubt = Z * Z / (prompts + Z * Z)
        return {"value": value, "n": prompts, "low": max(-1.0, value - doubt), "high": min(1.0, value + doubt)}
    draws = _draws(prompts, seed)
    low, high = _interval(_ratios(draws, first) - _ratios(draws, second)) if prompts > 1 else (None, None)
    return {"value": value, "n": prompts, "low": low, "high": high}


def ratio_difference(first: Cells, second: Cells, seed: int) -> Estimate:
    """first - second of two ratios of sums whose denominators lie on different prompts, paired. n counts the prompts
    that either counts; draws that leave one of the two without any are left out."""
    either = (first[:, 1] > 0) | (second[:, 1] > 0)
    first, second = first[either], second[either]
    prompts, counts = len(first), (first[:, 1].sum(), second[:, 1].sum())
    if prompts == 0 or min(counts) == 0:
        return dict(NOTHING)
    value = float(first[:, 0].sum() / counts[0] - second[:, 0].sum() / counts[1])
    if np.array_equal(first, second):
        doubt = Z * Z / (prompts + Z * Z)
        return {"value": 0.0, "n": prompts, "low": -doubt, "high": doubt}
    draws = _draws(prompts, seed)
    with np.errstate(invalid="ignore"):
        drawn = _ratios(draws, first) - _ratios(draws, second)
    finite = drawn[np.isfinite(drawn)]
    low, high = _interval(finite) if len(finite) > RESAMPLES / 2 and prompts > 1 else (None, None)
    return {"value": value, "n": prompts, "low": low, "high": high}


def bootstrap(statistic: Callable[[Indices], Cells], units: int, seed: int, n: int | None = None) -> Estimate:
    """Any statistic of independent units with its bootstrap interval. It gets draws of indices, (R, units), and gives a
    value for each, (R,).

    Draws on which it is not finite are left out; there is no interval where they are more than half. `n` is what the
    estimate counts, by default the units. The same units and seed give the same draws, so differences are paired.
    """
    if units == 0:
        return dict(NOTHING)
    value = float(statistic(np.arange(units)[None])[0])
    if not math.isfinite(value):
        return dict(NOTHING)
    rng = np.random.default_rng([seed, units])
    at_once = max(1, DRAWN_AT_ONCE // units)
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)] if units > 1 else []
    drawn = [statistic(rng.integers(units, size=(size, units))) for size in sizes]
    finite = np.concatenate([values[np.isfinite(values)] for values in drawn]) if drawn else np.array([])
    low, high = _interval(finite) if len(finite) > RESAMPLES / 2 else (None, None)
    return {"value": value, "n": units if n is None else n, "low": low, "high": high}


def spearman(first: Cells, second: Cells) -> Cells:
    """Rank correlation of each row, ties at their mean rank; NaN where either does not vary. (R, N), (R, N) to (R,)."""
    centered = [ranks - ranks.mean(axis=1, keepdims=True) for ranks in (_ranks(first), _ranks(second))]
    norms = [np.sqrt((of_one**2).sum(axis=1)) for of_one in centered]
    with np.errstate(invalid="ignore"):
        correlations: Cells = (centered[0] * centered[1]).sum(axis=1) / (norms[0] * norms[1])
    return correlations


def _ranks(values: Cells) -> Cells:
    """Within each row, from 1, ties at the mean of theirs: (R, N)."""
    kinds, codes = np.unique(values, return_inverse=True)
    rows = np.arange(len(values))[:, None] * len(kinds)
    flat = (codes.reshape(values.shape) + rows).ravel()
    counts = np.bincount(flat, minlength=len(values) * len(kinds)).reshape(len(values), -1)
    ranks: Cells = (counts.cumsum(axis=1) - (counts - 1) / 2).ravel()[flat].reshape(values.shape)
    return ranks


def auroc(positives: Cells, negatives: Cells) -> Estimate:
    """P(a positive scores above a negative), a tie 1/2: scores (M,) and (N,). n counts both.

    Interval: the values t with |t - value| <= z sqrt(V(t)), V Hanley and McNeil's variance with (M + N) / 2 for either
    number: t (1-t) (1 + ((M + N) / 2 - 1) ((1-t) / (2-t) + t / (1+t))) / (M N). Newcombe 2006, method 5 (Statistics in
    Medicine 25:559).
    """
    above, below = len(positives), len(negatives)
    if above == 0 or below == 0:
        return dict(NOTHING)
    ranks = _ranks(np.concatenate([positives, negatives])[None])[0, :above]
    value = float(ranks.sum() - above * (above + 1) / 2) / (above * below)

    def is_outside(t: float) -> bool:
        spread = 1 + ((above + below) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (t - value) ** 2 > Z * Z * t * (1 - t) * spread / (above * below)

    return {
        "value": value,
        "n": above + below,
        "low": _boundary(is_outside, 0.0, value),
        "high": _boundary(is_outside, 1.0, value),
    }


def _boundary(is_outside: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where the interval ends, by bisection; the end of the scale where that lies within."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if is_outside(middle) else (outside, middle)
    return inside


def distinct_share(groups: Groups) -> Estimate:
    """Distinct things / things, value +- z x standard error of the jackknife over prompts.

    Leaving out one prompt takes away its things and the kinds that only it has. With P prompts and s_i the share
    without prompt i, the squared error is (P-1)/P x sum (s_i - mean s)^2: never too small on average (Efron and Stein
    1981), but 0 where nothing repeats. n counts things. Shares of different n do not compare: more things repeat more.
    """
    kinds, things = _kinds(groups)
    if things == 0:
        return dict(NOTHING)
    low, high = _jackknife(kinds / things, _without_each(groups), 0.0)
    return {"value": kinds / things, "n": things, "low": low, "high": high}


def distinct_difference(first: Groups, second: Groups) -> Estimate:
    """The difference of two distinct shares where both have things, by the jackknife. n counts prompts."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a and b]
    if not pairs:
        return dict(NOTHING)
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    (kinds_a, things_a), (kinds_b, things_b) = _kinds(first), _kinds(second)
    value = kinds_a / things_a - kinds_b / things_b
    low, high = _jackknife(value, _without_each(first) - _without_each(second), -1.0)
    return {"value": value, "n": len(pairs), "low": low, "high": high}


def _kinds(groups: Groups) -> tuple[int, int]:
    return len({thing for group in groups for thing in group}), sum(map(len, groups))


def _without_each(groups: Groups) -> Cells:
    """The distinct share without each prompt in turn; prompts without things are skipped. Shape (P,)."""
    filled = [Counter(group) for group in groups if group]
    overall = Counter[Hashable]()
    for group in filled:
        overall.update(group)
    kinds, things = len(overall), sum(overall.values())
    shares = []
    for group in filled:
        only_here = sum(overall[thing] == count for thing, count in group.items())
        left = things - sum(group.values())
        shares.append((kinds - only_here) / left if left else math.nan)
    return np.array(shares)


def _jackknife(value: float, without: Cells, least: float) -> tuple[float | None, float | None]:
    prompts = len(without)
    if prompts < 2:
        return None, None
    error = math.sqrt((prompts - 1) / prompts * float(((without - without.mean()) ** 2).sum()))
    return max(least, value - Z * error), min(1.0, value + Z * error)


@lru_cache(maxsize=256)
def _draws(prompts: int, seed: int) -> Any:
    """How often each prompt is in each draw. Shape (RESAMPLES, P)."""
    rng = np.random.default_rng([seed, prompts])
    chosen = rng.integers(prompts, size=(RESAMPLES, prompts))
    offsets = prompts * np.arange(RESAMPLES)[:, None]
    flat = np.bincount((chosen + offsets).ravel(), minlength=RESAMPLES * prompts)
    return flat.reshape(RESAMPLES, prompts).astype(np.float64)


def _ratios(draws: Cells, of_prompts: Cells) -> Cells:
    totals: Cells = draws @ of_prompts
    ratios: Cells = totals[:, 0] / totals[:, 1]
    return ratios


def _interval(values: Cells) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
