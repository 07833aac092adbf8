# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the reader of this folder learns from: crops of drawn and of real print, as batches."""

import dataclasses
import functools
import os
from typing import NamedTuple

import numpy as np
import printed_lines
import real_crops

from cropvlm_jax.data import batching
from cropvlm_jax.models.smolvlm.conversations import SmolVLMConversations
from cropvlm_jax.pixels import host

COLUMNS = 6  # places of letters that a patch has, side by side
NO_LETTER, UNKNOWN = 0, 255
CLASSES = 95  # no letter, and ASCII from "!" to "~"
_FIRST = ord("!") - 1
_SHARES = {"total": 0.38, "date": 0.38, "number": 0.16, "text": 0.08}
_REAL_SHARES = {
    "lines of receipts": 0.3,
    "numbers of receipts": 0.3,
    "texts of receipts": 0.03,
    "numbers of pages": 0.27,
    "texts of pages": 0.1,
}


class ReadingBatch(NamedTuple):
    """Conversations about crops, and the letters in the crops.

    Attributes:
        conversations: one a crop.
        letters: uint8 `[B, P, COLUMNS]`, P patches: the letter at each place, by its number after
            a space; `NO_LETTER`, or `UNKNOWN` where the crop is not drawn.
    """

    conversations: batching.SupervisedBatch
    letters: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reading:
    """Makes the batches of a phase; each step has its own, whatever came before.

    Attributes:
        conversations: of the reader.
        side: of its pictures, pixels.
        patch: of its tower, pixels.
        batch_size: B.
        prompt_tokens: of the longest prompt.
        steps: of the phase.
        seed: of what is drawn.
        loose: the most that crops are larger than the text, in areas: until a quarter of the phase,
            and from two thirds on.
        hard: how worn the print is at the start; it rises to 1 within the phase.
        real: share of the crops that are of real pictures, after an eighth of the phase.
        documents: folder of the suites.
        receipts: folder of SROIE, for the lines of its training receipts.
        wholes: pictures uint8 `[N, S, S, 3]` that stand before a crop in a conversation of two;
            None for conversations about a crop alone.
    """

    conversations: SmolVLMConversations
    side: int
    patch: int
    batch_size: int
    prompt_tokens: int
    steps: int
    seed: int
    loose: tuple[float, float]
    hard: float
    real: float
    documents: str | os.PathLike
    receipts: str | os.PathLike
    wholes: np.ndarray | None = None

    ANSWER_TOKENS = 27

    def __call__(self, step: int) -> ReadingBatch:
        """The batch of a step."""
        rng = np.random.default_rng([self.seed, step])
        rows: list[ReadingBatch] = []
        while len(rows) < self.batch_size:
            is_real = step > self.steps / 8 and rng.random() < self.real
            row = self._real(rng, step) if is_real else self._drawn(rng, step)
            if row is not None:
                rows.append(row)
        return batching.stack(rows)

    def _looseness(self, step: int) -> float:
        low, high = self.loose
        return low * (high / low) ** np.clip((step / self.steps - 1 / 4) / (2 / 3 - 1 / 4), 0, 1)

    def _drawn(self, rng: np.random.Generator, step: int) -> ReadingBatch:
        kind = rng.choice(list(_SHARES), p=list(_SHARES.values()))
        loose = self._looseness(step)
        if kind == "text":  # of several texts none would be the one that is meant
            loose = min(loose, 1.5)
        hard = min(1, self.hard + 1.7 * step / self.steps)
        crop = printed_lines.draw(rng, kind, loose, hard)
        letters = letters_by_patch(crop.letters, self.side // self.patch)
        question = printed_lines.QUESTIONS[kind]
        return self.row(rng, crop.image, question, crop.answer, letters)

    def _real(self, rng: np.random.Generator, step: int) -> ReadingBatch | None:
        kind = rng.choice(list(_REAL_SHARES), p=list(_REAL_SHARES.values()))
        places = self._places[kind]
        place = places[int(rng.integers(len(places)))]
        loose = self._looseness(step)
        if place.category not in real_crops.NUMERIC:  # as of drawn texts
            loose = min(loose, 1.5)
        crop = place.cut(rng, loose)
        if crop is None:
            return None
        return self.row(rng, crop, place.question, place.answer)

    @functools.cached_property
    def _places(self) -> dict[str, list[real_crops.Place]]:
        """Places of the training documents, by `_REAL_SHARES`."""
        found = {}
        for suite in ("receipts", "pages"):
            places = real_crops.read_places(os.path.join(self.documents, suite), "train", most=3000)
            for what in ("numbers", "texts"):
                numeric = what == "numbers"
                of_kind = [p for p in places if (p.category in real_crops.NUMERIC) == numeric]
                found[f"{what} of {suite}"] = of_kind
        found["lines of receipts"] = real_crops.read_lines(
            os.path.join(self.documents, "receipts"), self.receipts, printed_lines.QUESTIONS["text"]
        )
        return found

    def row(
        self,
        rng: np.random.Generator,
        crop: np.ndarray,
        question: str,
        answer: str,
        letters: np.ndarray | None = None,
    ) -> ReadingBatch:
        """One crop with its question and answer."""
        pictures = [tile(crop, self.side)]
        if self.wholes is not None:
            pictures.insert(0, self.wholes[int(rng.integers(len(self.wholes)))])
        if letters is None:
            letters = np.full(((self.side // self.patch) ** 2, COLUMNS), UNKNOWN, np.uint8)
        row = batching.supervised_row(
            self.conversations.answer(question, len(pictures), answer),
            images=np.stack(pictures),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.ANSWER_TOKENS,
        )
        return ReadingBatch(row, letters)


def tile(crop: np.ndarray, side: int) -> np.ndarray:
    """A grey crop `[H, W]` as the reader sees it, uint8 `[side, side, 3]`."""
    return host.tile(np.repeat(crop[..., None], 3, -1), side, side, split=False)[0][0]


def letters_by_patch(letters: np.ndarray, grid: int) -> np.ndarray:
    """The letters at the places of a crop's patches.

    Args:
        letters: as in `printed_lines.LineCrop`.
        grid: patches of a side.

    Returns:
        uint8 `[grid * grid, COLUMNS]`; a place shows the letter that its middle lies in.
    """
    cells = np.zeros((grid, grid * COLUMNS), np.uint8)
    sides = np.array([grid * COLUMNS, grid] * 2)
    for code, *box in letters:
        x1, y1, x2, y2 = np.maximum(np.ceil(box * sides - 0.5), 0).astype(int)
        if _FIRST < code < _FIRST + CLASSES:
            cells[y1:y2, x1:x2] = code - _FIRST
    return cells.reshape(grid * grid, COLUMNS)
