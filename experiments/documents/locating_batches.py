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
UNKNOWN = 255
NO_LETTER = 0
LETTERS = 34  # kinds: none, a to z, a digit, five signs, any other
_SIGNS = ".,/-:"
QUESTIONS_EACH = 3  # about a picture


class LocatingBatch(NamedTuple):
    """Pictures, what stands at their places, and conversations about them.

    Attributes:
        images: grey, uint8 `[B, S, S]`.
        letters: uint8 `[B, P, CELLS * CELLS]`, P patches: the kind of the letter at each place,
            as `letter_kinds` numbers them.
        places: uint8 `[B, P, CELLS * CELLS]`: `BLANK`, `PRINT`, or an answer by `FIRST_ANSWER`
            plus its question's number; `UNKNOWN` in pictures whose answers are not told.
        conversations: `B * QUESTIONS_EACH` of them, those about a picture together; without their
            pictures, which are in `images` once. None in phases that do not ask.
    """

    images: np.ndarray
    letters: np.ndarray
    places: np.ndarray
    conversations: batching.SupervisedBatch | None


class Answer(NamedTuple):
    """Where an answer stands: its question, and its box as shares of the picture, float `[4]`."""

    question: str
    box: np.ndarray


class _Picture(NamedTuple):
    """A picture of a batch, and what is asked about it."""

    image: np.ndarray
    letters: np.ndarray
    places: np.ndarray
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
        real: share of the pictures that are training receipts.
        asks: whether there are conversations; then every picture has an answer.
        smallest: the smallest part of a picture that is shown alone, as a share of its sides.
        side: of the pictures, pixels.
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
    real: float
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
            if rng.random() < self.real:
                suite, documents = "receipts", self._receipts
            else:
                suite = "receipts" if rng.random() < 0.5 else "pages"
                documents = self._drawn[suite]
            row = self._row(rng, suite, documents[int(rng.integers(len(documents)))])
            if row is not None:
                rows.append(row)
        asked = [self._conversation(answer) for row in rows for answer in row.asked]
        return LocatingBatch(
            images=np.stack([row.image for row in rows]),
            letters=np.stack([row.letters for row in rows]),
            places=np.stack([row.places for row in rows]),
            conversations=batching.stack(asked) if self.asks else None,
        )

    @functools.cached_property
    def _drawn(self) -> dict[str, list[located.Located]]:
        found = {}
        for suite in self.questions:
            files = sorted(pathlib.Path(self.drawn).glob(f"{suite}_????.npz"))[self.chunks]
            found[suite] = [document for file in files for document in located.read(file)]
        return found

    @functools.cached_property
    def _receipts(self) -> list[located.Located]:
        return located.read(pathlib.Path(self.receipts))

    def _row(
        self, rng: np.random.Generator, suite: str, document: located.Located
    ) -> _Picture | None:
        """A changed picture; None where it lacks the answers that are asked for."""
        fields = {
            name: box
            for name, box in (document.answers or {}).items()
            if name in self.questions[suite]
        }
        boxes = np.array(list(fields.values())).reshape(-1, 4)
        together = np.concatenate([document.lines, boxes, document.letter_boxes])
        image, moved = changed(rng, document.image, together, self.smallest)
        first, last = len(document.lines), len(document.lines) + len(boxes)
        answers = [
            Answer(self.questions[suite][name], box)
            for name, box in zip(fields, moved[first:last], strict=True)
        ]
        whole = [a for a in answers if a.box.min() >= 0 and a.box.max() <= 1]
        if self.asks and not whole:
            return None
        numbers = [FIRST_ANSWER + self._all_questions.index(a.question) for a in answers]
        kinds = np.array([PRINT] * first + numbers, np.uint8)
        places = self._spread(kinds, moved[:last], least=1)
        if document.answers is None:
            places[...] = UNKNOWN
        letters = self._spread(letter_kinds(document.letters), moved[last:], least=0)
        return _Picture(image, letters, places, self._asked(rng, whole))

    @functools.cached_property
    def _all_questions(self) -> list[str]:
        return all_questions(self.questions)

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
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, smallest: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """A part of a picture, or the picture with a border, in other light.

    Args:
        rng: what is drawn from.
        image: uint8 `[S, S]`.
        boxes: shares of the picture `[N, 4]`.
        smallest: the smallest part, as a share of its sides.

    Returns:
        Picture and boxes, which may reach beyond it.
    """
    if rng.random() < 0.6:
        size = rng.uniform(smallest, 1.0) * rng.uniform(0.9, 1.1, 2)
        size = np.minimum(size, 1)
        corner = rng.uniform(0, 1 - size)
        if rng.random() < 0.3:
            size, corner = rng.uniform(1.0, 1.25, 2), rng.uniform(-0.12, 0, 2)
        side = image.shape[0]
        part = tuple((np.concatenate([corner, corner + size]) * side).tolist())
        window = Image.fromarray(image).transform(
            (side, side),
            Image.Transform.EXTENT,
            part,
            Image.Resampling.BILINEAR,
            fillcolor=int(image[0, 0]),
        )
        image, boxes = np.asarray(window), (boxes - np.tile(corner, 2)) / np.tile(size, 2)
    if rng.random() < 0.6:
        light = (image.astype(np.float32) - 128) * rng.uniform(0.6, 1.3) + 128
        image = np.clip(light + rng.uniform(-40, 40), 0, 255).astype(np.uint8)
    return image, boxes
