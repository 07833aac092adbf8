# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Boxes that people and models wrote down, in one of several frames of coordinates.

A frame is what the numbers count: percent, pixels, thousandths. Numbers of a wrong frame mostly
look like any others: one box tells little, all boxes of a file tell more (`doubt`).
"""

from typing import Any

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.data.source import Box

SLACK = 1  # px that a box in pixels may reach beyond the picture, by rounding
DECIMALS = 6  # of the numbers: what is finer is an error of arithmetic, such as of 0.29 * 100
LARGEST = 2**20  # of the numbers
BEYOND = 0.02  # share of a side by which a box reaches clearly beyond the picture
FEW, OFTEN = 2, 0.1  # so many boxes, and such a share of them, must reach beyond it to be odd
LEAST, UNLIKELY = 5, 0.01  # boxes, and the chance of their numbers, to call a frame doubtful
# What numbers up to a limit may count instead.
_SMALLER = {1: "shares of 1", 100: "percent", 1000: "thousandths"}


def numbers(box: Any) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what should be a box.

    Raises:
        ValueError: They are not four finite numbers, or the box is empty or out of order.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"box {box!r:.80} is not four numbers, [left, top, right, bottom]")
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise ValueError(
            f"box {box} is empty or out of order: it is [left, top, right, bottom], right over "
            "left and bottom over top"
        )
    return left, top, right, bottom


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST  # no NaN is


def to_percent(box: tuple[float, float, float, float], frame: str, size: tuple[int, int]) -> Box:
    """The smallest box in whole percent around a box of another frame.

    Args:
        box: What `numbers` returns.
        frame: One of `geometry.FRAMES`.
        size: Height and width of the picture in the units of the frame, `geometry.frame_size`.

    Raises:
        ValueError: The box is not inside the picture.
    """
    rounded = np.round(box, DECIMALS)
    left, top, right, bottom = rounded
    height, width = size
    slack = SLACK if frame == "pixels" else 0
    inside = min(left, top) >= -slack and right <= width + slack and bottom <= height + slack
    if not inside or left >= width or top >= height or right <= 0 or bottom <= 0:
        raise ValueError(
            f"box {list(box)} is not inside 0..{width} by 0..{height} ({frame}); is that the frame?"
        )
    x1, y1, x2, y2 = geometry.from_pixels(rounded, np.array(size)).tolist()
    return x1, y1, x2, y2


def are_shares(box: tuple[float, float, float, float]) -> bool:
    """Whether the numbers look like shares of width and height, 0 to 1."""
    return 0 <= min(box) and max(box) <= 1 and any(edge != round(edge) for edge in box)


def doubt(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """Why all boxes of a file together are unlikely to be in the frame that they were read in.

    Args:
        boxes: Left, top, right, bottom as written, float `[N, 4]`.
        sizes: Heights and widths of their pictures in the units of that frame, `[N, 2]`.

    Returns:
        What is odd and what the numbers may count; "" where nothing is odd.
    """
    if len(boxes) == 0:
        return ""
    sides = sizes[:, ::-1]
    beyond = ((boxes[:, 2:] > sides * (1 + BEYOND)) | (boxes[:, :2] < -BEYOND * sides)).any(-1)
    largest = boxes.max()
    if beyond.sum() >= max(FEW, OFTEN * len(boxes)):
        others = (name for limit, name in _SMALLER.items() if largest <= limit)
        likely = next(others, "pixels of pictures of another size")
        count = f"{beyond.sum()} of {len(boxes)} boxes"
        return f"{count} reach beyond their pictures; their numbers may count {likely}"
    for limit, name in _SMALLER.items():
        if largest <= limit and len(boxes) >= LEAST:
            # Were right and bottom edges anywhere, how likely would all of them be so small?
            chance = np.minimum(limit / sides, 1).prod()
            if chance < UNLIKELY:
                high, wide = sizes.max(0)
                return (
                    f"no number of {len(boxes)} boxes is over {limit}, although pictures are up to "
                    f"{wide} x {high}; the numbers may count {name}"
                )
    return ""
