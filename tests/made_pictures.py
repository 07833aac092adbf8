# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures that are hard to resample, and canvases around them."""

import numpy as np


def make_picture(rng, kind, height, width):
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "extremes":  # the largest overshoots
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    row, column = np.mgrid[:height, :width]
    if kind == "gradient":  # its halves and quarters are full of ties
        return (row[..., None] * rng.integers(0, 3, 3) + column[..., None]).astype(np.uint8)
    if kind == "checks":
        return np.repeat((100 + (row + column) % 2)[..., None], 3, -1).astype(np.uint8)
    row, column = row / max(height, width), column / max(height, width)
    waves = [np.sin(a * row + b * column) for a, b in rng.uniform(-20, 20, (3, 2))]
    return np.rint(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)


def on_canvas(rng, picture, height, width):
    canvas = rng.integers(0, 256, (height, width, 3), np.uint8)  # padding must not be seen
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas
