# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM's tiles and crops as accelerators cut them, against PIL."""

import functools

import jax
import numpy as np
import pytest
from made_pictures import make_picture, on_canvas

from cropvlm_jax import geometry
from cropvlm_jax.pixels import host, resampling, tile_crops, tiles
from cropvlm_jax.pixels.plans import PlannedTiles, count_images

SIDE = 32
KINDS = ("noise", "smooth", "extremes", "gradient")


def check_equal(ours, theirs, where):
    """The bound that crops have: rarely a level, hardly ever two."""
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 2, f"{where}: {difference.max()}"
    assert (difference > 0).mean() <= 1e-2 and (difference > 1).mean() <= 1e-3, where


@pytest.mark.parametrize(
    ("edge", "split", "canvas_shape", "shapes"),
    [
        (32, True, (140, 180), [(140, 180), (17, 9), (1, 180), (140, 1), (1, 1), (46, 139)]),
        (128, True, (390, 270), [(390, 250), (17, 11), (101, 71), (140, 90), (4, 3)]),  # 4 x 3
        (128, True, (60, 180), [(1, 180), (12, 77), (45, 180)]),  # 1 x 4
        (64, False, (300, 200), [(300, 200), (300, 2), (17, 9)]),  # one tile of a larger picture
    ],
)
def test_tiles_equal_those_of_the_host(edge, split, canvas_shape, shapes):
    rng = np.random.default_rng(edge + sum(canvas_shape))
    pictures = [make_picture(rng, KINDS[i % 4], *shape) for i, shape in enumerate(shapes)]
    plans = [PlannedTiles.of(*shape, SIDE, edge, split) for shape in shapes]
    planned = PlannedTiles(*(np.stack(field) for field in zip(*plans, strict=True)))
    canvas = np.stack([on_canvas(rng, picture, *canvas_shape) for picture in pictures])
    cut = jax.jit(functools.partial(tiles.cut_tiles, side=SIDE, longest_edge=edge, split=split))
    got = np.asarray(cut(canvas, np.array(shapes, np.int32), planned))
    assert got.dtype == np.uint8 and got.shape[1] == planned.images == count_images(got)
    for picture, ours in zip(pictures, got, strict=True):
        theirs, grid = host.tile(picture, SIDE, edge, split)
        assert grid in ((0, 0), planned.cells.shape[1:])
        check_equal(ours, theirs, f"{picture.shape} at {edge}")


def test_plans_have_the_grids_of_the_host():
    rng = np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(0, np.log(4096), (300, 2))).astype(int).tolist():
        for edge in (512, 1024, 1600, 2048):
            plan = PlannedTiles.of(height, width, 512, edge)
            rows, columns = host.grid(height, width, 512, edge)
            assert plan.cells.shape == (max(rows, 1), max(columns, 1))
            assert plan.images == rows * columns + 1
            assert tuple(plan.resized) == host.resized(height, width, edge)
            bounds = tiles._bounds(plan.cells.shape, 4096, 512, edge, True)
            assert (plan.resized <= np.array(bounds.between)).all(), (height, width, edge)


@pytest.mark.parametrize("canvas_shape", [(330, 300), (40, 700)])
def test_crops_by_windows_equal_those_of_the_host(canvas_shape):
    rng = np.random.default_rng(0)
    shapes = [canvas_shape, (17, 9), (canvas_shape[0], 3), (1, canvas_shape[1])]
    sides = [np.sort(rng.choice(101, 2, replace=False)) for _ in range(2 * 10 * len(shapes))]
    boxes = np.array(sides, np.int32).reshape(len(shapes), 10, 2, 2).swapaxes(2, 3)
    boxes = boxes.reshape(len(shapes), 10, 4)
    boxes[:, :3] = [geometry.FULL, (0, 0, 1, 100), (7, 50, 93, 51)]
    pictures = [make_picture(rng, kind, *shape) for kind, shape in zip(KINDS, shapes, strict=True)]
    canvas = np.stack([on_canvas(rng, picture, *canvas_shape) for picture in pictures])
    cut = jax.jit(functools.partial(tile_crops.crops_by_windows, side=SIDE))
    got = np.asarray(cut(canvas, np.array(shapes, np.int32), boxes))
    for picture, ours, of_picture in zip(pictures, got, boxes, strict=True):
        for crop, box in zip(ours, of_picture, strict=True):
            theirs, _ = host.tile(host.cut(picture, box), SIDE, SIDE)
            check_equal(crop, theirs[0], f"{picture.shape} {box}")


def test_sums_are_exact_whatever_the_digits():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 90, 5, 3), np.uint8)
    weights = rng.integers(-(2**20), 2**22, (2, 7, 90)).astype(np.int32)
    weights[:, :, 48:] = 0  # so many pixels have a weight at an eighth of the size
    weights[:, :, :48] //= 16  # so that sums are below 2**31, as those of real weights
    want = np.einsum("goi,gixc->goxc", weights.astype(np.int64), pixels.astype(np.int64))
    for sums in (resampling._sums_of_two_digits, resampling._sums_of_three_digits):
        np.testing.assert_array_equal(jax.jit(sums)(weights, pixels), want)
