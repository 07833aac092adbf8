# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""zoom_digits, the embedded dataset: real handwritten digits too small to read until zoomed in.

A scene is a greyish canvas with a few framed handwritten digits (the 1797 8x8 images of
scikit-learn's `load_digits`, each frame in its own colour) and a question about one of them. Seen
whole at a model's input size the frame's colour survives and the digit does not; in a crop of the
original pixels both do. Nothing is stored or downloaded: a scene is computed from its index.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

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

QUESTIONS = (
    "What digit is in the {color} frame?",
    "Which digit is inside the {color} frame?",
    "Which number is written inside the {color} box?",
    "What number does the {color} frame show?",
    "What is the digit in the {color} square?",
    "Read the number in the {color} box.",
    "Can you tell which digit the {color} frame contains?",
    "What is written in the {color} frame?",
)

_MIN_SIZE = 512
_MAX_SIDE = 46  # of a frame, in pixels
_GAP = 4  # pixels of canvas kept around each frame
_GRAIN = 15  # the canvas is drawn in [0, 255 - _GRAIN] so that grain can be added without clipping


class ZoomDigits:
    """A Grain random-access source; scene `i` is a pure function of `(seed, split, i)`.

    The splits are disjoint in digit images, so no handwriting of a test scene is in a train scene.

    Attributes:
        split: "train", "validation" or "test".
        num_scenes: The number of scenes.
        seed: The seed of the scenes (the split of the digit images does not depend on it).
        digits: The least and the most framed digits of a scene, both inclusive.
        size: Canvas height and width in pixels; frames keep their pixel size on a larger canvas.
        enlarge: The least and the most that frames are enlarged, for lessons easier than the task.
    """

    def __init__(
        self,
        split: str,
        num_scenes: int,
        seed: int = 0,
        digits: tuple[int, int] = (4, 4),
        size: tuple[int, int] = (512, 512),
        enlarge: tuple[float, float] = (1.0, 1.0),
    ):
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
        if num_scenes < 1 or seed < 0:
            raise ValueError(f"num_scenes must be >= 1 and seed >= 0, got {num_scenes} and {seed}.")
        if not 1 <= digits[0] <= digits[1] <= len(COLORS):
            raise ValueError(
                f"digits must be (least, most) within 1..{len(COLORS)}, the number of frame "
                f"colours, got {digits}."
            )
        if min(size) < _MIN_SIZE:
            raise ValueError(f"size (height, width) must be at least {_MIN_SIZE} px, got {size}.")
        side = math.ceil(_MAX_SIDE * enlarge[1])
        # Each frame keeps another's corner out of a square twice as wide.
        kept_out = (digits[1] - 1) * (2 * (side + _GAP)) ** 2
        room = max(min(size) - side - 2 * _GAP, 0) ** 2
        if not 1 <= enlarge[0] <= enlarge[1] or kept_out >= room:
            raise ValueError(
                f"enlarge must be (least, most), from 1 to what leaves room for {digits[1]} "
                f"frames on a {size[0]}x{size[1]} px canvas, got {enlarge}."
            )
        self.split, self.num_scenes, self.seed = split, num_scenes, seed
        self.digits, self.size, self.enlarge = tuple(digits), (size[0], size[1]), tuple(enlarge)

    def __len__(self) -> int:
        return self.num_scenes

    def __repr__(self) -> str:
        return (
            f"ZoomDigits(split={self.split!r}, num_scenes={self.num_scenes}, seed={self.seed}, "
            f"digits={self.digits}, size={self.size}, enlarge={self.enlarge})"
        )

    @property
    def fingerprint(self) -> str:
        """A text that other scenes would not have."""
        return repr(self)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Draws scene `index` and asks about one of its digits.

        Returns:
            `image` uint8 `[H, W, 3]`; `question`; `answers`, a list of one string; `box`, the tight
            percent box `(x1, y1, x2, y2)` of the frame asked about; `example_id`.
        """
        image, questions = self.scene(index)
        # Frames are drawn in random order and colours, so the first one is as random as any.
        question, answer, box = questions[0]
        return {
            "image": image,
            "question": question,
            "answers": [answer],
            "box": box,
            "example_id": self.name_of(index),
        }

    def name_of(self, index: int) -> str:
        """The scene's example_id."""
        return f"zoom_digits/{self.split}/{self.seed}/{operator.index(index)}"

    def picture_size(self, index: int) -> tuple[int, int]:
        """Height and width of every scene's picture."""
        return self.size

    def scene(self, index: int) -> tuple[np.ndarray, list[tuple[str, str, Box]]]:
        """Draws scene `index` and asks about each of its digits.

        Returns:
            The picture uint8 `[H, W, 3]`, and a (question, answer, box) for every digit.
        """
        index = operator.index(index)
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"Scene {index} is outside of 0..{self.num_scenes - 1} of {self!r}.")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        images, labels = _split_digits(self.split)
        height, width = self.size

        count = int(rng.integers(self.digits[0], self.digits[1] + 1))
        colors = rng.permutation(list(COLORS))[:count]
        chosen = rng.integers(len(images), size=count)
        canvas = _background(rng, height, width)
        corners: list[tuple[int, int, int]] = []  # (left, top, side) of each frame
        for color, digit in zip(colors, chosen, strict=True):
            picture = _framed(rng, images[digit], COLORS[color])
            if self.enlarge[1] > 1:
                least, most = self.enlarge
                side = round(len(picture) * rng.uniform(least, most))
                larger = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
                picture = np.asarray(larger)
            side = len(picture)
            left, top = _place(rng, side, corners, height, width)
            canvas[top : top + side, left : left + side] = picture
            corners.append((left, top, side))
        # The grain goes over everything, so that frames look like part of the picture.
        grain = np.frombuffer(rng.bytes(64 * width * 3), np.uint8).reshape(64, width, 3) & _GRAIN
        for top in range(0, height, 64):
            canvas[top : top + 64] += grain[: height - top]

        questions = []
        for color, digit, (left, top, side) in zip(colors, chosen, corners, strict=True):
            box = (
                math.floor(100 * left / width),
                math.floor(100 * top / height),
                math.ceil(100 * (left + side) / width),
                math.ceil(100 * (top + side) / height),
            )
            question = QUESTIONS[rng.integers(len(QUESTIONS))].format(color=color)
            questions.append((question, str(labels[digit]), box))
        return canvas, questions


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
def _split_digits(split: str) -> tuple[list[Image.Image], np.ndarray]:
    """The ink of each digit image of a split as 8x8 grey-level pictures, and their labels `[N]`."""
    images, labels = _load_digits()
    indices = digit_indices(split)
    inks = np.round(images[indices] * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(ink) for ink in inks], labels[indices]


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A greyish canvas of two scales of smooth noise with a few faint marks, `[H, W, 3]`."""
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


def _framed(rng: np.random.Generator, ink: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """A dark digit on a light plate in a coloured ring, `[S, S, 3]` with S in 38..46."""
    size, ring = int(rng.integers(20, 27)), int(rng.integers(5, 8))
    side = int(rng.integers(max(38, size + 2 * ring + 4), _MAX_SIDE + 1))
    limit = 255 - _GRAIN
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


def _place(
    rng: np.random.Generator,
    side: int,
    others: list[tuple[int, int, int]],
    height: int,
    width: int,
) -> tuple[int, int]:
    """A random left and top for a square clear of the others (there is always ample room)."""
    while True:
        left = int(rng.integers(_GAP, width - side - _GAP))
        top = int(rng.integers(_GAP, height - side - _GAP))
        if all(
            left > x + s + _GAP or x > left + side + _GAP or
            top > y + s + _GAP or y > top + side + _GAP
            for x, y, s in others
        ):  # fmt: skip
            return left, top
