# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The edge of paper: straight, torn off at a printer's teeth, with corners that are missing."""

import numpy as np

from .chance import between, often, whole

_STEPS = 16  # straight pieces of a long side, so that it can be bent


def outline(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """The corners of a polygon `[N, 2]` around what is left of a sheet, in its pixels."""
    cuts = [_cut(rng, width) if often(rng, 0.2) else (0.0, 0.0) for _ in range(4)]
    (a, b), (c, d), (e, f), (g, h) = cuts  # clockwise from the upper left corner
    down = np.linspace(0, 1, _STEPS + 1)[:, None]
    sides = [
        _teeth(rng, (a, 0.0), (width - c, 0.0)),
        (1 - down) * (width, d) + down * (width, height - f),
        _teeth(rng, (width - e, float(height)), (g, float(height))),
        (1 - down) * (0, height - h) + down * (0, b),
    ]
    return np.concatenate(sides)


def _cut(rng: np.random.Generator, width: int) -> tuple[float, float]:
    """How much of the two sides a missing corner takes."""
    return between(rng, 0.01, 0.08) * width, between(rng, 0.01, 0.08) * width


def _teeth(
    rng: np.random.Generator, start: tuple[float, float], stop: tuple[float, float]
) -> np.ndarray:
    """A short side, sometimes with teeth."""
    along = np.linspace(0, 1, 2 * whole(rng, 15, 45) + 1)[:, None]
    points = (1 - along) * start + along * stop
    if often(rng, 0.25):
        depth = abs(stop[0] - start[0]) * between(rng, 0.003, 0.012)
        points[1::2, 1] += depth if start[1] == 0 else -depth
    return points
