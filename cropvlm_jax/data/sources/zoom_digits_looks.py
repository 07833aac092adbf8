# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scenes of handwritten digits that need another number of looks than one.

`zoom_digits` needs one crop for every question. Here are three sets that do not:

- `zoom_digits_mixed`: half of the scenes have a frame so large that its digit is read without a
  crop, and are asked about it.
- `zoom_digits_pairs`: a question is about the digits of two frames that lie far apart. Each is read
  in a crop of its own. A crop that holds both shows neither.
- `zoom_digits_deep`: frames are so small that the whole picture shows their neighbourhoods only.
  Only a crop of a neighbourhood shows where in it a frame is, and its digit takes a second crop.

Frames, digits and splits are those of `zoom_digits`. A scene is a pure function of
`(seed, split, index)`. `experiments/look/legibility.py` measures what each set claims.
"""

import abc
import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cropvlm_jax.data.source import Box
from cropvlm_jax.data.sources.digit_drawing import (
    COLORS,
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
from cropvlm_jax.data.sources.zoom_digits import QUESTIONS

# The digit itself is the answer, not its frame's colour: a guess from one of the two is wrong more
# often.
LARGER = (
    "Which is larger, the digit in the {first} or in the {second} frame?",
    "Which digit is larger, the one in the {first} or in the {second} frame?",
)
SUMS = (
    "What is the sum of the digits in the {first} and the {second} frame?",
    "Add up the digits in the {first} and the {second} frame.",
)


class Asked(NamedTuple):
    """A question about a scene.

    Attributes:
        question: The question.
        answer: Its only right answer.
        boxes: Percent boxes of the frames to look at, in the lexicographic order of
            (x1, y1, x2, y2); none where the whole picture is enough.
        box: What a single crop must show: the frame asked about, or the hull of both.
        around: Percent box of the frame's neighbourhood, which has its colour; None where frames
            are seen in the whole picture.
    """

    question: str
    answer: str
    boxes: tuple[Box, ...]
    box: Box
    around: Box | None = None


Scene = tuple[np.ndarray, list[Asked]]
Corner = tuple[int, int, int]  # left, top and side of a square, in pixels


@dataclasses.dataclass(frozen=True)
class LookScenes(abc.ABC):
    """A Grain random-access source of drawn scenes.

    Attributes:
        split: "train", "validation" or "test", which share no digit image.
        num_scenes: The number of scenes.
        seed: The seed of the scenes.
        name: The name of the set.
        size: Height and width of its pictures, in pixels.
        stream: A number that no other set has: sets of one seed are drawn apart.
    """

    split: str
    num_scenes: int
    seed: int = 0

    name: ClassVar[str]
    size: ClassVar[tuple[int, int]]
    stream: ClassVar[int]

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"Unknown split {self.split!r}: use one of {', '.join(SPLITS)}.")
        if self.num_scenes < 1 or self.seed < 0:
            raise ValueError(
                f"num_scenes must be >= 1 and seed >= 0, got {self.num_scenes} and {self.seed}."
            )

    def __len__(self) -> int:
        return self.num_scenes

    @property
    def fingerprint(self) -> str:
        """A text that other scenes would not have."""
        return repr(self)

    def name_of(self, index: int) -> str:
        """The scene's example_id."""
        return f"{self.name}/{self.split}/{self.seed}/{operator.index(index)}"

    def picture_size(self, index: int) -> tuple[int, int]:
        """Height and width of every scene's picture."""
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Draws scene `index` and asks its first question.

        Returns:
            `image` uint8 `[H, W, 3]`; `question`; `answers`, a list of one string; `boxes`, a list,
            `box` and `around` as `Asked` has them, the last one where there is one; `example_id`.
        """
        image, questions = self.scene(index)
        asked = questions[0]
        example = {
            "image": image,
            "question": asked.question,
            "answers": [asked.answer],
            "boxes": list(asked.boxes),
            "box": asked.box,
            "example_id": self.name_of(index),
        }
        return example if asked.around is None else {**example, "around": asked.around}

    def scene(self, index: int) -> Scene:
        """Draws scene `index`.

        Returns:
            The picture uint8 `[H, W, 3]`, and its questions.

        Raises:
            IndexError: There is no such scene.
        """
        index = operator.index(index)
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"Scene {index} is outside of 0..{self.num_scenes - 1} of {self!r}.")
        stream = [self.seed, SPLITS.index(self.split), index, self.stream]
        return self._draw(np.random.default_rng(stream))

    @abc.abstractmethod
    def _draw(self, rng: np.random.Generator) -> Scene:
        """A scene, of which the first question is as random as any."""


class MixedScenes(LookScenes):
    """`zoom_digits_mixed`: half of the scenes have one large frame, and are asked about it alone.

    Its side is two thirds to three quarters of the picture's, so that a crop hardly shows more.
    The others have four small frames. No small frame is asked about beside a large one: a reader
    that cannot look for a colour would take the large digit for the small one's.
    """

    name = "zoom_digits_mixed"
    size = (512, 512)
    stream = 1

    def _draw(self, rng: np.random.Generator) -> Scene:
        images, labels = split_digits(self.split)
        canvas = background(rng, self.size)
        colors = rng.permutation(list(COLORS))[:4]
        chosen = rng.integers(len(images), size=4)
        pictures = [
            framed(rng, images[digit], COLORS[color])
            for color, digit in zip(colors, chosen, strict=True)
        ]
        large = rng.random() < 0.5
        if large:
            pictures[0] = resized(pictures[0], round(rng.uniform(340, 390)))
        corners: list[Corner] = []
        for picture in pictures:
            left, top = place(rng, len(picture), corners, self.size)
            put(canvas, picture, left, top)
            corners.append((left, top, len(picture)))
        add_grain(rng, canvas)
        questions = []
        for color, digit, corner in zip(colors, chosen, corners, strict=True):
            box = percent_box(corner, self.size)
            question = QUESTIONS[rng.integers(len(QUESTIONS))].format(color=color)
            questions.append(Asked(question, str(labels[digit]), () if large else (box,), box))
        return canvas, questions[:1] if large else questions


class PairScenes(LookScenes):
    """`zoom_digits_pairs`: two frames far apart, two others, and questions about the first two.

    The two digits are different ones, so that one of them is the larger. After the two questions
    about both digits, a scene has one about each single digit, for lessons easier than the task.
    """

    name = "zoom_digits_pairs"
    size = (512, 512)
    stream = 2
    far = 260  # pixels between the two frames' corners, in both directions

    def _draw(self, rng: np.random.Generator) -> Scene:
        images, labels = split_digits(self.split)
        canvas = background(rng, self.size)
        colors = rng.permutation(list(COLORS))[:4].tolist()
        chosen = rng.integers(len(images), size=4)
        while labels[chosen[1]] == labels[chosen[0]]:
            chosen[1] = rng.integers(len(images))
        pictures = [
            framed(rng, images[digit], COLORS[color])
            for color, digit in zip(colors, chosen, strict=True)
        ]
        corners = self._corners(rng, [len(picture) for picture in pictures])
        for picture, (left, top, _) in zip(pictures, corners, strict=True):
            put(canvas, picture, left, top)
        add_grain(rng, canvas)
        boxes = [percent_box(corner, self.size) for corner in corners]
        numbers = [int(label) for label in labels[chosen]]
        questions = self._about_both(rng, colors[:2], numbers[:2], boxes[:2])
        for color, number, box in zip(colors, numbers, boxes, strict=True):
            question = QUESTIONS[rng.integers(len(QUESTIONS))].format(color=color)
            questions.append(Asked(question, str(number), (box,), box))
        return canvas, questions

    def _corners(self, rng: np.random.Generator, sides: Sequence[int]) -> list[Corner]:
        """(left, top, side) of frames, the first two far apart."""
        while True:
            corners: list[Corner] = []
            for side in sides[:2]:
                left, top = place(rng, side, corners, self.size)
                corners.append((left, top, side))
            (left, top, _), (other_left, other_top, _) = corners
            if min(abs(left - other_left), abs(top - other_top)) >= self.far:
                break
        for side in sides[2:]:
            left, top = place(rng, side, corners, self.size)
            corners.append((left, top, side))
        return corners

    @staticmethod
    def _about_both(
        rng: np.random.Generator,
        colors: Sequence[str],
        numbers: Sequence[int],
        boxes: Sequence[Box],
    ) -> list[Asked]:
        """The two questions about two digits, in random order."""
        (x1, y1), (x2, y2) = np.min(boxes, 0)[:2].tolist(), np.max(boxes, 0)[2:].tolist()
        questions = [
            Asked(
                templates[rng.integers(len(templates))].format(first=colors[0], second=colors[1]),
                str(answer),
                tuple(sorted(boxes)),
                (x1, y1, x2, y2),
            )
            for templates, answer in ((LARGER, max(numbers)), (SUMS, sum(numbers)))
        ]
        return questions if rng.random() < 0.5 else questions[::-1]


class DeepScenes(LookScenes):
    """`zoom_digits_deep`: four neighbourhoods, each a coloured ring around three tiny frames.

    One of the three has the colour of the ring, and is the one to ask about. The other two have
    other colours.
    """

    name = "zoom_digits_deep"
    size = (896, 896)
    stream = 3
    frames = 3  # of a neighbourhood

    def _draw(self, rng: np.random.Generator) -> Scene:
        canvas = background(rng, self.size)
        colors = rng.permutation(list(COLORS))[:4]
        corners: list[Corner] = []
        found = []
        for color in colors:
            picture, frame, label = self._neighbourhood(rng, color)
            left, top = place(rng, len(picture), corners, self.size)
            put(canvas, picture, left, top)
            corners.append((left, top, len(picture)))
            found.append(((left + frame[0], top + frame[1], frame[2]), label))
        add_grain(rng, canvas)
        questions = []
        for color, corner, (frame, label) in zip(colors, corners, found, strict=True):
            box, around = percent_box(frame, self.size), percent_box(corner, self.size)
            question = QUESTIONS[rng.integers(len(QUESTIONS))].format(color=color)
            questions.append(Asked(question, str(label), (box,), box, around))
        return canvas, questions

    def _neighbourhood(
        self, rng: np.random.Generator, color: str
    ) -> tuple[np.ndarray, Corner, int]:
        """A neighbourhood `[S, S, 3]`, (left, top, side) of its frame to ask about, its digit."""
        images, labels = split_digits(self.split)
        side, ring = int(rng.integers(96, 105)), int(rng.integers(9, 11))
        picture = np.empty((side, side, 3), np.uint8)
        picture[:] = np.clip(np.add(COLORS[color], rng.integers(-12, 13, 3)), 0, 240)
        inside = picture[ring:-ring, ring:-ring]
        inside[:] = rng.integers(150, 190) - rng.integers(0, 8, 3)
        others = rng.permutation([name for name in COLORS if name != color])
        chosen = rng.integers(len(images), size=self.frames)
        corners: list[Corner] = []
        for shade, digit in zip((color, *others), chosen, strict=False):
            frame = framed(rng, images[digit], COLORS[shade])
            frame = resized(frame, int(rng.integers(15, 18)))
            left, top = place(rng, len(frame), corners, (len(inside),) * 2, gap=2)
            put(inside, frame, left, top)
            corners.append((left, top, len(frame)))
        left, top, small = corners[0]
        return picture, (ring + left, ring + top, small), int(labels[chosen[0]])
