# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is drawn: a sheet with ink and known text, and the document that a picture of it becomes."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .fonts import Face

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class Line(NamedTuple):
    """A text in one place, and the box of its ink in pixels."""

    text: str
    box: Box


class Field(NamedTuple):
    """The answer to a question, and the box of its characters in pixels."""

    answer: str
    box: Box


@dataclasses.dataclass(frozen=True)
class Document:
    """A picture of printed text.

    Attributes:
        image: uint8 `[H, W, 3]`.
        lines: All printed texts, as data sets of receipts give them: labels and values apart where
            there is space between them.
        fields: The answer and its box, by name; a field that the document lacks is not there.
        evidence: The box of the line, or of the lines, that hold a field's answer, by name.
        edges: For each line, where its characters begin and the last one ends, in pixels from the
            picture's left edge: `[characters + 1]`.
    """

    image: np.ndarray
    lines: list[Line]
    fields: dict[str, Field]
    evidence: dict[str, Box]
    edges: list[np.ndarray]


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of these."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


@dataclasses.dataclass
class Mark:
    """Where a field's answer stands: its characters and the lines that they are in."""

    answer: str
    parts: list[Box] = dataclasses.field(default_factory=list)
    lines: list[Box] = dataclasses.field(default_factory=list)


class Sheet:
    """Paper that is written on; ink is 255, paper 0.

    Attributes:
        image: "L" picture of the ink.
        pen: Draws on it.
        lines, edges: As in `Document`.
        marks: Where the fields are.
        colours: Parts of the sheet whose ink is not black, with its red, green and blue.
        pad: Which part of the ink's height boxes leave above and below it; people who draw boxes
            around printed lines leave about a fifth.
    """

    def __init__(self, width: int, height: int, pad: float = 0.18) -> None:
        self.image = Image.new("L", (width, height))
        self.pen = ImageDraw.Draw(self.image)
        self.lines: list[Line] = []
        self.edges: list[np.ndarray] = []
        self.marks: dict[str, Mark] = {}
        self.colours: list[tuple[Box, tuple[int, int, int]]] = []
        self.pad = pad

    def write(
        self,
        text: str,
        x: float,
        y: float,
        face: Face,
        align: float = 0.0,
        level: int = 255,
        space: float = 0.0,
    ) -> int | None:
        """Writes a text, unless it would leave the sheet.

        Args:
            text: One line of characters.
            x, y: Where the text begins on the base line; with `align` 0.5 its middle, with 1 its
                end.
            face: The font and size.
            align: See `x`.
            level: How dark; 0 writes in white on what is already there.
            space: Pixels by which spaces are wider than the font has them.

        Returns:
            Which of `lines` it is; None where nothing was written.
        """
        ink = face.ink(text, space)
        if ink is None:
            return None
        start = x - align * ink.edges[-1]
        left, top = round(start + ink.left), round(y + ink.top)
        right, bottom = left + ink.mask.width, top + ink.mask.height
        if left < 0 or top < 0 or right > self.image.width or bottom > self.image.height:
            return None
        self.image.paste(level, (left, top, right, bottom), ink.mask)
        pad = self.pad * (bottom - top)
        self.lines.append(Line(text, (left - pad / 2, top - pad, right + pad / 2, bottom + pad)))
        self.edges.append(ink.edges + start)
        return len(self.lines) - 1

    def mark(self, field: str, line: int, answer: str) -> None:
        """Notes that a line holds the answer to a field, or the next part of it."""
        text, box = self.lines[line]
        begin = text.index(answer)
        left, right = self.edges[line][begin], self.edges[line][begin + len(answer)]
        pad = self.pad / (1 + 2 * self.pad) * (box[3] - box[1]) / 2
        part = max(left - pad, box[0]), box[1], min(right + pad, box[2]), box[3]
        mark = self.marks.setdefault(field, Mark(answer=""))
        mark.answer = f"{mark.answer} {answer}".strip()
        mark.parts.append(part)
        mark.lines.append(box)

    def cut(self, height: int) -> None:
        """Shortens the sheet."""
        self.image = self.image.crop((0, 0, self.image.width, height))
        self.pen = ImageDraw.Draw(self.image)

    def dashes(self, sign: str, start: float, stop: float, y: float, face: Face) -> None:
        """Repeats a sign from one place to another; it is no line of text."""
        ink = face.ink(sign * int((stop - start) / face.length(sign)))
        if ink is not None:
            self.image.paste(255, (round(start + ink.left), round(y + ink.top)), ink.mask)
