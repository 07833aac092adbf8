# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""zoom_digits, the embedded dataset: real handwritten digits too small to read until zoomed in.

A scene is a greyish canvas with a few framed handwritten digits (the 1797 8x8 images of
scikit-learn's `load_digits`, each frame in its own colour) and a question about one of them. Seen
whole at a model's input size the frame's colour survives and the digit does not; in a crop of the
original pixels both do. Nothing is stored or downloaded: a scene is computed from its index.
"""

import math
import operator
from typing import Any

import numpy as np

from cropvlm_jax.data.source import Box
from cropvlm_jax.data.sources.digit_drawing import (
    COLORS,
    GAP,
    MAX_SIDE,
    SPLITS,
    add_grain,
    background,
    framed,
    percent_box,
    place,
    put,
    resized,
    split_digits,
)

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
        side = math.ceil(MAX_SIDE * enlarge[1])
        # Each frame keeps another's corner out of a square twice as wide.
        kept_out = (digits[1] - 1) * (2 * (side + GAP)) ** 2
        room = max(min(size) - side - 2 * GAP, 0) ** 2
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
        images, labels = split_digits(self.split)

        count = int(rng.integers(self.digits[0], self.digits[1] + 1))
        colors = rng.permutation(list(COLORS))[:count]
        chosen = rng.integers(len(images), size=count)
        canvas = background(rng, self.size)
        corners: list[tuple[int, int, int]] = []  # (left, top, side) of each frame
        for color, digit in zip(colors, chosen, strict=True):
            picture = framed(rng, images[digit], COLORS[color])
            if self.enlarge[1] > 1:
                least, most = self.enlarge
                picture = resized(picture, round(len(picture) * rng.uniform(least, most)))
            side = len(picture)
            left, top = place(rng, side, corners, self.size)
            put(canvas, picture, left, top)
            corners.append((left, top, side))
        add_grain(rng, canvas)

        questions = []
        for color, digit, corner in zip(colors, chosen, corners, strict=True):
            box = percent_box(corner, self.size)
            question = QUESTIONS[rng.integers(len(QUESTIONS))].format(color=color)
            questions.append((question, str(labels[digit]), box))
        return canvas, questions
