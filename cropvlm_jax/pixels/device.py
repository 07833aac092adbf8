# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Crop-and-resize under jit, faithful to PIL's crop followed by the Hugging Face image processor.

The SmolVLM processor (slow PIL path) resizes a picture whose tiles are S px twice with Lanczos: the
longest edge to S with the aspect kept (the other side truncated and made even), then to S x S.
CLIP's resizes once, bicubically: the shortest edge to S, and takes the centre; LLaVA may pad to a
square first. PIL does each resize as a horizontal and a vertical pass and rounds to 8 bits after
each. Here a pass is a matmul with a weight matrix whose support is clipped to the crop: boxes may
be traced.

Qwen's processor resizes once, bicubically, to a size that depends on the picture. The result is a
list of square tiles, each resampled from the part of the crop that it needs.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL

from cropvlm_jax import geometry


class Filter(NamedTuple):
    """A resampling kernel of PIL's.

    Attributes:
        radius: of its support, in pixels of the coarser side.
        kernel: its value at a distance.
    """

    radius: float
    kernel: Callable[[jax.Array], jax.Array]


def _cubic(x: jax.Array) -> jax.Array:
    """Keys' cubic convolution kernel with a = -0.5 (doi 10.1109/TASSP.1981.1163711)."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    return jnp.where(x < 1, near, ((2.5 - 0.5 * x) * x - 4) * x + 2)


LANCZOS = Filter(3.0, lambda x: jnp.sinc(x) * jnp.sinc(x / 3.0))
BICUBIC = Filter(2.0, _cubic)

_PRECISION_BITS = 22  # of the weights of PIL's 8-bit resize
_TILES_AT_ONCE = 16  # bounds the memory of what tiles are resampled from


class Axis(NamedTuple):
    """One axis of resizing a crop, which may be padded first; ints, or arrays `[G]` of them.

    Attributes:
        start: first pixel of the crop.
        length: pixels of the crop.
        out: pixels that the padded crop is resized to.
        first: the first of these that is wanted.
        before: pixels of padding before the crop.
        padded: pixels of the padded crop; None where there is no padding.
    """

    start: jax.Array | int
    length: jax.Array | int
    out: jax.Array | int
    first: jax.Array | int = 0
    before: jax.Array | int = 0
    padded: jax.Array | int | None = None


def resize_weights(filter: Filter, axis: Axis, columns: int, rows: int) -> jax.Array:
    """Weights that resample one axis of a crop.

    Formula: PIL's `precompute_coeffs`: the kernel, stretched by the scale when shrinking, cut off
    at the border of the (padded) crop and normalised.

    Args:
        filter: the kernel.
        axis: what is resized, of ints.
        columns: pixels of the whole axis; at least as many as the padded crop has.
        rows: of the result, output pixels `first .. first + rows`; those from `out` on are
            meaningless.

    Returns:
        fp32 `[rows, columns]`. The weight of the padding is what a row lacks to 1.
    """
    full = axis.length if axis.padded is None else axis.padded
    row = jnp.arange(rows)[:, None] + axis.first

    def kernel(position: jax.Array) -> jax.Array:
        # Distance to the centre of the output pixel: a quotient of integers, so exact before it
        # rounds. They count from the middle, and what is far stays far, so that none overflows.
        far = 2**30 // jnp.maximum(axis.out, 1)
        centred = jnp.clip(2 * position + 1 - full, -far, far)
        numerator = axis.out * centred - full * (2 * row + 1 - axis.out)
        x = numerator / (2 * jnp.maximum(full, axis.out))
        inside = (position >= 0) & (position < full) & (jnp.abs(x) < filter.radius)
        return jnp.where(inside, filter.kernel(x), 0)

    column = jnp.arange(columns) - axis.start
    if axis.padded is None:
        weights = kernel(column)
        total = weights.sum(-1, keepdims=True)
    else:
        own = (column >= 0) & (column < axis.length)
        weights = jnp.where(own, kernel(column + axis.before), 0)
        total = kernel(jnp.arange(columns)).sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)  # rows past the crop have no weight at all


def _resample(
    weights: jax.Array, pixels: jax.Array, fill: tuple[int, int, int] | None = None
) -> jax.Array:
    """One pass of PIL: 22-bit fixed-point weights, exact sums, rounded to 0..255.

    Exactness decides ties, which a smooth gradient at half size is full of. So the weights go as
    digits whose sums with 8-bit pixels are exact in fp32: three of 8 bits where a matmul rounds its
    inputs to bf16, two, of 14 and 8 bits, on a CPU, which does not (512 taps keep below 2**24).

    Args:
        weights: fp32 `[G, O, I]`.
        pixels: uint8 `[G, I, X, 3]`.
        fill: colour of the padding, whose weight is what rows lack to 1; None where there is none.

    Returns:
        uint8 `[G, X, O, 3]`: transposed, so that the next pass resamples the other axis.
    """

    def total(*shifts: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def sums(rest: jax.Array, pixels: jax.Array) -> jax.Array:
            digits = []
            for shift in shifts:
                digits.append((rest + 2**shift // 2) >> shift)  # balanced about 0
                rest -= digits[-1] << shift
            stacked = jnp.concatenate(digits, 1).astype(jnp.float32)
            products = jnp.einsum("goi,gixc->goxc", stacked, pixels.astype(jnp.float32))
            parts = jnp.split(products.astype(jnp.int32), len(shifts), axis=1)
            whole = jnp.zeros_like(parts[0])
            for part, shift in zip(parts, shifts, strict=True):
                whole += part << shift
            return whole

        return sums

    fixed = jnp.round(weights * 2**_PRECISION_BITS).astype(jnp.int32)
    sums = jax.lax.platform_dependent(fixed, pixels, cpu=total(8, 0), default=total(16, 8, 0))
    if fill is not None:
        padding = 2**_PRECISION_BITS - fixed.sum(-1)
        sums += padding[..., None, None] * jnp.asarray(fill)
    rounded = (sums + 2 ** (_PRECISION_BITS - 1)) >> _PRECISION_BITS
    return jnp.clip(rounded, 0, 255).astype(jnp.uint8).swapaxes(1, 2)


@functools.cache
def _float_truncations(side: int, largest: int) -> np.ndarray:
    """Sizes whose scaled shorter edge is a whole number that the processor's floats miss.

    Returns:
        int `[M, 2]`: width and height, up to `largest`, where truncation loses one pixel.
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
    width: jax.Array, height: jax.Array, side: int, largest: int
) -> tuple[jax.Array, jax.Array]:
    """Size after the first resize: longest edge `side`, the other truncated, made even."""
    shorter = side * jnp.minimum(width, height) // jnp.maximum(width, height)
    misses = jnp.asarray(_float_truncations(side, largest))
    shorter -= ((width[:, None] == misses[:, 0]) & (height[:, None] == misses[:, 1])).any(-1)
    shorter = jnp.maximum(shorter + shorter % 2, 1)
    return jnp.where(width >= height, side, shorter), jnp.where(width >= height, shorter, side)


def _vertical_first(width: jax.Array, height: jax.Array, wide: jax.Array, high: jax.Array):
    """Whether the installed PIL runs the vertical pass of this resize before the horizontal one.

    From Pillow 12.2 on for pictures over 100 times taller than wide, from 13 on whenever the rows
    saved outnumber the columns saved twice. It shows, because PIL rounds between the passes.
    """
    version = tuple(int(part) for part in PIL.__version__.split(".")[:2])
    if version >= (13, 0):
        return (height > high) & (height - high > 2 * (width - wide))
    return (height > high) & (height > 100 * width) & (version >= (12, 2))


def crop(canvas: jax.Array, size: jax.Array, boxes: jax.Array, side: int) -> jax.Array:
    """Cuts percent boxes out of one picture and resizes them to the target's input.

    Args:
        canvas: uint8 `[Hc, Wc, 3]`, the original pixels padded at the bottom and right.
        size: int `[2]`, height and width of the picture inside the canvas.
        boxes: int `[G, 4]` percent.
        side: S, pixels of a side of the target's input.

    Returns:
        uint8 `[G, S, S, 3]`.
    """
    left, top, width, height = _cut(size, boxes)
    wide, high = _keep_aspect(width, height, side, max(canvas.shape[:2]))
    weights = jax.vmap(functools.partial(resize_weights, LANCZOS), in_axes=(0, None, None))

    rows_first = _vertical_first(width, height, wide, high)
    x, longest = _first_axis_leading(canvas, rows_first), max(canvas.shape[:2])
    across, down = jnp.stack([left, width, wide]), jnp.stack([top, height, high])
    one, other = jnp.where(rows_first, down, across), jnp.where(rows_first, across, down)

    # The longest edge to `side`, aspect kept; then the other edge to `side`, the first unchanged.
    zero = jnp.zeros_like(width)
    for start, length, out, size_before in (
        (one[0], one[1], one[2], longest),
        (other[0], other[1], other[2], longest),
        (zero, one[2], zero + side, side),
        (zero, other[2], zero + side, side),
    ):
        x = _resample(weights(Axis(start, length, out, zero, zero), size_before, side), x)
    return jnp.where(rows_first[:, None, None, None], x, x.swapaxes(1, 2))


def _cut(size: jax.Array, boxes: jax.Array) -> tuple[jax.Array, ...]:
    """Left, top, width and height in pixels, int `[G]`, of percent boxes `[G, 4]`."""
    pixel_boxes = geometry.to_pixels(boxes, jnp.broadcast_to(size, (*boxes.shape[:-1], 2)))
    left, top, right, bottom = (pixel_boxes[:, i] for i in range(4))
    return left, top, right - left, bottom - top


def _first_axis_leading(canvas: jax.Array, rows_first: jax.Array) -> jax.Array:
    """The canvas `[Hc, Wc, 3]` as squares `[G, X, X, 3]`: columns lead, or rows if they are first.

    A picture is resampled along its leading axis.
    """
    longest = max(canvas.shape[:2])
    square = jnp.pad(canvas, [(0, longest - n) for n in canvas.shape[:2]] + [(0, 0)])
    return jnp.where(rows_first[:, None, None, None], square, square.swapaxes(0, 1))


def bicubic_square(
    canvas: jax.Array,
    size: jax.Array,
    boxes: jax.Array,
    side: int,
    fill: tuple[int, int, int] | None = None,
) -> jax.Array:
    """Cuts percent boxes out of one picture as `pixels.host.bicubic_square` would each of them.

    Args:
        canvas: uint8 `[Hc, Wc, 3]`, the original pixels padded at the bottom and right.
        size: int `[2]`, height and width of the picture inside the canvas.
        boxes: int `[G, 4]` percent.
        side: S, pixels of a side of the target's input.
        fill: colour that crops are padded with to squares; None takes their centres.

    Returns:
        uint8 `[G, S, S, 3]`.
    """
    left, top, width, height = _cut(size, boxes)
    zero = jnp.zeros_like(left)
    if fill is None:
        shorter = jnp.minimum(width, height)
        wide, high = side * width // shorter, side * height // shorter
        across = Axis(left, width, wide, (wide - side) // 2, zero)
        down = Axis(top, height, high, (high - side) // 2, zero)
        rows_first = _vertical_first(width, height, wide, high)
    else:
        longer = jnp.maximum(width, height)
        across = Axis(left, width, zero + side, zero, (longer - width) // 2, longer)
        down = Axis(top, height, zero + side, zero, (longer - height) // 2, longer)
        rows_first = _vertical_first(longer, longer, zero + side, zero + side)
    weights = jax.vmap(functools.partial(resize_weights, BICUBIC), in_axes=(0, None, None))
    one, other = (
        jax.tree.map(lambda a, b: jnp.where(rows_first, a, b), *axes)
        for axes in ((down, across), (across, down))
    )
    x = _first_axis_leading(canvas, rows_first)
    for axis in (one, other):
        x = _resample(weights(axis, max(canvas.shape[:2]), side), x, fill)
    return jnp.where(rows_first[:, None, None, None], x, x.swapaxes(1, 2))


@functools.cache
def _float_errors(limit: int, factor: int, largest: int, grows: bool) -> np.ndarray:
    """Sizes whose scaled side is a whole number of tiles that the processor's floats miss.

    Args:
        limit: pixels that the picture is scaled to.
        factor: pixels of a tile's side.
        largest: of the sides.
        grows: whether sides are rounded up, where floats add a tile, or down, where one is lost.

    Returns:
        int `[M, 2]`: the side, and the other one.
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
    height: jax.Array, width: jax.Array, limits: geometry.PixelLimits, largest: int
) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of the tiles of `boxes.smart_resize`, for sizes that may be traced.

    Where one side is over 200 times the other, which that refuses, the longer one counts as that.

    Args:
        height: int `[G]`, at most `largest`.
        width: int `[G]`, likewise.
        limits: of the processor.
        largest: of the sides.
    """
    factor, aspect = limits.factor, geometry.MAX_ASPECT
    height, width = jnp.minimum(height, aspect * width), jnp.minimum(width, aspect * height)

    def rounded(side: jax.Array) -> jax.Array:
        whole, rest = side // factor, 2 * (side % factor)
        return whole + ((rest > factor) | ((rest == factor) & (whole % 2 == 1)))

    def scaled(side: jax.Array, other: jax.Array, tokens: int, grows: bool) -> jax.Array:
        tiles = jnp.sqrt(side * tokens / other).astype(jnp.int32)  # may be off by one
        tiles += (tiles + 1) ** 2 * other <= side * tokens
        tiles -= tiles**2 * other > side * tokens
        errors = jnp.asarray(_float_errors(tokens * factor**2, factor, largest, grows))
        error = ((side[:, None] == errors[:, 0]) & (other[:, None] == errors[:, 1])).any(-1)
        if grows:
            return tiles + (tiles**2 * other < side * tokens) + error
        return jnp.maximum(tiles - error, 1)

    most, least = limits.max_pixels // factor**2, limits.min_pixels // factor**2
    rows, columns = rounded(height), rounded(width)
    too_many, too_few = rows * columns > most, rows * columns < least

    def chosen(side: jax.Array, other: jax.Array, plain: jax.Array) -> jax.Array:
        grown = jnp.where(too_few, scaled(side, other, least, True), plain)
        return jnp.where(too_many, scaled(side, other, most, False), grown)

    return chosen(height, width, rows), chosen(width, height, columns)


def smart_reach(canvas: tuple[int, ...], limits: geometry.PixelLimits) -> int:
    """Pixels of a canvas's side that any one tile is resampled from, at most."""
    # Sides shrink by less than twice what the picture does, for one of nearly two tiles gets one.
    scale = max(1.5, 2 * math.sqrt(math.prod(canvas) / limits.max_pixels))
    return math.ceil((limits.factor + 2 * BICUBIC.radius) * scale) + 4


def smart_tiles(
    canvas: jax.Array, size: jax.Array, boxes: jax.Array, limits: geometry.PixelLimits
) -> tuple[jax.Array, jax.Array]:
    """Cuts percent boxes out of one picture as `pixels.host.smart_tiles` would each of them.

    Args:
        canvas: uint8 `[Hc, Wc, 3]`, the original pixels padded at the bottom and right.
        size: int `[2]`, height and width of the picture inside the canvas.
        boxes: int `[G, 4]` percent.
        limits: of the processor: S pixels of a tile's side, I tiles of a picture at most.

    Returns:
        Tiles uint8 `[G, I, S, S, 3]`, row-major and then meaningless, and int `[G, 2]`, how many
        rows and columns of them there are.
    """
    left, top, width, height = _cut(size, boxes)
    side, most = limits.factor, limits.most_tiles
    rows, columns = smart_grid(height, width, limits, max(canvas.shape[:2]))
    rows_first = _vertical_first(width, height, side * columns, side * rows)

    reach = smart_reach(canvas.shape[:2], limits)
    canvas = jnp.pad(canvas, [(0, max(reach - n, 0)) for n in canvas.shape[:2]] + [(0, 0)])

    def needed(
        tile: jax.Array, start: jax.Array, length: jax.Array, count: jax.Array, whole: int
    ) -> tuple[jax.Array, jax.Array]:
        """Where the pixels start that a row or column of tiles needs, and their weights."""
        out = side * count
        support = -(-int(BICUBIC.radius) * jnp.maximum(length, out) // out)
        first = start + side * tile * length // out - support - 1
        first = jnp.clip(first, 0, whole - reach)
        axis = Axis(start - first, length, out, side * tile)
        return first, resize_weights(BICUBIC, axis, reach, side)

    def cut(box: tuple[jax.Array, ...]) -> jax.Array:
        left, top, width, height, rows, columns, rows_first = box

        def tile(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            row, column = jnp.minimum(index // columns, rows - 1), index % columns
            y, down = needed(row, top, height, rows, canvas.shape[0])
            x, across = needed(column, left, width, columns, canvas.shape[1])
            return jax.lax.dynamic_slice(canvas, (y, x, 0), (reach, reach, 3)), across, down

        def some(index: jax.Array) -> jax.Array:
            x, across, down = jax.vmap(tile)(index)
            x = jnp.where(rows_first, x, x.swapaxes(1, 2))
            x = _resample(jnp.where(rows_first, down, across), x)
            x = _resample(jnp.where(rows_first, across, down), x)
            return jnp.where(rows_first, x, x.swapaxes(1, 2))

        groups = -(-most // _TILES_AT_ONCE)
        index = jnp.arange(groups * _TILES_AT_ONCE).reshape(groups, -1)
        return jax.lax.map(some, index).reshape(-1, side, side, 3)[:most]

    box = left, top, width, height, rows, columns, rows_first
    return jax.lax.map(cut, box), jnp.stack([rows, columns], -1)
