# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""PIL's resampling under jit: filters, weights, and a pass over 8-bit pixels.

PIL resizes in a horizontal and a vertical pass and rounds to 8 bits after each. Here a pass is a
matmul with a weight matrix. Weights are zero outside of the crop that is resized, so the place and
the size of a crop of a larger canvas may be traced.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import PIL
from jaxtyping import Array, Float, Int, UInt8

PRECISION_BITS = 22  # of the fixed-point weights of PIL's 8-bit resize


class Filter(NamedTuple):
    """A resampling kernel of PIL's.

    Attributes:
        radius: Where the kernel ends, in pixels of the coarser side.
        kernel: The kernel's value at a distance in these pixels.
    """

    radius: float
    kernel: Callable[[Float[Array, "..."]], Float[Array, "..."]]


def _lanczos(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sinc function, windowed by its middle lobe stretched to a radius of 3."""
    return jnp.sinc(x) * jnp.sinc(x / 3.0)


def _cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic convolution kernel with a = -0.5 (doi 10.1109/TASSP.1981.1163711)."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    return jnp.where(x < 1, near, ((2.5 - 0.5 * x) * x - 4) * x + 2)


LANCZOS = Filter(3.0, _lanczos)
BICUBIC = Filter(2.0, _cubic)


class Axis(NamedTuple):
    """One axis of a crop that is resized, and may be padded before; numbers or arrays `[G]`.

    Attributes:
        start: First pixel of the crop.
        length: Pixels of the crop.
        out: Pixels that the padded crop is resized to.
        first: The first of the `out` pixels that is wanted.
        before: Pixels of padding before the crop.
        padded: Pixels of the padded crop; None where there is no padding.
    """

    start: Int[Array, "*G"] | int
    length: Int[Array, "*G"] | int
    out: Int[Array, "*G"] | int
    first: Int[Array, "*G"] | int = 0
    before: Int[Array, "*G"] | int = 0
    padded: Int[Array, "*G"] | int | None = None


def resize_weights(
    filter: Filter, axis: Axis, columns: int, rows: int
) -> Float[Array, "rows columns"]:
    """Weights that resample one axis of a crop.

    Formula: PIL's `precompute_coeffs`: the kernel, stretched by the scale when shrinking, cut off
    at the border of the (padded) crop and normalised.

    Args:
        filter: The kernel.
        axis: What is resized; its fields are numbers, not arrays of them.
        columns: Pixels of the whole axis of the canvas; at least as many as the padded crop has.
        rows: Number of output pixels wanted: `first` to `first + rows`. Those from `out` on are
            meaningless.

    Returns:
        The weights, fp32 `[rows, columns]`. What a row lacks to 1 is the weight of the padding.
    """
    full = axis.length if axis.padded is None else axis.padded
    row = jnp.arange(rows)[:, None] + axis.first

    def kernel(position: Int[Array, " columns"]) -> Float[Array, "rows columns"]:
        # The distance to the centre of the output pixel is a quotient of integers, so it is exact
        # before it rounds. Integers count from the middle, and what is far stays far, so that none
        # overflows.
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
        in_crop = (column >= 0) & (column < axis.length)
        weights = jnp.where(in_crop, kernel(column + axis.before), 0)
        total = kernel(jnp.arange(columns)).sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)  # rows past the crop have no weight at all


def resample(
    weights: Float[Array, "G O I"],
    pixels: UInt8[Array, "G I X 3"],
    fill: tuple[int, int, int] | None = None,
) -> UInt8[Array, "G X O 3"]:
    """One pass of PIL: 22-bit fixed-point weights, exact sums, rounded to 0..255.

    Args:
        weights: The weights of I pixels in each of O, of G crops.
        pixels: The crops, with the axis that is resampled first.
        fill: Colour of the padding, whose weight is what rows lack to 1; None where there is none.

    Returns:
        The pixels with their axes swapped, so that the next pass resamples the other axis.
    """
    fixed = fixed_point(weights)
    sums = weighted_sums(fixed, pixels)
    if fill is not None:
        padding = 2**PRECISION_BITS - fixed.sum(-1)
        sums += padding[..., None, None] * jnp.asarray(fill)
    return rounded(sums).swapaxes(1, 2)


def fixed_point(weights: Float[Array, "*N"]) -> Int[Array, "*N"]:
    """Weights as whole numbers of `2**-PRECISION_BITS`."""
    return jnp.round(weights * 2**PRECISION_BITS).astype(jnp.int32)


def rounded(sums: Int[Array, "*N"]) -> UInt8[Array, "*N"]:
    """Pixels, from sums of pixels times weights of `fixed_point`."""
    whole = (sums + 2 ** (PRECISION_BITS - 1)) >> PRECISION_BITS
    return jnp.clip(whole, 0, 255).astype(jnp.uint8)


def weighted_sums(
    weights: Int[Array, "G O I"], pixels: UInt8[Array, "G I X 3"]
) -> Int[Array, "G O X 3"]:
    """Exact sums of pixels times weights of `fixed_point`.

    Exactness decides ties, which a smooth gradient at half size is full of. So the weights go as
    digits whose sums with 8-bit pixels are exact in fp32: three of 8 bits, which bf16 holds, on
    accelerators; two, of 14 and 8 bits, on a CPU (512 pixels that have a weight keep the sums below
    2**24).
    """
    return jax.lax.platform_dependent(
        weights, pixels, cpu=_sums_of_two_digits, default=_sums_of_three_digits
    )


def _sums_of_two_digits(
    weights: Int[Array, "G O I"], pixels: UInt8[Array, "G I X 3"]
) -> Int[Array, "G O X 3"]:
    return _exact_sums(weights, pixels, shifts=(8, 0), dtype=jnp.float32)


def _sums_of_three_digits(
    weights: Int[Array, "G O I"], pixels: UInt8[Array, "G I X 3"]
) -> Int[Array, "G O X 3"]:
    return _exact_sums(weights, pixels, shifts=(16, 8, 0), dtype=jnp.bfloat16)


def _exact_sums(
    weights: Int[Array, "G O I"],
    pixels: UInt8[Array, "G I X 3"],
    shifts: tuple[int, ...],
    dtype: Any,
) -> Int[Array, "G O X 3"]:
    """Sums of pixels times integer weights, which are split into digits at the bits `shifts`."""
    digits, rest = [], weights
    for shift in shifts:
        digits.append((rest + 2**shift // 2) >> shift)  # balanced about 0
        rest -= digits[-1] << shift
    stacked = jnp.concatenate(digits, 1).astype(dtype)
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    with jax.named_scope(f"useful_1_of_{len(shifts)}"):  # a pass counts once, see `training.costs`
        products = dot("goi,gixc->goxc", stacked, pixels.astype(dtype))
    parts = jnp.split(products.astype(jnp.int32), len(shifts), axis=1)
    whole = jnp.zeros_like(parts[0])
    for part, shift in zip(parts, shifts, strict=True):
        whole += part << shift
    return whole


def vertical_first(
    width: Int[Array, "*G"] | int,
    height: Int[Array, "*G"] | int,
    wide: Int[Array, "*G"] | int,
    high: Int[Array, "*G"] | int,
) -> Any:
    """Whether the installed PIL runs the vertical pass of a resize before the horizontal one.

    Pillow 12.2 does for pictures over 100 times taller than wide; Pillow 13 does whenever the rows
    saved outnumber the columns saved twice. It shows, because PIL rounds between the passes.

    Args:
        width: Width before the resize.
        height: Height before the resize.
        wide: Width after the resize.
        high: Height after the resize.

    Returns:
        bool `[*G]`; one bool where all sizes are numbers that are known.
    """
    version = tuple(int(part) for part in PIL.__version__.split(".")[:2])
    if version >= (13, 0):
        return (height > high) & (height - high > 2 * (width - wide))
    return (height > high) & (height > 100 * width) & (version >= (12, 2))
