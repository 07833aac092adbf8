# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Canvases: arrays of a few sizes that hold pictures of any size, padded at the bottom and right.

The pictures of a batch are on canvases of one size. A step is compiled once for each size, so there
are few.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cropvlm_jax.pixels import host


class Canvas(NamedTuple):
    """The height and the width of a canvas in pixels."""

    height: int
    width: int

    def holds(self, height: int, width: int) -> bool:
        """Whether a picture of this size keeps its pixels."""
        return height <= self.height and width <= self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width} px"


# Small pictures; pages of up to 200 dpi, letter or A4; photos of up to 12 megapixels. A picture
# that fits neither of the largest two is shrunk to fit.
FITTED = (
    Canvas(1024, 1024),
    Canvas(2368, 1728),
    Canvas(1728, 2368),
    Canvas(4096, 3072),
    Canvas(3072, 4096),
)


class Placed(NamedTuple):
    """A picture that is on a canvas.

    Attributes:
        canvas: uint8 `[Hc, Wc, 3]`.
        picture: Its pixels as they are on the canvas, uint8 `[H, W, 3]`.
        size: Height and width of the picture on the canvas, at its top left corner; int32 `[2]`.
        shrunk: Whether it was too large for the canvas; bool.
    """

    canvas: np.ndarray
    picture: np.ndarray
    size: np.ndarray
    shrunk: np.bool_


def choose(height: int, width: int, canvases: Sequence[Canvas]) -> int:
    """Which canvas a picture goes on.

    Args:
        height: Of the picture.
        width: Of the picture.
        canvases: What there is to choose from.

    Returns:
        The index of the smallest canvas that holds the picture; where none does, of the one for
        which it is shrunk least.
    """

    def badness(index: int) -> tuple[float, int]:
        canvas = canvases[index]
        shrinking = max(height / canvas.height, width / canvas.width, 1)
        return shrinking, canvas.height * canvas.width

    return min(range(len(canvases)), key=badness)


def empty(count: int, canvas: Canvas) -> np.ndarray:
    """Canvases for `place` to fill, uint8 `[count, Hc, Wc, 3]`."""
    return np.empty((count, canvas.height, canvas.width, 3), np.uint8)


def place(
    image: host.Picture, canvas: np.ndarray | None = None, canvases: Sequence[Canvas] = ()
) -> Placed:
    """Decodes a picture onto a canvas.

    Args:
        image: What `host.to_rgb` takes; shrunk, its aspect kept, where it is larger than the
            canvas.
        canvas: uint8 `[Hc, Wc, 3]`; all of it is written, with zeros beside the picture. None makes
            one, the best of `canvases`.
        canvases: What there is to choose from.

    Raises:
        OSError: The file is missing, broken or no picture.
        ValueError: The pixels cannot be understood, or are too many.
    """
    pixels = host.decoded(image)
    if canvas is None:
        best = choose(pixels.shape[0], pixels.shape[1], canvases)
        canvas = empty(1, canvases[best])[0]
    fitted = host.shrink_to_fit(pixels, canvas.shape[0], canvas.shape[1])
    height, width = fitted.shape[:2]
    canvas[:height, :width] = fitted
    canvas[:height, width:] = 0
    canvas[height:] = 0
    size = np.array([height, width], np.int32)
    return Placed(canvas, fitted, size, np.bool_(fitted.shape != pixels.shape))
