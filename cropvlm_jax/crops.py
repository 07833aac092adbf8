# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Crop-and-resize under jit, faithful to PIL's crop followed by the Hugging Face image processor.

The SmolVLM processor (slow PIL path) resizes a picture whose tiles are S px twice with Lanczos: the
longest edge to S with the aspect kept (the other side truncated and made even), then to S x S. PIL
does each resize as a horizontal and a vertical pass and rounds to 8 bits after each. Here a pass is
a matmul with a Lanczos weight matrix whose support is clipped to the crop: boxes may be traced.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL

from cropvlm_jax import boxes as box_lib

LANCZOS_RADIUS = 3.0
_PRECISION_BITS = 22  # of the weights of PIL's 8-bit resize


def lanczos_weights(
    start: jax.Array, length: jax.Array, out: jax.Array | int, columns: int, rows: int
) -> jax.Array:
    """Weights that resample pixels `start .. start + length` of an axis to `out` pixels.

    Formula: PIL's `precompute_coeffs` with the Lanczos-3 kernel sinc(x) sinc(x / 3), stretched by
    the scale when shrinking, cut off at the crop's border and normalised.

    Args:
        start: int, first pixel of the crop.
        length: int, pixels of the crop.
        out: int, pixels wanted, at most `rows`.
        columns: pixels of the whole axis.
        rows: rows of the result; those from `out` on are meaningless.

    Returns:
        fp32 `[rows, columns]`.
    """
    column = jnp.arange(columns) - start
    row = jnp.arange(rows)[:, None]
    # Distance to the centre of the output pixel: a quotient of integers, so exact before it rounds.
    x = (out * (2 * column + 1) - length * (2 * row + 1)) / (2 * jnp.maximum(length, out))
    inside = (column >= 0) & (column < length) & (jnp.abs(x) < LANCZOS_RADIUS)
    weights = jnp.where(inside, jnp.sinc(x) * jnp.sinc(x / LANCZOS_RADIUS), 0)
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)  # rows past the crop have no weight at all


def _resample(weights: jax.Array, pixels: jax.Array) -> jax.Array:
    """One pass of PIL: 22-bit fixed-point weights, exact sums, rounded to 0..255.

    Exactness decides ties, which a smooth gradient at half size is full of. So the weights go as
    digits whose sums with 8-bit pixels are exact in fp32: three of 8 bits where a matmul rounds its
    inputs to bf16, two, of 14 and 8 bits, on a CPU, which does not (512 taps keep below 2**24).

    Args:
        weights: fp32 `[G, O, I]`.
        pixels: uint8 `[G, I, X, 3]`.

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
    pixel_boxes = box_lib.to_pixels(boxes, jnp.broadcast_to(size, (*boxes.shape[:-1], 2)))
    left, top, right, bottom = (pixel_boxes[:, i] for i in range(4))
    width, height = right - left, bottom - top
    wide, high = _keep_aspect(width, height, side, max(canvas.shape[:2]))
    weights = jax.vmap(lanczos_weights, in_axes=(0, 0, 0, None, None))

    # A picture is resampled along its leading axis: columns first, or rows where PIL does so.
    longest = max(canvas.shape[:2])
    square = jnp.pad(canvas, [(0, longest - n) for n in canvas.shape[:2]] + [(0, 0)])
    rows_first = _vertical_first(width, height, wide, high)
    x = jnp.where(rows_first[:, None, None, None], square, square.swapaxes(0, 1))
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
        x = _resample(weights(start, length, out, size_before, side), x)
    return jnp.where(rows_first[:, None, None, None], x, x.swapaxes(1, 2))
