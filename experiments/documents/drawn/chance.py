# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Short names for what is asked of a random generator."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def pick(rng: np.random.Generator, options: Sequence[Item]) -> Item:
    """One of the options, all as likely."""
    return options[int(rng.random() * len(options))]


def weighted(rng: np.random.Generator, options: dict[Item, float]) -> Item:
    """One of the keys, as likely as its value says."""
    left = rng.random() * sum(options.values())
    for option, weight in options.items():
        left -= weight
        if left < 0:
            return option
    return next(reversed(options))


def often(rng: np.random.Generator, share: float) -> bool:
    """True in that share of cases."""
    return rng.random() < share


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in a range."""
    return low + (high - low) * rng.random()


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer in a range, both ends included."""
    return low + int(rng.random() * (high - low + 1))


def digits(rng: np.random.Generator, count: int) -> str:
    """A string of digits."""
    return str(int(rng.random() * 10**count)).zfill(count)
