# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the start cropper of this folder learns from: drawn documents and where answers stand."""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
from typing import NamedTuple

import numpy as np
from drawn import draw_page, draw_receipt
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.data import batching
from cropvlm_jax.models.smolvlm.conversations import SmolVLMConversations
from cropvlm_jax.pixels import host
from cropvlm_jax.progress import Progress

CELLS = 4  # places of a patch's side
BLANK, PRINT, FIRST_ANSWER = 0, 1, 2  # what stands at a place; from there on, a question's answer
QUESTIONS_EACH = 3  # about a picture
_CHUNK = 100  # documents in a file
_DRAW = {"receipts": draw_receipt, "pages": draw_page}


class LocatingBatch(NamedTuple):
    """Pictures, what stands at their places, and conversations about them.

    Attributes:
        images: grey, uint8 `[B, S, S]`.
        places: uint8 `[B, P, CELLS * CELLS]`, P patches: `BLANK`, `PRINT`, or an answer by
            `FIRST_ANSWER` plus its question's number.
        conversations: `B * QUESTIONS_EACH` of them, those about a picture together; without their
            pictures, which are in `images` once.
    """

    images: np.ndarray
    places: np.ndarray
    conversations: batching.SupervisedBatch


class Answer(NamedTuple):
    """Where an answer stands: its question, and its box as shares of the picture, float `[4]`."""

    question: str
    box: np.ndarray


def draw_documents(
    folder: str | os.PathLike, counts: dict[str, int], side: int, seed: int, workers: int = 2
) -> None:
    """Draws documents into files, as the cropper sees them; those that are there are kept.

    Args:
        folder: for the files.
        counts: how many of each suite's kind.
        side: of the pictures, pixels.
        seed: of what is drawn.
        workers: processes.
    """
    root = pathlib.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    todo = [
        (root, suite, chunk, side, seed)
        for suite, count in counts.items()
        for chunk in range(count // _CHUNK)
        if not (root / f"{suite}_{chunk:04}.npz").exists()
    ]
    progress = Progress(len(todo), what=f"{_CHUNK} documents")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_draw_chunk, todo), 1):
            progress.update(done)


def _draw_chunk(task: tuple[pathlib.Path, str, int, int, int]) -> None:
    root, suite, chunk, side, seed = task
    images, facts = [], []
    for number in range(_CHUNK):
        rng = np.random.default_rng([seed, chunk, number])
        document = _DRAW[suite](rng)
        height, width = document.image.shape[:2]
        images.append(host.tile(document.image, side, side, split=False)[0][0, ..., 0])
        size = np.array([width, height] * 2)
        # Receipts' true boxes are those of lines, pages' those of the words.
        boxes = document.evidence if suite == "receipts" else document.fields
        answers = {
            name: (np.array(box if suite == "receipts" else box.box) / size).tolist()
            for name, box in boxes.items()
        }
        lines = [(np.array(line.box) / size).tolist() for line in document.lines]
        facts.append({"answers": answers, "lines": lines})
    path = root / f"{suite}_{chunk:04}.npz"
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, images=np.stack(images), facts=json.dumps(facts, allow_nan=False))
    unfinished.rename(path)


@dataclasses.dataclass(frozen=True)
class Locating:
    """Makes the batches of a phase; each step has its own, whatever came before.

    Attributes:
        conversations: of the cropper.
        questions: question by suite and field.
        folder: of the drawn documents.
        chunks: which files of a suite to take, of all in order.
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
    folder: str | os.PathLike
    chunks: slice
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
        images, places, conversations = [], [], []
        while len(images) < self.batch_size:
            suite = "receipts" if rng.random() < 0.5 else "pages"
            pictures, facts = self._documents[suite]
            number = int(rng.integers(len(pictures)))
            image, kinds, answers = self._changed(rng, suite, pictures[number], facts[number])
            if answers:
                images.append(image)
                places.append(kinds)
                order = rng.permutation(max(len(answers), QUESTIONS_EACH))[:QUESTIONS_EACH]
                conversations += [self._conversation(answers[i % len(answers)]) for i in order]
        return LocatingBatch(np.stack(images), np.stack(places), batching.stack(conversations))

    @functools.cached_property
    def _documents(self) -> dict[str, tuple[np.ndarray, list[dict]]]:
        found = {}
        for suite in _DRAW:
            files = sorted(pathlib.Path(self.folder).glob(f"{suite}_????.npz"))[self.chunks]
            loaded = [np.load(file) for file in files]
            images = np.concatenate([file["images"] for file in loaded])
            found[suite] = (
                images,
                [row for file in loaded for row in json.loads(str(file["facts"]))],
            )
        return found

    def _changed(
        self, rng: np.random.Generator, suite: str, image: np.ndarray, facts: dict
    ) -> tuple[np.ndarray, np.ndarray, list[Answer]]:
        """A changed picture, what stands at its places, and the answers that are whole in it."""
        lines = np.array(facts["lines"]).reshape(-1, 4)
        names = [name for name in facts["answers"] if name in self.questions[suite]]
        boxes = np.array([facts["answers"][name] for name in names]).reshape(-1, 4)
        image, moved = changed(rng, image, np.concatenate([lines, boxes]))
        answers = [
            Answer(self.questions[suite][name], box)
            for name, box in zip(names, moved[len(lines) :], strict=True)
        ]
        numbers = [FIRST_ANSWER + self._all_questions.index(a.question) for a in answers]
        places = self._places([PRINT] * len(lines) + numbers, moved)
        return image, places, [a for a in answers if a.box.min() >= 0 and a.box.max() <= 1]

    @functools.cached_property
    def _all_questions(self) -> list[str]:
        return all_questions(self.questions)

    def _conversation(self, answer: Answer) -> batching.SupervisedBatch:
        text = f"{geometry.to_text(percent_box(answer.box))}"
        return batching.supervised_row(
            self.conversations.crop(answer.question, (0, 0), text),
            images=None,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.reply_tokens,
        )

    def _places(self, kinds: list[int], boxes: np.ndarray) -> np.ndarray:
        """What stands at each place, uint8 `[P, CELLS * CELLS]`; later boxes cover earlier ones."""
        grid = self.side // self.patch
        count = grid * CELLS
        cells = np.zeros((count, count), np.uint8)
        low = np.floor(boxes[:, :2] * count).astype(int).clip(0, count)
        high = np.floor(boxes[:, 2:] * count).astype(int).clip(0, count)
        for kind, (x1, y1), (x2, y2) in zip(kinds, low, np.maximum(high, low + 1), strict=True):
            cells[y1:y2, x1:x2] = kind
        blocks = cells.reshape(grid, CELLS, grid, CELLS).swapaxes(1, 2)
        return blocks.reshape(grid * grid, CELLS * CELLS)


def all_questions(questions: dict[str, dict[str, str]]) -> list[str]:
    """The questions of all suites, each once, in a fixed order."""
    return sorted({question for fields in questions.values() for question in fields.values()})


def percent_box(box: np.ndarray) -> np.ndarray:
    """The whole percent box around shares of a picture, int `[4]`."""
    size = np.array([10**6, 10**6])
    return geometry.from_pixels(np.clip(box, 0, 1) * 10**6, size)


def changed(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A part of a picture, or the picture with a border, in other light.

    Args:
        rng: what is drawn from.
        image: uint8 `[S, S]`.
        boxes: shares of the picture `[N, 4]`.

    Returns:
        Picture and boxes, which may reach beyond it.
    """
    if rng.random() < 0.5:
        size = rng.uniform(0.7, 1.0, 2)
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
