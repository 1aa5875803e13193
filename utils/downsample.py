"""Fewer points of a long series, by min-max: what the eye would miss first, the extremes, is what stays.

    steps, values = numpy arrays of 1,000,000 points; NaN is a gap
    kept = extremes(values, most=4000)
    steps[kept.indices], values[kept.indices], kept.means

The points are cut into buckets of equal numbers of neighbors, and each bucket keeps its smallest and its largest value
where they were logged; the first and the last point of all stay, too. A lone spike therefore survives whatever the
factor, which neither every n-th point nor a mean can promise. The price is that the kept points no longer average to
what the series averaged to: `means` holds the mean of each kept point's bucket, for moving averages and bands.
A gap stays where a bucket holds no number at all.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOW = "min-max"


class Kept(NamedTuple):
    """Positions of the kept points, ascending, and the mean of the bucket that each of them stands for."""

    indices: NDArray[np.int64]
    means: NDArray[np.float64]


def extremes(values: NDArray[np.float64], most: int) -> Kept:
    """At most `most` points (4 or more), with the smallest, the largest, the first and the last among them."""
    import numpy as np

    count = len(values)
    if count <= most:
        return Kept(np.arange(count), values.astype(np.float64))
    size = -(-count // ((most - 2) // 2))
    buckets = -(-count // size)
    padded = np.full(buckets * size, np.nan)
    padded[:count] = values
    table = padded.reshape(buckets, size)
    starts = np.arange(buckets) * size
    lowest = starts + np.where(np.isnan(table), np.inf, table).argmin(axis=1)
    highest = starts + np.where(np.isnan(table), -np.inf, table).argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of a bucket that is all gap
        means = np.nanmean(table, axis=1)
    indices = np.unique(np.concatenate([[0], lowest, highest, [count - 1]]))
    return Kept(indices, means[indices // size])
