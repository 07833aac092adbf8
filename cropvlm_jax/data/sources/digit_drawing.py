# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What scenes of zoom_digits are drawn of: digits, frames, canvases, grain.

The digits are the 1797 8x8 images of scikit-learn's `load_digits`, real handwriting. The splits are
disjoint in these images.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from cropvlm_jax import geometry
from cropvlm_jax.data.source import Box

SPLITS = ("train", "validation", "test")
_SPLIT_ENDS = (0.60, 0.75, 1.0)

COLORS = {
    "red": (215, 22, 30),
    "green": (25, 150, 45),
    "blue": (30, 65, 215),
    "yellow": (225, 205, 15),
    "purple": (120, 35, 165),
    "orange": (228, 118, 10),
    "pink": (228, 105, 175),
    "cyan": (15, 195, 210),
}

MAX_SIDE = 46  # of a frame, in pixels
GAP = 4  # pixels of canvas kept around each frame
GRAIN = 15  # the canvas is drawn in [0, 255 - GRAIN] so that grain can be added without clipping


def percent_box(square: tuple[int, int, int], size: tuple[int, int]) -> Box:
    """The tight percent box of a square on a canvas.

    Args:
        square: Left, top and side in pixels.
        size: Height and width of the canvas.
    """
    left, top, side = square
    pixels = np.array([left, top, left + side, top + side])
    x1, y1, x2, y2 = geometry.from_pixels(pixels, np.array(size)).tolist()
    return x1, y1, x2, y2


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """A square picture `[S, S, 3]`, larger or smaller."""
    square = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square)


def put(canvas: np.ndarray, picture: np.ndarray, left: int, top: int) -> None:
    """Puts a picture `[h, w, 3]` on a canvas `[H, W, 3]`, in place."""
    canvas[top : top + len(picture), left : left + picture.shape[1]] = picture


def add_grain(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Lays grain over a whole canvas in place, so that frames look like part of the picture."""
    height, width = canvas.shape[:2]
    grain = np.frombuffer(rng.bytes(64 * width * 3), np.uint8).reshape(64, width, 3) & GRAIN
    for top in range(0, height, 64):
        canvas[top : top + 64] += grain[: height - top]


def digit_indices(split: str) -> np.ndarray:
    """Indices into `load_digits` of the digit images of a split, stratified by class, `[N]`."""
    labels = _load_digits()[1]
    order = np.random.default_rng(0).permutation(len(labels))
    ends = (0.0, *_SPLIT_ENDS)
    first, last = ends[SPLITS.index(split)], ends[SPLITS.index(split) + 1]
    by_class = [order[labels[order] == label] for label in range(10)]
    return np.concatenate([c[round(first * len(c)) : round(last * len(c))] for c in by_class])


@functools.cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # importing it takes a second: only when needed

    dataset = load_digits()
    return dataset.images, dataset.target


@functools.cache
def split_digits(split: str) -> tuple[list[Image.Image], np.ndarray]:
    """The ink of each digit image of a split as 8x8 grey-level pictures, and their labels `[N]`."""
    images, labels = _load_digits()
    indices = digit_indices(split)
    inks = np.round(images[indices] * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(ink) for ink in inks], labels[indices]


def background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A greyish canvas of two scales of smooth noise with a few faint marks, `[H, W, 3]`."""
    height, width = size
    tone = rng.uniform(95, 165) * rng.uniform([1.0, 0.94, 0.84], [1.04, 1.0, 1.0])
    noise = rng.normal(0, 16, (6, 6, 1)) + rng.normal(0, 2.5, (6, 6, 3))
    coarse = Image.fromarray(np.clip(tone + noise, 40, 215).astype(np.uint8))
    fine = np.asarray(coarse.resize((40, 40), Image.Resampling.BICUBIC), np.float32)
    fine = np.clip(fine + rng.normal(0, 9, (40, 40, 1)), 30, 225).astype(np.uint8)
    # Smooth noise at half resolution is as good under the grain, and costs a third.
    half = Image.fromarray(fine).resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    picture = half.resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for mark in rng.integers(4, size=rng.integers(8, 15)):
        x, y = int(rng.integers(-20, width)), int(rng.integers(-20, height))
        w, h = (int(v) for v in rng.integers(14, 110, 2))
        shade = tuple(int(v) for v in rng.integers(60, 205) + rng.integers(-7, 8, 3))
        box = (x, y, x + w, y + h)
        _MARKS[mark](draw, box, shade)
    return np.asarray(picture).copy()


_MARKS: tuple[Callable[[ImageDraw.ImageDraw, tuple, tuple], None], ...] = (
    lambda draw, box, shade: draw.line(box, fill=shade, width=3),
    lambda draw, box, shade: draw.ellipse(box, outline=shade, width=3),
    lambda draw, box, shade: draw.rectangle(box, outline=shade, width=4),
    lambda draw, box, shade: draw.arc(box, 20, 230, fill=shade, width=4),
)


def framed(rng: np.random.Generator, ink: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """A dark digit on a light plate in a coloured ring, `[S, S, 3]` with S in 38..46."""
    size, ring = int(rng.integers(20, 27)), int(rng.integers(5, 8))
    side = int(rng.integers(max(38, size + 2 * ring + 4), MAX_SIDE + 1))
    limit = 255 - GRAIN
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = np.clip(np.add(color, rng.integers(-12, 13, 3)), 0, limit)
    plate = rng.integers(215, limit, endpoint=True) - rng.integers(0, 8, 3)
    picture[ring:-ring, ring:-ring] = plate
    strokes = ink.resize((size, size), Image.Resampling.BICUBIC)
    # Steeper edges than the smooth enlargement's: pen strokes, not fog.
    alpha = np.clip(np.asarray(strokes, np.float32)[..., None] / 180 - 0.15, 0, 1)
    start = (side - size) // 2
    area = picture[start : start + size, start : start + size]
    area[:] = area + alpha * (rng.integers(15, 55, 3) - plate)
    return picture


def place(
    rng: np.random.Generator,
    side: int,
    others: Sequence[tuple[int, int, int]],
    size: tuple[int, int],
    gap: int = GAP,
) -> tuple[int, int]:
    """A random left and top for a square that keeps clear of the others and of the edges.

    Args:
        rng: What is drawn from.
        side: Of the square, in pixels.
        others: (left, top, side) of squares that are there. They must leave room.
        size: Height and width of the canvas.
        gap: Pixels kept clear around each square.
    """
    height, width = size
    while True:
        left = int(rng.integers(gap, width - side - gap))
        top = int(rng.integers(gap, height - side - gap))
        if all(
            left > x + s + gap or x > left + side + gap or
            top > y + s + gap or y > top + side + gap
            for x, y, s in others
        ):  # fmt: skip
            return left, top
