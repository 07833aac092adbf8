# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Coordinate frames: percent, pixels, thousandths, and Qwen's smart-resized pixels.

Percent boxes are whole numbers, but for those of `inside`: a whole percent of a crop that has whole
percent of its picture is a multiple of a hundredth of a percent of the picture. Such boxes are
floats, and `to_pixels` takes floats as multiples of a hundredth, exactly.

Original pixels and padded canvas pixels are one frame, because canvases are padded at the bottom
and on the right. Any other frame is known by its size: an image's height and width in the frame's
units (`frame_size`). Functions take NumPy and JAX arrays alike; JAX is not imported here.

Coordinates that are NaN or infinite are refused; under jit, where nothing can be raised, the box
becomes 0, 0, 0, 0, which is not valid.
"""

import dataclasses
import math

import numpy as np

from cropvlm_jax.geometry.boxes import Array, check_finite, is_valid, zero_where_not_finite

MAX_PIXELS = 12_845_056  # of a resized picture, in Qwen2.5-VL's released processors
MAX_ASPECT = 200  # they refuse pictures of which one side is longer than so many times the other
FRAMES = ("smart_resized", "thousandths", "pixels", "percent", "smart_resized_unscaled")


def frame_size(
    frame: str, height: int, width: int, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Height and width of an image in the units of a frame: the `size` for `to_percent`.

    Args:
        frame: One of `FRAMES`: "smart_resized", what Qwen2.5-VL writes; "thousandths", what
            Qwen2-VL and Qwen3-VL write; "pixels" of the original image; "percent"; or
            "smart_resized_unscaled", the official code's mistake, which divides smart-resized
            pixels by the original size.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        max_pixels: The limit of the processor of the model that wrote the boxes; it matters for
            "smart_resized" only.

    Raises:
        ValueError: There is no such frame, or no smart-resized form of the image.
    """
    match frame:
        case "smart_resized":
            return smart_resize(height, width, max_pixels=max_pixels)
        case "thousandths":
            return 1000, 1000
        case "pixels" | "smart_resized_unscaled":
            return height, width
        case "percent":
            return 100, 100
    raise ValueError(f"there is no frame {frame!r}: use one of {', '.join(FRAMES)}")


@dataclasses.dataclass(frozen=True)
class PixelLimits:
    """How large pictures are made by Qwen2-VL's and Qwen2.5-VL's processors.

    Attributes:
        max_pixels: Most pixels of a resized picture, a multiple of `factor` squared.
        min_pixels: Fewest pixels of a resized picture, a multiple of `factor` squared.
        factor: Pixels of a side of the square tiles that become one token each.
    """

    max_pixels: int = MAX_PIXELS
    min_pixels: int = 3136
    factor: int = 28

    def __post_init__(self) -> None:
        token = self.factor**2
        for name in ("max_pixels", "min_pixels"):
            pixels = getattr(self, name)
            if pixels < token or pixels % token:
                raise ValueError(f"{name}={pixels} is no multiple of a token's {token} pixels")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is over max_pixels={self.max_pixels}")

    @property
    def most_tiles(self) -> int:
        """The most tiles that any picture can get.

        `max_pixels` allows so many, but a thin picture may have more: it gets one row of tiles even
        where it would be less high than a tile.
        """
        most, least = self.max_pixels // self.factor**2, self.min_pixels // self.factor**2
        longest = math.ceil(math.sqrt(MAX_ASPECT * least))
        # A small picture is enlarged to `least` tiles and both sides are rounded up. A side of n
        # tiles was over n - 1 before, so the other one has at most least / (n - 1), rounded up.
        grown = [n * math.ceil(least / (n - 1)) for n in range(2, longest + 1)]
        return max([most, math.isqrt(MAX_ASPECT * most), *grown])


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 3136,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """The size to which Qwen2-VL's and Qwen2.5-VL's processors resize an image.

    Sides are rounded to multiples of `factor`, half to even; where their product leaves the limits,
    both are scaled alike and rounded down (where there were too many pixels) or up.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        factor: Pixels of a side of the square tiles that become one token each.
        min_pixels: Fewest pixels of the result.
        max_pixels: Most pixels of the result; a thin image may get more.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: One side is more than 200 times the other.
    """
    sides = (height, width)
    if max(sides) > MAX_ASPECT * min(sides):
        raise ValueError(f"{height} x {width} px: one side is over {MAX_ASPECT} times the other")
    high, wide = (round(side / factor) * factor for side in sides)
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high, wide = (max(math.floor(side / shrink / factor), 1) * factor for side in sides)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high, wide = (math.ceil(side * grow / factor) * factor for side in sides)
    return high, wide


def to_pixels(boxes: Array, size: Array) -> Array:
    """Percent boxes to pixel boxes as PIL's `crop` rounds them (half to even), 1 px at least.

    A box that is not valid becomes the top left corner of 2 x 2 px, as in the official training.
    (The official evaluation takes 99 x 99 px there, where 99 percent were meant; that is not
    reproduced.)

    Args:
        boxes: Percent boxes, int `[..., 4]`, or float, which counts to the nearest hundredth.
        size: Height and width of the image in pixels, at most 2**20 and for floats under jit
            2**17, int `[..., 2]`.

    Returns:
        int `[..., 4]`: left, top, right, bottom; right and bottom exclusive.

    Raises:
        ValueError: A coordinate is NaN or infinite.
    """
    check_finite(boxes)
    xp = boxes.__array_namespace__()
    scale = xp.stack([size[..., 1], size[..., 0]], axis=-1)
    edges, parts = boxes, 100
    if xp.isdtype(boxes.dtype, "real floating"):
        edges, parts = xp.round(boxes * 100).astype(scale.dtype), 10_000

    def pixels(edge: Array) -> Array:
        # Integer arithmetic, because floats would decide ties at random.
        whole, rest = edge * scale // parts, edge * scale % parts
        return whole + ((rest > parts // 2) | ((rest == parts // 2) & (whole % 2 == 1)))

    low = xp.minimum(pixels(edges[..., :2]), scale - 1)
    cut = xp.concatenate([low, xp.maximum(pixels(edges[..., 2:]), low + 1)], axis=-1)
    sides = xp.concatenate([scale, scale], axis=-1)
    corner = xp.minimum(xp.asarray((0, 0, 2, 2), dtype=scale.dtype), sides)
    return xp.where(is_valid(boxes)[..., None], cut, corner)


def inside(outer: Array, inner: Array) -> Array:
    """Boxes in percent of a crop as boxes in percent of the picture that it was cut from.

    Exact: nothing is rounded to whole percent or to pixels. The crop itself was rounded to whole
    pixels, so that what is inside may be up to half a pixel beside what it was in the crop.

    Args:
        outer: The crop, whole percent of the picture, int `[..., 4]`.
        inner: Whole percent of the crop, int `[..., 4]`.

    Returns:
        float `[..., 4]`, multiples of a hundredth of a percent. Valid where both boxes are, and
        equal to `outer` where `inner` is all of it.
    """
    xp = outer.__array_namespace__()
    low, extent = outer[..., :2], outer[..., 2:] - outer[..., :2]
    edges = [100 * low + extent * inner[..., :2], 100 * low + extent * inner[..., 2:]]
    return xp.concatenate(edges, axis=-1) / 100


def from_pixels(boxes: Array, size: Array) -> Array:
    """The smallest percent boxes that contain pixel boxes.

    Args:
        boxes: Left, top, right, bottom, the last two exclusive; int or float `[..., 4]`.
        size: Height and width of the image in pixels, or what `frame_size` gives for boxes of
            another frame; int `[..., 2]`.

    Returns:
        int `[..., 4]` percent, clipped to the image.

    Raises:
        ValueError: A coordinate is NaN or infinite, or the image has no pixels.
    """
    check_finite(boxes)
    _check_size(size)
    xp = boxes.__array_namespace__()
    scale = xp.stack([size[..., 1], size[..., 0]], axis=-1)
    low = xp.clip(boxes[..., :2] * 100 // scale, 0, 99).astype(scale.dtype)
    high = xp.clip(-(-boxes[..., 2:] * 100 // scale), 0, 100).astype(scale.dtype)
    percent = xp.concatenate([low, xp.maximum(high, low + 1)], axis=-1)
    return zero_where_not_finite(percent, boxes)


def to_percent(boxes: Array, size: Array) -> Array:
    """Pixel boxes as percent, unrounded.

    Args:
        boxes: Left, top, right, bottom, the last two exclusive; int or float `[..., 4]`.
        size: Height and width of the image in pixels, or what `frame_size` gives for boxes of
            another frame; int `[..., 2]`.

    Returns:
        float `[..., 4]` percent, clipped to the image.

    Raises:
        ValueError: A coordinate is NaN or infinite, or the image has no pixels.
    """
    check_finite(boxes)
    _check_size(size)
    xp = boxes.__array_namespace__()
    scale = xp.stack([size[..., 1], size[..., 0]] * 2, axis=-1)
    return zero_where_not_finite(xp.clip(boxes * 100 / scale, 0, 100), boxes)


def rescale(boxes: Array, size: Array, other: Array) -> Array:
    """Pixel boxes of one frame in the nearest pixels of another, 1 px at least.

    Args:
        boxes: Left, top, right, bottom, the last two exclusive; int or float `[..., 4]`.
        size: `frame_size` of the frame that they are in, int `[..., 2]`.
        other: `frame_size` of the frame that is wanted, at most 2**20, int `[..., 2]`; for the
            image's own pixels that is its height and width.

    Returns:
        int `[..., 4]`, clipped to the image.

    Raises:
        ValueError: A coordinate is NaN or infinite, or one of the images has no pixels.
    """
    check_finite(boxes)
    _check_size(size)
    _check_size(other)
    xp = boxes.__array_namespace__()
    scale, wanted = (xp.stack([s[..., 1], s[..., 0]] * 2, axis=-1) for s in (size, other))
    pixels = xp.clip(xp.round(boxes * wanted / scale), 0, wanted).astype(wanted.dtype)
    low = xp.minimum(pixels[..., :2], wanted[..., :2] - 1)
    whole = xp.concatenate([low, xp.maximum(pixels[..., 2:], low + 1)], axis=-1)
    return zero_where_not_finite(whole, boxes)


def _check_size(size: Array) -> None:
    """Refuses a height or a width below 1, of NumPy arrays `[..., 2]`."""
    if isinstance(size, np.ndarray) and (size < 1).any():
        raise ValueError(f"an image of height and width {size.tolist()} has no pixels")
