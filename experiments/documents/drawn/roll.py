# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A roll of paper in a receipt's printer: rows of cells, one below the other."""

import dataclasses

import numpy as np

from .chance import between, often, pick, weighted, whole
from .document import Sheet
from .fonts import Face, of_kind

_LONGEST = 7  # times its width is a roll, before it is cut
_FULL = 1.9  # times its width, from where on no more goods are printed


@dataclasses.dataclass(frozen=True)
class Cell:
    """A text in a row.

    Attributes:
        text: What is printed.
        at: Where, as a part of the printed width.
        align: What of the text is there: 0 its start, 0.5 its middle, 1 its end.
        field, answer: What it holds the answer to, as in `Sheet.mark`.
        face: Another face than the row's.
    """

    text: str
    at: float = 0.0
    align: float = 0.0
    field: str = ""
    answer: str = ""
    face: Face | None = None


def left(text: str, at: float = 0.0) -> Cell:
    """A cell that begins at a place."""
    return Cell(text, at=at)


def centre(text: str) -> Cell:
    """A cell in the middle."""
    return Cell(text, at=0.5, align=0.5)


def right(text: str, at: float = 1.0) -> Cell:
    """A cell that ends at a place."""
    return Cell(text, at=at, align=1.0)


class Roll:
    """The printer: its faces, its margins, and where it is.

    Attributes:
        sheet: What is printed so far.
        y: The base line of the next row, in pixels.
        start, stop: The printed width, in pixels from the left edge.
        body, bold, big: The faces.
        pitch: From base line to base line, in heights of the face.
    """

    def __init__(self, rng: np.random.Generator, width: int) -> None:
        self.rng = rng
        self.sheet = Sheet(width, _LONGEST * width)
        self.start = between(rng, 0.01, 0.085) * width
        self.stop = (1 - between(rng, 0.015, 0.12)) * width
        kind = weighted(rng, {"mono": 6, "sans": 4, "serif": 0.6})
        self.mono = kind == "mono"
        family = pick(rng, of_kind(kind))
        self.body = self._body(family.bold if often(rng, 0.15) else family.regular)
        self.bold = dataclasses.replace(self.body, file=family.bold)
        self.big = self._emphasis()
        self.pitch = weighted(rng, {between(rng, 1.08, 1.32): 5, between(rng, 1.32, 1.8): 2})
        self.y = 0.0
        self.dash = pick(rng, ("-", "-", "-", "=", "_", "*", ".", "rule", "rule", "none"))

    def _body(self, file: str) -> Face:
        """A face of which a given number of characters fill a row."""
        rng = self.rng
        columns = between(rng, 34, 54) if self.mono else between(rng, 40, 60)
        wide = between(rng, 0.62, 1.05) if often(rng, 0.65) else 1.0
        advance = Face(file=file, size=100, wide=wide).length("Total Amount 12.50 RM") / 21
        size = max(9, round((self.stop - self.start) / columns / advance * 100))
        dots = 0
        if self.mono and often(rng, 0.3) and size >= 18:
            dots = weighted(rng, {2: 6, 3: 1 if size >= 30 else 0.01})
        return Face(file=file, size=size, wide=wide, dots=dots)

    def _emphasis(self) -> Face:
        style = weighted(self.rng, {"tall": 2, "wide": 1, "large": 3, "both": 0.4})
        if style == "tall":
            return self.body.stretched(tall=between(self.rng, 1.6, 2.0))
        if style == "wide":
            return self.bold.stretched(wide=between(self.rng, 1.2, 1.7))
        if style == "both":
            return self.bold.stretched(wide=1.6, tall=1.8)
        return self.bold.stretched(*[between(self.rng, 1.15, 1.6)] * 2)

    def separate(self) -> None:
        """A rule, or a little space."""
        if often(self.rng, 0.5):
            self.line()
        else:
            self.feed(between(self.rng, 0.2, 2))

    def underline(self, start: float, face: Face) -> None:
        """Draws a line below the end of the last row, from a part of the printed width on."""
        y = self.y + 0.25 * face.height
        x = self.start + start * self.width
        self.sheet.pen.line((x, y, self.stop, y), fill=255, width=whole(self.rng, 1, 2))

    def frame(self, top: float) -> None:
        """Draws a frame around what was printed below a height."""
        pad = self.body.height * 0.45
        box = (self.start - 2, top + pad * 0.5, self.stop, self.y + pad)
        self.sheet.pen.rectangle(box, outline=255, width=whole(self.rng, 1, 2))
        self.y += pad

    def cut(self) -> None:
        """Ends the paper a little below what was printed, seldom where it is short."""
        shortest = between(self.rng, 1.35, 2.0) * self.sheet.image.width
        if self.y < shortest and often(self.rng, 0.7):
            self.y = shortest
        self.sheet.cut(int(min(self.y + self.body.height, self.sheet.image.height)))

    @property
    def full(self) -> bool:
        """Whether there is no room for a few more rows."""
        return self.y > _FULL * self.sheet.image.width

    @property
    def width(self) -> float:
        """The printed width in pixels."""
        return self.stop - self.start

    def feed(self, rows: float = 1.0) -> None:
        """Moves on without printing."""
        self.y += rows * self.body.height * self.pitch

    def row(self, *cells: Cell, face: Face | None = None) -> None:
        """Prints a row, its cells side by side."""
        face = face or self.body
        tallest = max((cell.face or face).height for cell in cells)
        self.y += tallest * self.pitch
        for cell in cells:
            shown, x = self._place(cell, cell.face or face)
            line = self.sheet.write(cell.text, x, self.y, shown)
            if cell.field and line is not None:
                self.sheet.mark(cell.field, line, cell.answer)

    def _place(self, cell: Cell, face: Face) -> tuple[Face, float]:
        """Where a cell's text begins, in a face that is narrow enough for the paper."""
        room = self.sheet.image.width - 8
        length = face.length(cell.text)
        if length > room:
            face = face.stretched(wide=room / length)
            length = face.length(cell.text)
        begin = self.start + cell.at * self.width - cell.align * length
        return face, float(np.clip(begin, 4, max(4, 4 + room - length)))

    def fits(self, text: str, face: Face | None = None, share: float = 1.0) -> bool:
        """Whether a text fits into a part of the printed width."""
        return (face or self.body).length(text) <= share * self.width

    def paragraph(
        self, text: str, at: float = 0.5, face: Face | None = None, field: str = ""
    ) -> None:
        """Prints words in as many rows as they need, on the left, or in the middle."""
        for part in self.wrapped(text, face):
            self.row(
                Cell(part, at=at, align=at, field=field, answer=part if field else ""), face=face
            )

    def wrapped(self, text: str, face: Face | None = None) -> list[str]:
        """The rows into which a text is broken."""
        rows = [""]
        for word in text.split():
            longer = f"{rows[-1]} {word}".strip()
            if rows[-1] and not self.fits(longer, face):
                rows.append(word)
            else:
                rows[-1] = longer
        return rows

    def line(self) -> None:
        """A rule across the paper, or a row of dashes."""
        if self.dash == "none":
            self.feed(between(self.rng, 0.2, 0.8))
        elif self.dash == "rule":
            self.y += self.body.height * 0.5
            self.sheet.pen.line(
                (self.start, self.y, self.stop, self.y), fill=255, width=whole(self.rng, 1, 2)
            )
        else:
            self.y += self.body.height * self.pitch * 0.8
            self.sheet.dashes(self.dash, self.start, self.stop, self.y, self.body)
