# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM's tiles cut out of canvases under jit, as `pixels.host.tile` cuts them with PIL.

Shape letters: B pictures, Hc Wc canvas, r rows and c columns of N tiles of S px.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.plans import PlannedTiles
from cropvlm_jax.pixels.resampling import LANCZOS, Axis, vertical_first
from cropvlm_jax.pixels.windows import resize


class Bounds(NamedTuple):
    """What is known of both resizes of SmolVLM's processor before any picture is.

    Attributes:
        between: The most rows and columns after the first resize.
        shape: Rows and columns after the second one.
        first: By how much the first one shrinks a picture's longer edge, at most.
        second: The same of the second one.
    """

    between: tuple[int, int]
    shape: tuple[int, int]
    first: float
    second: float = 1.0


def cut_tiles(
    canvas: UInt8[Array, "B Hc Wc 3"],
    size: Int[Array, "B 2"],
    planned: PlannedTiles,
    side: int,
    longest_edge: int,
    split: bool = True,
) -> UInt8[Array, "B N side side 3"]:
    """The tiles of pictures, one picture after the other.

    Args:
        canvas: The original pixels, padded at the bottom and right.
        size: Heights and widths of the pictures inside their canvases.
        planned: What `PlannedTiles.of` makes of these sizes, with the same settings.
        side: S, pixels of a side of a tile.
        longest_edge: The longest edge that pictures are resized to.
        split: Whether they are split into tiles.
    """
    rows, columns = planned.cells.shape[1:]
    bounds = _bounds((rows, columns), max(canvas.shape[1:3]), side, longest_edge, split)

    def of_picture(picture: tuple[Array, Array, Array]) -> Array:
        canvas, (height, width), (high, wide) = picture
        fitted = fit(canvas, Axis(0, height, high), Axis(0, width, wide), bounds)
        tiles = fitted.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        tiles = tiles.reshape(-1, side, side, 3)
        if rows * columns == 1:
            return tiles
        down, across = Axis(0, rows * side, side), Axis(0, columns * side, side)
        whole = _lanczos(fitted, down, across, (side, side), max(rows, columns))
        return jnp.concatenate([tiles, whole[None]])

    return jax.lax.map(of_picture, (canvas, size, planned.resized))


def fit(
    canvas: UInt8[Array, "Hc Wc 3"], down: Axis, across: Axis, bounds: Bounds
) -> UInt8[Array, "rows columns 3"]:
    """Both resizes of SmolVLM's processor: the aspect kept, and from there to whole tiles.

    Args:
        canvas: The original pixels.
        down: The first resize of the rows of what is fitted.
        across: The first resize of its columns.
        bounds: Of both resizes.
    """
    once = _lanczos(canvas, down, across, bounds.between, bounds.first)
    down, across = Axis(0, down.out, bounds.shape[0]), Axis(0, across.out, bounds.shape[1])
    return _lanczos(once, down, across, bounds.shape, bounds.second)


def _bounds(
    grid: tuple[int, int], canvas: int, side: int, longest_edge: int, split: bool
) -> Bounds:
    """The bounds of pictures of a grid, in canvases of a longer side of `canvas` px."""
    longest = min(longest_edge, host.MAX_EDGE)
    # Edges are truncated to even numbers, but for those of pictures that are over the maximum.
    most = longest + (longest % 2 or longest < longest_edge)
    rows, columns = (min(side * tiles + side % 2, most) if split else most for tiles in grid)
    shape = side * grid[0], side * grid[1]
    return Bounds((rows, columns), shape, canvas / longest, 1.0 if split else most / side)


def _lanczos(
    pixels: UInt8[Array, "H W 3"],
    down: Axis,
    across: Axis,
    shape: tuple[int, int],
    shrinks: float,
) -> UInt8[Array, "rows columns 3"]:
    """One resize with PIL's Lanczos filter; see `windows.resize`."""
    rows_first = shrinks > 1 and vertical_first(across.length, down.length, across.out, down.out)
    return resize(LANCZOS, pixels, down, across, shape, shrinks, rows_first)
