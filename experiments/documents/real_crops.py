# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Places of the suites' pictures that hold short answers, with what stands around them.

A page takes 25 ms to decode, and a reader learns from a dozen crops of each: so the surroundings of
all answers are cut out once.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from crop_rule import surround
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.progress import Progress

MOST_LETTERS = 24  # of an answer
NUMERIC = (
    "total",
    "date",
    "page number",
    "section number",
    "first line number",
    "last line number",
    "table number",
    "figure number",
    "version",
)


@dataclasses.dataclass(frozen=True)
class Place:
    """An answer in a picture.

    Attributes:
        category: of the question.
        question: about the picture.
        answer: what stands in the box.
        surroundings: the box and twice its size around it, grey, uint8 `[H, W]`.
        box: left, top, right and bottom in `surroundings`, pixels.
    """

    category: str
    question: str
    answer: str
    surroundings: np.ndarray
    box: tuple[int, int, int, int]

    def cut(self, rng: np.random.Generator, loose: float) -> np.ndarray | None:
        """A crop around the box, as `surround` says, grey uint8; None where it is too small.

        Args:
            rng: what is drawn from.
            loose: the most that the crop is larger than the box, in areas; 1 is tight.
        """
        box = np.array(self.box)
        corner, size = surround(rng, box, line=box[3] - box[1], loose=loose)
        low = np.maximum(corner, 0)
        high = np.minimum(corner + size, self.surroundings.shape[::-1])
        if (high - low).min() < 3:
            return None
        crop = self.surroundings[low[1] : high[1], low[0] : high[0]]
        if rng.random() < 0.4:
            shifted = (crop.astype(np.float32) - 128) * rng.uniform(0.6, 1.3) + 128
            crop = np.clip(shifted + rng.uniform(-30, 30), 0, 255).astype(np.uint8)
        return crop

    def expanded(self, expansion: float) -> np.ndarray:
        """The crop of the box with its area times `expansion`."""
        x1, y1, x2, y2 = self.box
        wide, high = ((expansion**0.5 - 1) / 2 * side for side in (x2 - x1, y2 - y1))
        rows = slice(max(0, int(y1 - high)), int(np.ceil(y2 + high)))
        return self.surroundings[rows, max(0, int(x1 - wide)) : int(np.ceil(x2 + wide))]


def read_places(folder: str | os.PathLike, split: str, most: int) -> list[Place]:
    """The places of short answers in a suite's split.

    Args:
        folder: of a suite: `train.jsonl` and others, as `suites.py` writes them.
        split: "train" or "val".
        most: how many pictures to read at most; which, is drawn with a fixed seed.
    """
    root, asked = pathlib.Path(folder), collections.defaultdict(list)
    with (root / f"{split}.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            answer = row["answers"][0]
            if "box" in row and answer.isascii() and len(answer) <= MOST_LETTERS:
                asked[row["image"]].append(row)
    images = sorted(asked)
    np.random.default_rng(0).shuffle(images)
    progress, places = Progress(min(most, len(images)), what=f"{root.name}/{split} picture"), []
    for number, image in enumerate(images[:most], 1):
        picture = grey(root / image)
        places += [_place(row, picture) for row in asked[image]]
        progress.update(number)
    return places


def read_lines(folder: str | os.PathLike, origin: str | os.PathLike, question: str) -> list[Place]:
    """The printed lines of the training receipts that are mostly digits, as places.

    Lines of letters are left out: SROIE writes small letters as capitals.

    Args:
        folder: of the suite of receipts.
        origin: folder of SROIE, whose `receipts.jsonl` has the lines.
        question: to ask about them.
    """
    root, places = pathlib.Path(folder), []
    with (root / "train.jsonl").open(encoding="utf-8") as file:
        names = {json.loads(line)["image"] for line in file}
    with (pathlib.Path(origin) / "receipts.jsonl").open(encoding="utf-8") as file:
        receipts = [row for row in map(json.loads, file) if row["image"] in names]
    for receipt in receipts:
        picture = grey(root / receipt["image"])
        for line in receipt["lines"]:
            text = line["text"].strip()
            if text.isascii() and 3 <= len(text) <= MOST_LETTERS and _mostly_digits(text):
                box = [int(edge) for edge in line["box"]]
                places.append(_surrounded("line", question, text, picture, box))
    return places


def _mostly_digits(text: str) -> bool:
    return sum(letter.isdigit() for letter in text) > sum(letter.isalpha() for letter in text)


def grey(path: str | os.PathLike) -> np.ndarray:
    """A picture file as uint8 `[H, W]`."""
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L"))


def questions(documents: str | os.PathLike) -> list[str]:
    """All questions that the suites' training documents are asked."""
    found = set()
    for path in sorted(pathlib.Path(documents).glob("*/train.jsonl")):
        with path.open(encoding="utf-8") as file:
            found |= {json.loads(line)["question"] for line in file}
    return sorted(found)


def _place(row: dict, picture: np.ndarray) -> Place:
    box = geometry.to_pixels(np.array(row["box"]), np.array(picture.shape)).tolist()
    return _surrounded(row["category"], row["question"], row["answers"][0], picture, box)


def _surrounded(
    category: str, question: str, answer: str, picture: np.ndarray, box: Sequence[int]
) -> Place:
    x1, y1, x2, y2 = box
    across, down = int(2.2 * (x2 - x1) + 40), int(2.2 * (y2 - y1) + 10)
    left, top = max(0, x1 - across), max(0, y1 - down)
    surroundings = picture[top : y2 + down, left : x2 + across].copy()
    inner = (x1 - left, y1 - top, x2 - left, y2 - top)
    return Place(category, question, answer, surroundings, inner)
