# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How crops are cut around a text that a reader shall learn to read, drawn or real."""

import numpy as np


def surround(
    rng: np.random.Generator, box: np.ndarray, line: float, loose: float
) -> tuple[np.ndarray, np.ndarray]:
    """A crop that holds a box, which is near its middle.

    Args:
        rng: what is drawn from.
        box: left, top, right, bottom in pixels, `[4]`.
        line: height of a line of text, pixels; boxes of whole percent are wrong by a part of it.
        loose: the most that the crop is larger than the box, in areas; 1 is tight.

    Returns:
        Left and top of the crop, and its width and height, whole pixels, `[2]` each.
    """
    size = box[2:] - box[:2]
    room = np.exp(rng.uniform(0, np.log(loose), 2)) ** 0.5
    shape = rng.uniform(0.7, 1.4) if loose > 1.6 else 1.0
    larger = size * np.maximum(room * (shape, 1 / shape), 1) + line * rng.uniform(0, (0.3, 0.5))
    corner = box[:2] - (larger - size) * np.clip(rng.normal(0.5, 0.18, 2), 0, 1)
    low = np.floor(corner).astype(int)
    return low, np.ceil(corner + larger).astype(int) - low
