# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Percent boxes cut out of canvases under jit, each as one tile of SmolVLM's.

Faithful to PIL's crop followed by SmolVLM's image processor with tiles of S px: Lanczos, twice, the
longest edge to S with the aspect kept (the other side truncated and made even), then to S x S.

Shape letters: B pictures, Hc Wc canvas, G boxes, S px of a side.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Real, UInt8

from cropvlm_jax.pixels import tiles
from cropvlm_jax.pixels.device import extents, first_axis_leading, ordered, upright, weights_of
from cropvlm_jax.pixels.resampling import (
    LANCZOS,
    Axis,
    fixed_point,
    resample,
    rounded,
    vertical_first,
    weighted_sums,
)

_BLOCK = 128  # pixels of a side of what a CPU resamples at once
_SMALL = 512  # pixels of a canvas's longer side up to which blocks are not faster


@functools.cache
def _float_truncations(side: int, largest: int) -> np.ndarray:
    """Sizes whose scaled shorter edge is a whole number that the processor's floats miss.

    Returns:
        Width and height, up to `largest`, where truncation loses one pixel; int `[M, 2]`.
    """
    missed = []
    for longer in range(1, largest + 1):
        shorter = np.arange(1, longer + 1)
        shorter = shorter[side * shorter % longer == 0]
        exact = side * shorter // longer
        wide = shorter[(side / (longer / shorter)).astype(int) < exact]
        tall = shorter[(side * (shorter / longer)).astype(int) < exact]
        missed += [(longer, s) for s in wide] + [(s, longer) for s in tall if s < longer]
    return np.array(missed, np.int32).reshape(-1, 2)


def _keep_aspect(
    width: Int[Array, " G"], height: Int[Array, " G"], side: int, largest: int
) -> tuple[Int[Array, " G"], Int[Array, " G"]]:
    """Width and height after the first resize, which makes the longest edge `side`.

    The other edge is truncated and made even. Both are at most `largest` before.
    """
    shorter = side * jnp.minimum(width, height) // jnp.maximum(width, height)
    misses = jnp.asarray(_float_truncations(side, largest))
    shorter -= ((width[:, None] == misses[:, 0]) & (height[:, None] == misses[:, 1])).any(-1)
    shorter = jnp.maximum(shorter + shorter % 2, 1)
    return jnp.where(width >= height, side, shorter), jnp.where(width >= height, shorter, side)


def crops(
    canvas: UInt8[Array, "B Hc Wc 3"],
    size: Int[Array, "B 2"],
    boxes: Real[Array, "B G 4"],
    side: int,
) -> UInt8[Array, "B G side side 3"]:
    """Cuts percent boxes out of pictures and resizes each to one tile of SmolVLM's.

    An accelerator takes one box after the other, by `windows`. A CPU that computes alone reads
    large canvases block by block, and only where the boxes are; elsewhere on a CPU each box is a
    matmul with its whole canvas, whose pixels are the same.

    Args:
        canvas: The original pixels, padded at the bottom and right.
        size: Heights and widths of the pictures inside their canvases.
        boxes: Percent boxes.
        side: Pixels of a side of the model's input.
    """
    by_windows = functools.partial(crops_by_windows, side=side)
    on_cpu = functools.partial(_crops_by_blocks, side=side)
    if jax.sharding.get_abstract_mesh().size > 1 or max(canvas.shape[1:3]) <= _SMALL:
        on_cpu = jax.vmap(functools.partial(_crops_of_whole, side=side))
    return jax.lax.platform_dependent(canvas, size, boxes, cpu=on_cpu, default=by_windows)


def crops_by_windows(
    canvas: UInt8[Array, "B Hc Wc 3"],
    size: Int[Array, "B 2"],
    boxes: Real[Array, "B G 4"],
    side: int,
) -> UInt8[Array, "B G side side 3"]:
    """`crops`, one after the other, by `windows`."""
    longest = max(canvas.shape[1:3])
    bounds = tiles.Bounds((side, side), (side, side), longest / side)

    def of_picture(picture: tuple[Array, Array, Array]) -> Array:
        canvas, size, boxes = picture
        left, top, width, height = extents(size, boxes)
        wide, high = _keep_aspect(width, height, side, longest)

        def of_box(box: tuple[Array, ...]) -> Array:
            left, width, wide, top, height, high = box
            return tiles.fit(canvas, Axis(top, height, high), Axis(left, width, wide), bounds)

        return jax.lax.map(of_box, (left, width, wide, top, height, high))

    return jax.lax.map(of_picture, (canvas, size, boxes))


class _CropPlan(NamedTuple):
    """How the boxes of a picture are resized to S px.

    Attributes:
        rows_first: Whether rows of pixels are resampled before columns.
        one: The axis of the first pass, which makes the longest edge S, the aspect kept.
        other: The axis of the second pass.
    """

    rows_first: Bool[Array, " G"]
    one: Axis
    other: Axis

    @classmethod
    def of(
        cls, size: Int[Array, "2"], boxes: Real[Array, "G 4"], side: int, longest: int
    ) -> "_CropPlan":
        """The plan of percent boxes; no side of the picture is longer than `longest`."""
        left, top, width, height = extents(size, boxes)
        wide, high = _keep_aspect(width, height, side, longest)
        rows_first = vertical_first(width, height, wide, high)
        one, other = ordered(rows_first, Axis(left, width, wide), Axis(top, height, high))
        return cls(rows_first, one, other)

    def finish(self, pixels: UInt8[Array, "G S S 3"]) -> UInt8[Array, "G S S 3"]:
        """Resizes the shorter edges to S, after two passes, and turns pictures upright."""
        side = pixels.shape[1]
        short, zero = jnp.minimum(self.one.out, self.other.out), jnp.zeros_like(self.one.out)
        axis = self.one._replace(start=zero, length=short, out=zero + side)
        weights = weights_of(LANCZOS, axis, side, side)
        first = jnp.less(self.one.out, side)[:, None, None, None]  # or the second, or neither
        pixels = resample(weights, jnp.where(first, pixels, pixels.swapaxes(1, 2)))
        return upright(jnp.where(first, pixels.swapaxes(1, 2), pixels), self.rows_first)


def _crops_of_whole(
    canvas: UInt8[Array, "Hc Wc 3"], size: Int[Array, "2"], boxes: Real[Array, "G 4"], side: int
) -> UInt8[Array, "G side side 3"]:
    """`crops` of one picture, by matmuls with its whole canvas."""
    longest = max(canvas.shape[:2])
    plan = _CropPlan.of(size, boxes, side, longest)
    pixels = first_axis_leading(canvas, plan.rows_first)
    for axis in (plan.one, plan.other):
        pixels = resample(weights_of(LANCZOS, axis, longest, side), pixels)
    return plan.finish(pixels)


def _crops_by_blocks(
    canvas: UInt8[Array, "B Hc Wc 3"],
    size: Int[Array, "B 2"],
    boxes: Real[Array, "B G 4"],
    side: int,
) -> UInt8[Array, "B G side side 3"]:
    """`crops`, one after the other, from the blocks of the canvas that hold their pixels."""
    longest = max(canvas.shape[1:3])
    beyond = [-n % _BLOCK for n in canvas.shape[1:3]]
    blocks = jnp.pad(canvas, [(0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)])

    def of_picture(picture: tuple[Array, Array, Array]) -> Array:
        blocks, size, boxes = picture
        plan = _CropPlan.of(size, boxes, side, longest)

        def of_box(box: tuple[_CropPlan, Array, Array]) -> Array:
            plan, one, other = box
            return _shrink_by_blocks(blocks, plan, one, other)

        def of_whole_blocks(axis: Axis) -> Array:
            # The same sums as `_crops_of_whole` computes, as other last bits make other pixels.
            fixed = fixed_point(weights_of(LANCZOS, axis, longest, side))
            return jnp.pad(fixed, [(0, 0), (0, 0), (0, -longest % _BLOCK)])

        one, other = of_whole_blocks(plan.one), of_whole_blocks(plan.other)
        return plan.finish(jax.lax.map(of_box, (plan, one, other)))

    return jax.lax.map(of_picture, (blocks, size, boxes))


def _shrink_by_blocks(
    canvas: UInt8[Array, "Hb Wb 3"],
    plan: _CropPlan,
    one: Int[Array, "side longest"],
    other: Int[Array, "side longest"],
) -> UInt8[Array, "side side 3"]:
    """The first two passes of one box.

    Args:
        canvas: Padded to whole blocks.
        plan: Of the box; numbers.
        one: Weights of the first pass, as `fixed_point` makes them, padded to whole blocks.
        other: Weights of the second pass.
    """
    side = one.shape[0]

    def sums(weights: Array, block: Array, pixels: UInt8[Array, "I X 3"]) -> Array:
        columns = jax.lax.dynamic_slice_in_dim(weights, block * _BLOCK, _BLOCK, axis=1)
        return weighted_sums(columns[None], pixels[None])[0]

    def second_pass(j: Array, total: Array) -> Array:
        def first_pass(i: Array, total: Array) -> Array:
            row, column = jnp.where(plan.rows_first, i, j), jnp.where(plan.rows_first, j, i)
            corner = (row * _BLOCK, column * _BLOCK, jnp.zeros_like(row))
            block = jax.lax.dynamic_slice(canvas, corner, (_BLOCK, _BLOCK, 3))
            block = jnp.where(plan.rows_first, block, block.swapaxes(0, 1))
            return total + sums(one, i, block)

        begin, end = _blocks(plan.one)
        empty = jnp.zeros((side, _BLOCK, 3), jnp.int32)
        pixels = rounded(jax.lax.fori_loop(begin, end, first_pass, empty))
        return total + sums(other, j, pixels.swapaxes(0, 1))

    begin, end = _blocks(plan.other)
    empty = jnp.zeros((side, side, 3), jnp.int32)
    return rounded(jax.lax.fori_loop(begin, end, second_pass, empty)).swapaxes(0, 1)


def _blocks(axis: Axis) -> tuple[Array, Array]:
    """The first block that holds pixels of a crop, and the one after the last."""
    start, stop = jnp.asarray(axis.start), jnp.asarray(axis.start + axis.length)
    return start // _BLOCK, -(-stop // _BLOCK)
