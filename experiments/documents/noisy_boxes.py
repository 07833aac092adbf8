# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Boxes as a labeller draws them that is often a little wrong, and sometimes entirely."""

import numpy as np

MISTAKEN = 0.1  # share of the boxes that are at a random place
ERROR = (0.1, 0.5)  # of a box's width and height: standard deviation of its shift


def seed_box(rng: np.random.Generator, box: list[int]) -> list[float]:
    """A box of the same size as a percent box, near it or anywhere, inside the picture."""
    low, size = np.array(box[:2], float), np.subtract(box[2:], box[:2])
    if rng.random() < MISTAKEN:
        low = rng.uniform(0, 100 - size)
    else:
        low = np.clip(low + rng.normal(0, ERROR) * size, 0, 100 - size)
    return [round(float(edge), 2) for edge in (*low, *(low + size))]
