# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Lessons of the start weights for scenes that need none, one or several looks.

The reader is shown up to three crops beside the picture and learns single digits, the larger of two
and their sum. In a part of the lessons crops are missing, too large, out of place or of other
frames, so that it says what it sees and no more. The cropper imitates *noisy* boxes in *noisy*
numbers: a part of its replies names too few boxes or too many, and where no crop is needed, a part
names one. What pays is left to GRPO.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from digit_lessons import misplaced, noisy_box, supervised_batch

from cropvlm_jax import geometry
from cropvlm_jax.data import batching, sources
from cropvlm_jax.data.source import Box
from cropvlm_jax.data.sources.zoom_digits_looks import Asked, Scene
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.pixels import host

SIDE = 64  # pixels of what the models see
CROPS = 3  # that the reader is shown at most
ANSWER_PROMPT, ANSWER_REPLY = 113, 5  # tokens, of the longest question with all crops
CROP_PROMPT, BOX_REPLY = 64, 37  # tokens, of the longest question and of two boxes
# Scenes of a batch, and questions of each: 64 conversations.
SCENES = {"zoom_digits_pairs": (12, 3), "zoom_digits_mixed": (14, 1), "zoom_digits_deep": (7, 2)}


@dataclasses.dataclass(frozen=True)
class Course:
    """Lessons of one kind.

    Attributes:
        steps: How many.
        learning_rate: The highest one.
        expansion: The least and the most area of a box, in areas of the true one; log-uniform.
        jitter: How far boxes move, in their sides.
        wrong: Share of the boxes that are at a random place.
        fewer: Share of the conversations with too few boxes.
        more: Share of the conversations with too many.
        none: Share of the conversations without a crop, beside the questions that need none.
        scenes: By set, the scenes of a batch, and how many of the first questions of each. None
            takes `SCENES`, and of each scene the first question and others at random.
    """

    steps: int
    learning_rate: float
    expansion: tuple[float, float]
    jitter: float
    wrong: float
    fewer: float
    more: float
    none: float = 0.0
    scenes: Mapping[str, tuple[int, int]] | None = None


# The first two questions of a scene of pairs are about two frames.
PAIRS = {"zoom_digits_pairs": (32, 2)}
UNSURE = {"zoom_digits_pairs": (12, 2), "zoom_digits_mixed": (26, 1), "zoom_digits_deep": (7, 2)}
# The bundled models took these courses when large frames of `zoom_digits_mixed` were 41 to 58% of
# the picture's side; the reader its first three when small frames beside a large one were asked
# about.
READER: tuple[Course, ...] = (
    Course(1000, 1.5e-3, (1.0, 3.0), jitter=0.1, wrong=0.0, fewer=0.1, more=0.1),
    # Of the questions before, one in eight is a sum, and 11% of the sums were right after them.
    Course(1500, 2e-3, (1.0, 1.5), jitter=0.05, wrong=0.0, fewer=0.0, more=0.0, scenes=PAIRS),
    Course(700, 1e-3, (1.0, 30.0), jitter=0.2, wrong=0.05, fewer=0.15, more=0.15),
    # After these it was as sure of wrong answers as of right ones where it was shown no crop.
    Course(
        600,
        1e-3,
        (1.0, 12.0),
        jitter=0.15,
        wrong=0.05,
        fewer=0.1,
        more=0.1,
        none=0.35,
        scenes=UNSURE,
    ),
)
CROPPER: tuple[Course, ...] = (
    Course(500, 1e-3, (1.5, 12.0), jitter=0.2, wrong=0.15, fewer=0.35, more=0.35),
    Course(1000, 1e-3, (1.5, 8.0), jitter=0.15, wrong=0.1, fewer=0.35, more=0.35),
)
# From the cropper of one look: its boxes in crops of rings were beside the frame in 45% of them.
DEEP = {"zoom_digits_deep": (16, 4)}
SECOND_LOOKS: tuple[Course, ...] = (
    Course(1000, 1e-3, (1.0, 2.0), jitter=0.1, wrong=0.1, fewer=0.0, more=0.0, scenes=DEEP),
)


def true_boxes(asked: Asked) -> list[np.ndarray]:
    """The boxes of the frames that a question is about, int `[4]` each."""
    return [np.array(box) for box in asked.boxes or (asked.box,)]


def noisy(rng: np.random.Generator, box: np.ndarray, course: Course) -> np.ndarray:
    """The box of a course for a true one, int `[4]`."""
    if rng.random() < course.wrong:
        box = misplaced(rng, box)
    return noisy_box(rng, box, course.expansion, course.jitter)


def shown(
    rng: np.random.Generator, asked: Asked, others: list[np.ndarray], course: Course
) -> Sequence[Box]:
    """Boxes of the crops that a reader is shown.

    Args:
        rng: What is drawn from.
        asked: The question.
        others: Boxes of other frames, which more crops may show.
        course: What is noisy, and how much.
    """
    boxes = [noisy(rng, box, course) for box in true_boxes(asked)]
    if not asked.boxes and rng.random() < 0.5:
        return ()
    if course.none and rng.random() < course.none:
        return ()
    kind = rng.random()
    if kind < course.fewer:
        kept = rng.permutation(len(boxes))[: rng.integers(len(boxes))]
        boxes = [boxes[i] for i in kept]
    elif kind < course.fewer + course.more and others:
        boxes.append(noisy(rng, others[rng.integers(len(others))], course))
    return geometry.in_order(boxes)


def crops(image: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
    """What a model sees of the crops of a picture, uint8 `[S, S, 3]` each."""
    return [host.tile(host.cut(image, np.array(box)), SIDE, SIDE)[0][0] for box in boxes]


def picked(
    rng: np.random.Generator, questions: list[Asked], count: int, course: Course
) -> list[Asked]:
    """Some questions of a scene, as the course has them."""
    if course.scenes is not None:
        return questions[:count]
    others = rng.permutation(len(questions) - 1)[: count - 1] + 1
    return [questions[0], *(questions[i] for i in others)]


def reading_batch(
    scenes: list[tuple[Scene, int]],
    course: Course,
    rng: np.random.Generator,
    prompts: Conversations,
) -> batching.SupervisedBatch:
    """What the reader learns: the picture, none to three crops, the question, the answer."""
    pictures, conversations = [], []
    for (image, questions), count in scenes:
        (whole,) = crops(image, [geometry.FULL])
        for asked in picked(rng, questions, count, course):
            mine = geometry.in_order(true_boxes(asked))
            frames = geometry.in_order([box for other in questions for box in true_boxes(other)])
            others = [np.array(box) for box in frames if box not in mine]
            seen = [whole, *crops(image, shown(rng, asked, others, course))]
            conversations.append(prompts.answer(asked.question, len(seen), asked.answer))
            # No token asks for those that fill up.
            pictures.append(np.stack(seen + [whole] * (1 + CROPS - len(seen))))
    return supervised_batch(pictures, conversations, ANSWER_PROMPT, ANSWER_REPLY)


def replied(rng: np.random.Generator, asked: Asked, course: Course) -> Sequence[Box]:
    """Boxes that a cropper imitates: noisy ones in a noisy number, two at most."""
    boxes = [noisy(rng, box, course) for box in true_boxes(asked)]
    needed = len(asked.boxes)
    if needed and rng.random() < course.fewer:
        needed -= 1
    elif needed < 2 and rng.random() < course.more:
        needed += 1
    while len(boxes) < needed:
        boxes.append(noisy(rng, misplaced(rng, boxes[0]), course))
    kept = rng.permutation(len(boxes))[:needed]
    return geometry.in_order([boxes[i] for i in kept])


def second_look(
    rng: np.random.Generator, image: np.ndarray, asked: Asked, course: Course
) -> tuple[np.ndarray, Sequence[Box]]:
    """A crop of a tiny frame's neighbourhood, and a noisy box in percent of that crop."""
    outer = noisy_box(rng, np.array(asked.around), (1.0, 2.0), 0.1)
    low, high = outer[:2], outer[2:]
    inside = np.clip((np.array(asked.box).reshape(2, 2) - low) * 100 / (high - low), 0, 100)
    box = np.concatenate([np.floor(inside[0]), np.ceil(inside[1])]).astype(int)
    (crop,) = crops(image, geometry.in_order([outer]))
    return crop, geometry.in_order([noisy(rng, box, course)] if (box[:2] < box[2:]).all() else [])


def locating_batch(
    scenes: list[tuple[Scene, int]],
    course: Course,
    rng: np.random.Generator,
    prompts: Conversations,
) -> batching.SupervisedBatch:
    """What the cropper imitates: the picture, the question, noisy boxes in a noisy number.

    Half of the questions about tiny frames show the picture and ask for the neighbourhood; the
    others show a crop of the neighbourhood.
    """
    pictures, conversations = [], []
    for (image, questions), count in scenes:
        (whole,) = crops(image, [geometry.FULL])
        for asked in picked(rng, questions, count, course):
            picture, boxes = whole, replied(rng, asked, course)
            if asked.around and rng.random() < 0.5:
                picture, boxes = second_look(rng, image, asked, course)
            elif asked.around:
                around = Asked(asked.question, asked.answer, (asked.around,), asked.around)
                most = min(4.0, course.expansion[1])
                easier = dataclasses.replace(course, expansion=(1.0, most))
                boxes = replied(rng, around, easier)
            pictures.append(picture[None])
            conversations.append(prompts.crop(asked.question, (0, 0), geometry.reply_text(boxes)))
    return supervised_batch(pictures, conversations, CROP_PROMPT, BOX_REPLY)


def drawn(
    rng: np.random.Generator, course: Course, split: str, seed: int
) -> Iterator[tuple[Scene, int]]:
    """The scenes of a batch, and how many questions of each to ask."""
    for name, (scenes, questions) in (course.scenes or SCENES).items():
        source = sources.open_drawn(name, split, 1 << 30, seed)
        for index in rng.integers(len(source), size=scenes):
            yield source.scene(index), questions  # type: ignore[attr-defined]


def preparer(
    course: Course, number: int, make: Callable[..., batching.SupervisedBatch], seed: int
) -> Callable[[int], batching.SupervisedBatch]:
    """What prepares the batch of a step of a course."""

    def prepare(step: int) -> batching.SupervisedBatch:
        rng = np.random.default_rng([seed, number, step])
        return make(list(drawn(rng, course, "train", seed + 1000 * (1 + number))), course, rng)

    return prepare
