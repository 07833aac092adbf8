# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""95% intervals of scores and of their differences.

Shape letters: n items, C conditions, K clusters, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
Z = 1.959963984540054  # of the normal distribution, for 95%
AGREE = 1e-9  # an interval that is narrower has no width but for rounding
METHOD = (
    "95% percentile bootstrap over pictures; where all pictures agree, so that resamples cannot "
    "differ, Wilson's interval of a share, and Newcombe's of a difference of shares, of as many "
    "items as there are pictures"
)


class Groups(NamedTuple):
    """Which items belong together.

    Attributes:
        cluster: int `[n]`, the picture of each item.
        cycle: int `[n]`, the order of its options.
    """

    cluster: np.ndarray
    cycle: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Groups":
        """The groups of records."""
        pictures = np.unique([record["picture"] for record in records], return_inverse=True)[1]
        cycles = [record.get("cycle_category", "") for record in records]
        return cls(pictures, np.unique(cycles, return_inverse=True)[1])


def resamples(count: int) -> np.ndarray:
    """How often each cluster is in the sample, `[1 + R, K]`: once each, then in the resamples."""
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.concatenate([np.ones((1, count)), weights])


def bootstrap(
    values: np.ndarray, cluster: np.ndarray, cycle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means with 95% intervals, from `RESAMPLES` resamples of the clusters, the same in every call.

    Args:
        values: `[n, C]`, NaN where there is none.
        cluster: int `[n]`, what is resampled.
        cycle: int `[n]`; the mean is one over cycles of means over their items.

    Returns:
        Means `[C]`, NaN where there is no value, and the ends of their intervals `[2, C]`.
    """
    count = cluster.max() + 1
    weights = resamples(count)
    known = ~np.isnan(values)
    means = []
    for number in range(cycle.max() + 1):
        rows = cycle == number
        sums, counts = np.zeros((2, count, values.shape[1]))
        np.add.at(sums, cluster[rows], np.where(known, values, 0)[rows])
        np.add.at(counts, cluster[rows], known[rows])
        with np.errstate(invalid="ignore"):
            means.append(weights @ sums / (weights @ counts))
    stacked = np.stack(means)
    present = ~np.isnan(stacked)  # a resample may lack all of a small cycle
    with np.errstate(invalid="ignore"):
        mean = np.where(present, stacked, 0).sum(0) / present.sum(0)
    ends = np.full((2, values.shape[1]), np.nan)
    has = ~np.isnan(mean[0])
    ends[:, has] = np.nanpercentile(mean[1:, has], [2.5, 97.5], axis=0)
    return mean[0], ends


def estimate(
    values: np.ndarray, groups: Groups, *, differences: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Means with 95% intervals, as `METHOD` says.

    Args:
        values: `[n, C]`, NaN where there is none: 0..1, or -1..1 where they are `differences`.
        groups: of the items.
        differences: whether the values are paired differences of scores.

    Returns:
        Means `[C]`, NaN where there is no value, and the ends of their intervals `[2, C]`.
    """
    means, ends = bootstrap(values, groups.cluster, groups.cycle)
    agree = ends[1] - ends[0] < AGREE
    if agree.any():
        known = ~np.isnan(values[:, agree])
        counts = np.array([len(np.unique(groups.cluster[column])) for column in known.T])
        ends[:, agree] = (newcombe if differences else wilson)(means[agree], counts)
    return means, ends


def wilson(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Wilson's 95% score intervals of shares 0..1 of so many items, `[2, C]`."""
    extra = Z**2 / counts
    centres = (shares + extra / 2) / (1 + extra)
    half = Z * np.sqrt(shares * (1 - shares) / counts + extra / (4 * counts)) / (1 + extra)
    low, high = np.minimum(centres - half, shares), np.maximum(centres + half, shares)
    return np.clip([low, high], 0, 1)


def newcombe(differences: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """95% intervals of paired differences -1..1 that are the same for every item, `[2, C]`.

    A difference is the share that was won less the share that was lost; their Wilson intervals are
    combined as Newcombe (1998, method 10) combines those of two shares.
    """
    won, lost = np.clip(differences, 0, 1), np.clip(-differences, 0, 1)
    (won_low, won_high), (lost_low, lost_high) = wilson(won, counts), wilson(lost, counts)
    low = differences - np.hypot(won - won_low, lost_high - lost)
    high = differences + np.hypot(won_high - won, lost - lost_low)
    return np.clip([low, high], -1, 1)
