# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A picture resized under jit, each few pixels of the result from the stretch that they need.

A weight matrix of a whole axis is nearly empty: an output pixel has weights on about six times as
many pixels as it covers. So a pass takes `BLOCK` output pixels at a time, cuts out the window of
pixels that have weights for them, and multiplies windows and weights as one batch of matmuls. The
windows' places may be traced; their length is fixed, for the most that a picture is shrunk.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from cropvlm_jax.pixels.resampling import Axis, Filter, resample, resize_weights

BLOCK = 32  # output pixels of a window; the fewer, the less of a window has no weight


def window(filter: Filter, axis: Axis, whole: int, reach: int) -> tuple[Int[Array, ""], Axis]:
    """The stretch of a canvas that the output pixels from `axis.first` on are resampled from.

    Args:
        filter: The kernel.
        axis: Of a crop of the canvas.
        whole: Pixels of the canvas's axis.
        reach: Pixels of the stretch, at most `whole`.

    Returns:
        Where the stretch starts, and the same axis, of the stretch instead of the canvas.
    """
    support = -(-int(filter.radius) * jnp.maximum(axis.length, axis.out) // axis.out)
    start = axis.start + axis.first * axis.length // axis.out - support - 1
    start = jnp.clip(start, 0, whole - reach)
    return start, axis._replace(start=axis.start - start)


def reach_of(filter: Filter, shrinks: float) -> int:
    """Pixels that `BLOCK` output pixels are resampled from, at most.

    The shorter edge of a picture may shrink by more than the longer one, because it is truncated to
    a whole number of pixels. That makes less than one output pixel more, or of two pixels three.

    Args:
        filter: The kernel.
        shrinks: By how much the longer edge of a picture is shrunk, at most.
    """
    return math.ceil((BLOCK + 2 * filter.radius + 2) * max(shrinks, 1.0)) + 5


def resample_axis(
    filter: Filter, axis: Axis, pixels: UInt8[Array, "I X 3"], rows: int, shrinks: float
) -> UInt8[Array, "X rows 3"]:
    """One pass of PIL over one picture.

    Args:
        filter: The kernel.
        axis: What is resampled: the picture's first axis. Numbers, which may be traced.
        pixels: The picture.
        rows: Output pixels wanted, from `axis.first` on; those from `axis.out` on are meaningless.
        shrinks: By how much the longer edge of the picture is shrunk, at most.

    Returns:
        The pixels with their axes swapped, so that the next pass resamples the other axis.
    """
    reach = min(reach_of(filter, shrinks), len(pixels))

    def block(first: Int[Array, ""]) -> tuple[Array, Array]:
        part = axis._replace(first=axis.first + first)
        start, part = window(filter, part, len(pixels), reach)
        weights = resize_weights(filter, part, reach, BLOCK)
        return weights, jax.lax.dynamic_slice_in_dim(pixels, start, reach)

    weights, windows = jax.vmap(block)(jnp.arange(0, rows, BLOCK))
    blocks = resample(weights, windows).swapaxes(0, 1)
    return blocks.reshape(pixels.shape[1], -1, 3)[:, :rows]


def resize(
    filter: Filter,
    pixels: UInt8[Array, "H W 3"],
    down: Axis,
    across: Axis,
    shape: tuple[int, int],
    shrinks: float,
    rows_first: Bool[Array, ""] | bool,
) -> UInt8[Array, "rows columns 3"]:
    """Resizes a part of a picture as PIL does, in two passes that both round to 8 bits.

    Args:
        filter: The kernel.
        pixels: The picture.
        down: How the part's rows are resampled.
        across: How its columns are.
        shape: Rows and columns of the result; those from `out` of an axis on are meaningless.
        shrinks: By how much the longer edge of the part is shrunk, at most.
        rows_first: Whether rows are resampled before columns, see `resampling.vertical_first`.
    """
    rows, columns = shape

    def down_first() -> Array:
        once = resample_axis(filter, down, pixels, rows, shrinks)
        return resample_axis(filter, across, once, columns, shrinks)

    def across_first() -> Array:
        once = resample_axis(filter, across, pixels.swapaxes(0, 1), columns, shrinks)
        return resample_axis(filter, down, once, rows, shrinks).swapaxes(0, 1)

    if isinstance(rows_first, bool):
        return down_first() if rows_first else across_first()
    return jax.lax.cond(rows_first, down_first, across_first)
