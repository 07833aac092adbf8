# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the start cropper of this folder learns from: letters, and where answers stand."""

import dataclasses
import functools
import os
import pathlib
from typing import NamedTuple

import located
import numpy as np
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.data import batching
from cropvlm_jax.models.smolvlm.conversations import SmolVLMConversations

CELLS = 4  # places of a patch's side
BLANK, PRINT, FIRST_ANSWER = 0, 1, 2  # what stands at a place; from there on, a question's answer
OTHER, UNKNOWN = 254, 255  # any but the picture's answers; nothing is told
NO_LETTER = 0
LETTERS = 34  # kinds: none, a to z, a digit, five signs, any other
_SIGNS = ".,/-:"
QUESTIONS_EACH = 3  # about a picture


class LocatingBatch(NamedTuple):
    """Pictures, what stands at their places, and conversations about them.

    Attributes:
        images: grey, uint8 `[B, S, S]`.
        letters: uint8 `[B, P, CELLS * CELLS]`, P patches: the kind of the letter at each place,
            as `letter_kinds` numbers them; `UNKNOWN` in pictures whose letters are not told.
        places: uint8 `[B, P, CELLS * CELLS]`: `BLANK`, `PRINT`, or an answer by `FIRST_ANSWER`
            plus its question's number; `OTHER` beside the answers of pictures whose lines are not
            told, and `UNKNOWN` in pictures whose answers are not.
        told: bool `[B, K]`: which kinds of places are a picture's answers.
        conversations: `B * QUESTIONS_EACH` of them, those about a picture together; without their
            pictures, which are in `images` once. None in phases that do not ask.
        questions: int32 `[B * QUESTIONS_EACH]`, the number of the question of each conversation.
        boxes: int32 `[B * QUESTIONS_EACH, 4]`, the percent box of its answer, as in the reply.
    """

    images: np.ndarray
    letters: np.ndarray
    places: np.ndarray
    told: np.ndarray
    conversations: batching.SupervisedBatch | None
    questions: np.ndarray
    boxes: np.ndarray


class Answer(NamedTuple):
    """Where an answer stands: its question, and its box as shares of the picture, float `[4]`."""

    question: str
    box: np.ndarray


class _Picture(NamedTuple):
    """A picture of a batch, and what is asked about it."""

    image: np.ndarray
    letters: np.ndarray
    places: np.ndarray
    told: np.ndarray
    asked: list[Answer]


@dataclasses.dataclass(frozen=True)
class Locating:
    """Makes the batches of a phase; each step has its own, whatever came before.

    Attributes:
        conversations: of the cropper.
        questions: question by suite and field.
        drawn: folder of the drawn documents.
        chunks: which files of a suite to take, of all in order.
        receipts: file of the training receipts.
        pages: file of training pages.
        real: shares of the pictures that are training receipts, and training pages.
        seeds: whether the seed boxes of those are told.
        turned: the largest angle by which a picture is turned, degrees.
        asks: whether there are conversations; then every picture has an answer.
        smallest: the smallest part of a picture that is shown alone, as a share of its sides.
        side: of the pictures as they are shown, pixels.
        patch: of the tower, pixels.
        batch_size: B.
        prompt_tokens: of the longest prompt.
        reply_tokens: of the longest box.
        steps: of the phase.
        seed: of the choice of documents and of their changes.
    """

    conversations: SmolVLMConversations
    questions: dict[str, dict[str, str]]
    drawn: str | os.PathLike
    chunks: slice
    receipts: str | os.PathLike
    pages: str | os.PathLike
    real: tuple[float, float]
    seeds: bool
    turned: float
    asks: bool
    smallest: float
    side: int
    patch: int
    batch_size: int
    prompt_tokens: int
    reply_tokens: int
    steps: int
    seed: int

    def __call__(self, step: int) -> LocatingBatch:
        """The batch of a step."""
        rng = np.random.default_rng([self.seed, step])
        rows: list[_Picture] = []
        while len(rows) < self.batch_size:
            chance, (receipts, pages) = rng.random(), self.real
            real = chance < receipts + pages
            first = chance < receipts if real else rng.random() < 0.5
            suite = "receipts" if first else "pages"
            documents = (self._real if real else self._drawn)[suite]
            document = documents[int(rng.integers(len(documents)))]
            row = self._row(rng, suite, document, told=self.seeds or not real)
            if row is not None:
                rows.append(row)
        asked = [answer for row in rows for answer in row.asked]
        return LocatingBatch(
            images=np.stack([row.image for row in rows]),
            letters=np.stack([row.letters for row in rows]),
            places=np.stack([row.places for row in rows]),
            told=np.stack([row.told for row in rows]),
            conversations=batching.stack([*map(self._conversation, asked)]) if self.asks else None,
            questions=np.array([self._number(answer) for answer in asked], np.int32),
            boxes=np.array([percent_box(answer.box) for answer in asked], np.int32),
        )

    @functools.cached_property
    def _drawn(self) -> dict[str, list[located.Located]]:
        found = {}
        for suite in self.questions:
            files = sorted(pathlib.Path(self.drawn).glob(f"{suite}_????.npz"))[self.chunks]
            found[suite] = [document for file in files for document in located.read(file)]
        return found

    @functools.cached_property
    def _real(self) -> dict[str, list[located.Located]]:
        files = {"receipts": self.receipts, "pages": self.pages}
        return {
            suite: located.read(pathlib.Path(file))
            for (suite, file), share in zip(files.items(), self.real, strict=True)
            if share
        }

    def _row(
        self, rng: np.random.Generator, suite: str, document: located.Located, told: bool
    ) -> _Picture | None:
        """A changed picture; None where it lacks the answers that are asked for."""
        fields = {
            name: box for name, box in document.answers.items() if name in self.questions[suite]
        }
        boxes = np.array(list(fields.values())).reshape(-1, 4)
        together = np.concatenate([document.lines, boxes, document.letter_boxes])
        image, moved = changed(rng, document.image, together, self.side, self.smallest, self.turned)
        first, last = len(document.lines), len(document.lines) + len(boxes)
        answers = [
            Answer(self.questions[suite][name], box)
            for name, box in zip(fields, moved[first:last], strict=True)
        ]
        whole = [a for a in answers if a.box.min() >= 0 and a.box.max() <= 1]
        if self.asks and not whole:
            return None
        numbers = [FIRST_ANSWER + self._number(answer) for answer in answers]
        kinds = np.array([PRINT] * first + numbers, np.uint8)
        places = self._spread(kinds, moved[:last], least=1)
        letters = self._spread(letter_kinds(document.letters), moved[last:], least=0)
        if not len(document.lines):
            places[places == BLANK] = OTHER
            letters[...] = UNKNOWN
        if not told:
            places[...] = UNKNOWN
        answered = np.isin(np.arange(FIRST_ANSWER + len(self._all_questions)), numbers)
        return _Picture(image, letters, places, answered, self._asked(rng, whole))

    @functools.cached_property
    def _all_questions(self) -> list[str]:
        return all_questions(self.questions)

    def _number(self, answer: Answer) -> int:
        return self._all_questions.index(answer.question)

    def _asked(self, rng: np.random.Generator, answers: list[Answer]) -> list[Answer]:
        """Which of the answers are asked for; where there are few, they come twice."""
        if not self.asks:
            return []
        order = rng.permutation(max(len(answers), QUESTIONS_EACH))[:QUESTIONS_EACH]
        return [answers[i % len(answers)] for i in order]

    def _conversation(self, answer: Answer) -> batching.SupervisedBatch:
        text = f"{geometry.to_text(percent_box(answer.box))}"
        return batching.supervised_row(
            self.conversations.crop(answer.question, (0, 0), text),
            images=None,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.reply_tokens,
        )

    def _spread(self, kinds: np.ndarray, boxes: np.ndarray, least: int) -> np.ndarray:
        """What stands at each place, uint8 `[P, CELLS * CELLS]`; later boxes cover earlier ones.

        Args:
            kinds: of what stands in the boxes, uint8 `[N]`.
            boxes: shares of the picture `[N, 4]`; a place is in those that its middle is in.
            least: places of a side that a box covers at least.
        """
        grid = self.side // self.patch
        count = grid * CELLS
        cells = np.zeros((count, count), np.uint8)
        edges = np.ceil(boxes * count - 0.5).astype(int).clip(0, count)
        edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + least)
        for kind, (x1, y1, x2, y2) in zip(kinds, edges, strict=True):
            cells[y1:y2, x1:x2] = kind
        blocks = cells.reshape(grid, CELLS, grid, CELLS).swapaxes(1, 2)
        return blocks.reshape(grid * grid, CELLS * CELLS)


def letter_kinds(letters: np.ndarray) -> np.ndarray:
    """The kinds of code points, uint8 of the same shape: large and small letters are one."""
    kinds = np.full(128, LETTERS - 1, np.uint8)
    for first in "aA":
        kinds[ord(first) : ord(first) + 26] = np.arange(1, 27)
    kinds[ord("0") : ord("9") + 1] = 27
    for number, sign in enumerate(_SIGNS, 28):
        kinds[ord(sign)] = number
    return kinds[np.where(letters < 128, letters, 0)]


def all_questions(questions: dict[str, dict[str, str]]) -> list[str]:
    """The questions of all suites, each once, in a fixed order."""
    return sorted({question for fields in questions.values() for question in fields.values()})


def percent_box(box: np.ndarray) -> np.ndarray:
    """The whole percent box around shares of a picture, int `[4]`."""
    size = np.array([10**6, 10**6])
    return geometry.from_pixels(np.clip(box, 0, 1) * 10**6, size)


def changed(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    side: int,
    smallest: float = 0.7,
    turned: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A part of a picture, or the picture with a border, in other light.

    Args:
        rng: what is drawn from.
        image: uint8 `[S, S]`.
        boxes: shares of the picture `[N, 4]`.
        side: of the result, pixels.
        smallest: the smallest part, as a share of its sides.
        turned: the largest angle of the part, degrees.

    Returns:
        Picture and boxes, which may reach beyond it.
    """
    if rng.random() < 0.6:
        size = rng.uniform(smallest, 1.0) * rng.uniform(0.9, 1.1, 2)
        size = np.minimum(size, 1)
        corner = rng.uniform(0, 1 - size)
        if rng.random() < 0.3:
            size, corner = rng.uniform(1.0, 1.25, 2), rng.uniform(-0.12, 0, 2)
        angle = np.deg2rad(rng.uniform(-turned, turned)) if turned else 0.0
        image, boxes = _part(image, boxes, side, corner, size, angle)
    elif image.shape[0] != side:
        image, boxes = _part(image, boxes, side, np.zeros(2), np.ones(2), 0.0)
    if rng.random() < 0.6:
        light = (image.astype(np.float32) - 128) * rng.uniform(0.6, 1.3) + 128
        image = np.clip(light + rng.uniform(-40, 40), 0, 255).astype(np.uint8)
    return image, boxes


def _part(
    image: np.ndarray,
    boxes: np.ndarray,
    side: int,
    corner: np.ndarray,
    size: np.ndarray,
    angle: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A part of a picture, turned about its middle, and boxes as shares of it.

    A box keeps its sides: by small angles print stays nearly level.

    Args:
        image: uint8 `[S, S]`.
        boxes: shares of the picture `[N, 4]`.
        side: of the result, pixels.
        corner: left and top of the part, shares of the picture `[2]`.
        size: width and height of the part, likewise.
        angle: radians, clockwise as seen.
    """
    middle = corner + size / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    # From a place of the part to the picture: middle + turn @ (size * (place - 1/2)).
    matrix = turn * size
    offset = (middle - matrix @ [0.5, 0.5]) * image.shape[0]
    matrix *= image.shape[0] / side
    window = Image.fromarray(image).transform(
        (side, side),
        Image.Transform.AFFINE,
        (*matrix[0], offset[0], *matrix[1], offset[1]),
        Image.Resampling.BILINEAR,
        fillcolor=int(image[0, 0]),
    )
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2 / size
    placed = (centres - middle) @ turn / size + 0.5
    return np.asarray(window), np.concatenate([placed - halves, placed + halves], 1)
