# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Percent boxes cut out of a canvas and resized under jit, as `pixels.host` would resize each.

Each function is faithful to PIL's crop followed by the image processor of a kind of model:

`bicubic_square`: CLIP's, once, the shortest edge to S, of which the centre is taken; LLaVA may pad
to a square before.
`smart_tiles`: Qwen's, once, to a size that depends on the picture. The result is a list of square
tiles, each resampled from the part of the crop that it needs.

Shape letters: Hc Wc canvas, G boxes, S px of a side, I tiles.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Real, UInt8

from cropvlm_jax import geometry
from cropvlm_jax.pixels.resampling import (
    BICUBIC,
    Axis,
    Filter,
    resample,
    resize_weights,
    vertical_first,
)
from cropvlm_jax.pixels.windows import window

_TILES_AT_ONCE = 16  # bounds the memory of what tiles are resampled from


def extents(size: Int[Array, "2"], boxes: Real[Array, "G 4"]) -> tuple[Int[Array, " G"], ...]:
    """Left, top, width and height in pixels of percent boxes of a picture of this size."""
    pixel_boxes = geometry.to_pixels(boxes, jnp.broadcast_to(size, (*boxes.shape[:-1], 2)))
    left, top, right, bottom = (pixel_boxes[:, i] for i in range(4))
    return left, top, right - left, bottom - top


def first_axis_leading(
    canvas: UInt8[Array, "Hc Wc 3"], rows_first: Bool[Array, " G"]
) -> UInt8[Array, "G X X 3"]:
    """The canvas as squares whose first axis is the one that is resampled first.

    These are the columns, or the rows where `rows_first`.
    """
    longest = max(canvas.shape[:2])
    square = jnp.pad(canvas, [(0, longest - n) for n in canvas.shape[:2]] + [(0, 0)])
    return jnp.where(rows_first[:, None, None, None], square, square.swapaxes(0, 1))


def upright(
    pixels: UInt8[Array, "G S S 3"], rows_first: Bool[Array, " G"]
) -> UInt8[Array, "G S S 3"]:
    """Undoes what `first_axis_leading` swapped, after an even number of passes."""
    return jnp.where(rows_first[:, None, None, None], pixels, pixels.swapaxes(1, 2))


def ordered(rows_first: Bool[Array, " G"], across: Axis, down: Axis) -> tuple[Axis, Axis]:
    """For each box, the axis of the first pass and the axis of the second."""

    def chosen(if_rows: Axis, if_columns: Axis) -> Axis:
        return jax.tree.map(lambda a, b: jnp.where(rows_first, a, b), if_rows, if_columns)

    return chosen(down, across), chosen(across, down)


def weights_of(filter: Filter, axis: Axis, columns: int, rows: int) -> Array:
    """`resize_weights` of an axis of G boxes, `[G, rows, columns]`."""
    return jax.vmap(lambda one: resize_weights(filter, one, columns, rows))(axis)


# CLIP and LLaVA -----------------------------------------------------------------------------------


def bicubic_square(
    canvas: UInt8[Array, "Hc Wc 3"],
    size: Int[Array, "2"],
    boxes: Real[Array, "G 4"],
    side: int,
    fill: tuple[int, int, int] | None = None,
) -> UInt8[Array, "G side side 3"]:
    """Cuts percent boxes out of one picture as `pixels.host.bicubic_square` would each of them.

    Args:
        canvas: The original pixels, padded at the bottom and right.
        size: Height and width of the picture inside the canvas.
        boxes: Percent boxes.
        side: Pixels of a side of the model's input.
        fill: Colour that crops are padded with to squares; None takes their centres.
    """
    left, top, width, height = extents(size, boxes)
    zero = jnp.zeros_like(left)
    if fill is None:
        shorter = jnp.minimum(width, height)
        wide, high = side * width // shorter, side * height // shorter
        across = Axis(left, width, wide, first=(wide - side) // 2, before=zero)
        down = Axis(top, height, high, first=(high - side) // 2, before=zero)
        rows_first = vertical_first(width, height, wide, high)
    else:
        longer, square = jnp.maximum(width, height), zero + side
        across = Axis(left, width, square, zero, before=(longer - width) // 2, padded=longer)
        down = Axis(top, height, square, zero, before=(longer - height) // 2, padded=longer)
        rows_first = vertical_first(longer, longer, square, square)
    pixels = first_axis_leading(canvas, rows_first)
    for axis in ordered(rows_first, across, down):
        pixels = resample(weights_of(BICUBIC, axis, max(canvas.shape[:2]), side), pixels, fill)
    return upright(pixels, rows_first)


# Qwen ---------------------------------------------------------------------------------------------


@functools.cache
def _float_errors(limit: int, factor: int, largest: int, grows: bool) -> np.ndarray:
    """Sizes whose scaled side is a whole number of tiles that the processor's floats miss.

    Args:
        limit: Pixels that the picture is scaled to.
        factor: Pixels of a tile's side.
        largest: The largest of the sides looked at.
        grows: Whether sides are rounded up, where floats add a tile, or down, where one is lost.

    Returns:
        The side, and the other side of the picture; int `[M, 2]`.
    """
    found = []
    side, tokens = np.arange(1, largest + 1), limit // factor**2
    for tiles in range(1, math.isqrt(geometry.MAX_ASPECT * tokens) + 1):
        one = side[side * tokens % tiles**2 == 0]
        other = one * tokens // tiles**2  # so that `tiles` is sqrt(tokens * one / other)
        one, other = one[other <= largest], other[other <= largest]
        if grows:
            missed = np.ceil(one * np.sqrt(limit / (one * other)) / factor) > tiles
        else:
            missed = np.floor(one / np.sqrt(one * other / limit) / factor) < tiles
        found.append(np.stack([one, other], -1)[missed])
    return np.concatenate(found).astype(np.int32)


def smart_grid(
    height: Int[Array, " G"], width: Int[Array, " G"], limits: geometry.PixelLimits, largest: int
) -> tuple[Int[Array, " G"], Int[Array, " G"]]:
    """Rows and columns of the tiles of `geometry.smart_resize`, for sizes that may be traced.

    Where one side is over 200 times the other, which `geometry.smart_resize` refuses, the longer
    one counts as 200 times the other.

    Args:
        height: Heights of pictures, at most `largest`.
        width: Widths of pictures, at most `largest`.
        limits: Of the processor.
        largest: The longest side that a picture may have.
    """
    factor, aspect = limits.factor, geometry.MAX_ASPECT
    height, width = jnp.minimum(height, aspect * width), jnp.minimum(width, aspect * height)
    most, least = limits.max_pixels // factor**2, limits.min_pixels // factor**2
    rows, columns = _nearest_multiple(height, factor), _nearest_multiple(width, factor)
    too_many, too_few = rows * columns > most, rows * columns < least

    def chosen(
        side: Int[Array, " G"], other: Int[Array, " G"], rounded: Int[Array, " G"]
    ) -> Int[Array, " G"]:
        grown = _scaled(side, other, least, factor, largest, grows=True)
        shrunk = _scaled(side, other, most, factor, largest, grows=False)
        return jnp.where(too_many, shrunk, jnp.where(too_few, grown, rounded))

    return chosen(height, width, rows), chosen(width, height, columns)


def _nearest_multiple(side: Int[Array, " G"], factor: int) -> Int[Array, " G"]:
    """`side / factor` rounded half to even."""
    whole, rest = side // factor, 2 * (side % factor)
    return whole + ((rest > factor) | ((rest == factor) & (whole % 2 == 1)))


def _scaled(
    side: Int[Array, " G"],
    other: Int[Array, " G"],
    tokens: int,
    factor: int,
    largest: int,
    grows: bool,
) -> Int[Array, " G"]:
    """How many tiles lie along a side of a picture that is scaled to `tokens` tiles.

    Args:
        side: The side.
        other: The picture's other side.
        tokens: Tiles of the scaled picture, before sides are rounded.
        factor: Pixels of a tile's side.
        largest: The longest side that a picture may have.
        grows: Whether sides are rounded up, or down.
    """
    tiles = jnp.sqrt(side * tokens / other).astype(jnp.int32)  # may be off by one
    tiles += (tiles + 1) ** 2 * other <= side * tokens
    tiles -= tiles**2 * other > side * tokens
    errors = jnp.asarray(_float_errors(tokens * factor**2, factor, largest, grows))
    error = ((side[:, None] == errors[:, 0]) & (other[:, None] == errors[:, 1])).any(-1)
    if grows:
        return tiles + (tiles**2 * other < side * tokens) + error
    return jnp.maximum(tiles - error, 1)


def smart_reach(canvas: tuple[int, ...], limits: geometry.PixelLimits) -> int:
    """Pixels of a canvas's side that any one tile is resampled from, at most."""
    # Sides shrink by less than twice what the picture does, for one of nearly two tiles gets one.
    scale = max(1.5, 2 * math.sqrt(math.prod(canvas) / limits.max_pixels))
    return math.ceil((limits.factor + 2 * BICUBIC.radius) * scale) + 4


class _TiledCrop(NamedTuple):
    """A crop that is resized and cut into tiles; numbers, or arrays `[G]` of them.

    Attributes:
        left: First column of pixels.
        top: First row of pixels.
        width: Columns of pixels.
        height: Rows of pixels.
        rows: Rows of tiles.
        columns: Columns of tiles.
        rows_first: Whether rows of pixels are resampled before columns.
    """

    left: Int[Array, "*G"]
    top: Int[Array, "*G"]
    width: Int[Array, "*G"]
    height: Int[Array, "*G"]
    rows: Int[Array, "*G"]
    columns: Int[Array, "*G"]
    rows_first: Bool[Array, "*G"]


def smart_tiles(
    canvas: UInt8[Array, "Hc Wc 3"],
    size: Int[Array, "2"],
    boxes: Real[Array, "G 4"],
    limits: geometry.PixelLimits,
) -> tuple[UInt8[Array, "G I S S 3"], Int[Array, "G 2"]]:
    """Cuts percent boxes out of one picture as `pixels.host.smart_tiles` would each of them.

    Args:
        canvas: The original pixels, padded at the bottom and right.
        size: Height and width of the picture inside the canvas.
        boxes: Percent boxes.
        limits: Of the processor: S pixels of a tile's side, I tiles of a picture at most.

    Returns:
        Tiles, row-major and then meaningless; and how many rows and columns of them there are.
    """
    left, top, width, height = extents(size, boxes)
    rows, columns = smart_grid(height, width, limits, max(canvas.shape[:2]))
    rows_first = vertical_first(width, height, limits.factor * columns, limits.factor * rows)
    crops = _TiledCrop(left, top, width, height, rows, columns, rows_first)
    reach = smart_reach(canvas.shape[:2], limits)
    canvas = jnp.pad(canvas, [(0, max(reach - n, 0)) for n in canvas.shape[:2]] + [(0, 0)])
    tiles = jax.lax.map(lambda crop: _tiles_of_one(canvas, crop, limits, reach), crops)
    return tiles, jnp.stack([rows, columns], -1)


def _tiles_of_one(
    canvas: UInt8[Array, "Hc Wc 3"], crop: _TiledCrop, limits: geometry.PixelLimits, reach: int
) -> UInt8[Array, "I S S 3"]:
    """The tiles of one crop, some at a time."""
    side, most = limits.factor, limits.most_tiles

    def needed(
        index: Int[Array, ""],
    ) -> tuple[UInt8[Array, "reach reach 3"], Array, Array]:
        """The pixels that a tile is resampled from, and the weights of columns and of rows."""
        row, column = jnp.minimum(index // crop.columns, crop.rows - 1), index % crop.columns
        down = Axis(crop.top, crop.height, side * crop.rows, first=side * row)
        across = Axis(crop.left, crop.width, side * crop.columns, first=side * column)
        y, down = window(BICUBIC, down, canvas.shape[0], reach)
        x, across = window(BICUBIC, across, canvas.shape[1], reach)
        pixels = jax.lax.dynamic_slice(canvas, (y, x, 0), (reach, reach, 3))
        return (
            pixels,
            resize_weights(BICUBIC, across, reach, side),
            resize_weights(BICUBIC, down, reach, side),
        )

    def some(index: Int[Array, " N"]) -> UInt8[Array, "N S S 3"]:
        pixels, across, down = jax.vmap(needed)(index)
        pixels = jnp.where(crop.rows_first, pixels, pixels.swapaxes(1, 2))
        pixels = resample(jnp.where(crop.rows_first, down, across), pixels)
        pixels = resample(jnp.where(crop.rows_first, across, down), pixels)
        return jnp.where(crop.rows_first, pixels, pixels.swapaxes(1, 2))

    groups = -(-most // _TILES_AT_ONCE)
    index = jnp.arange(groups * _TILES_AT_ONCE).reshape(groups, -1)
    return jax.lax.map(some, index).reshape(-1, side, side, 3)[:most]
