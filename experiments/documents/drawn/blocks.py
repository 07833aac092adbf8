# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What stands on a page between its head and its foot: paragraphs, headings, code, floats."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import floats, prose
from .chance import between, often, weighted, whole
from .document import Sheet
from .fonts import Face


@dataclasses.dataclass(frozen=True)
class Style:
    """How a manual is set.

    Attributes:
        body, bold, italic, mono: The faces of the text.
        heads: The faces of headings, the largest first.
        pitch: From base line to base line, in heights of the face.
        numbered: Whether headings have numbers.
        indent: Of a paragraph's first line, in pixels.
        gap: Between paragraphs, in lines.
        justified: Whether lines end together.
        code: How often programs come, beside 8 for paragraphs.
        code_numbers: Whether lines of programs are numbered throughout the page.
        code_ground: How dark the ground of programs is; 0 is white.
        link: The colour of links and, in some manuals, of headings.
    """

    body: Face
    bold: Face
    italic: Face
    mono: Face
    heads: tuple[Face, ...]
    pitch: float
    numbered: bool
    indent: float
    gap: float
    justified: bool
    code: float
    code_numbers: bool
    code_ground: int
    link: tuple[int, int, int]


@dataclasses.dataclass
class Page:
    """A page that is being set.

    Attributes:
        sheet: The paper.
        style: How it is set.
        left, width: Of the column in pixels.
        y: The last base line, in pixels.
        bottom: The lowest base line.
        headings: For each heading so far: its line, its text, its number or "".
        taken: Fields of which a page has one at most, that it has already.
        numbers: For each numbered line of a program so far: its line, and its number.
        next_number: The number of the next such line.
    """

    sheet: Sheet
    style: Style
    left: float
    width: float
    y: float
    bottom: float
    headings: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)
    taken: set[str] = dataclasses.field(default_factory=set)
    numbers: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    next_number: int = 1

    def write(
        self,
        text: str,
        face: Face,
        at: float = 0.0,
        y: float | None = None,
        answers: Mapping[str, str] | None = None,
    ) -> int | None:
        """Writes a text on the left (`at` 0), in the middle or on the right of the column."""
        x, base = self.left + at * self.width, self.y if y is None else y
        line = self.sheet.write(text, x, base, face, align=at)
        if line is not None:
            for field, answer in (answers or {}).items():
                self.sheet.mark(field, line, answer)
        return line

    def down(self, face: Face, lines: float = 1.0) -> None:
        """Moves on to the next base line."""
        self.y += lines * face.height * self.style.pitch

    def room(self, lines: float) -> bool:
        """Whether some lines of the body have room."""
        return self.y + lines * self.style.body.height * self.style.pitch <= self.bottom

    def rule(self, y: float, width: int = 1) -> None:
        """Draws a rule across the column."""
        self.sheet.pen.line((self.left, y, self.left + self.width, y), fill=255, width=width)

    def finish(self) -> None:
        """Notes which headings, and which numbers of lines, are the first and the last ones."""
        if len(self.numbers) > 2:  # fewer are no answer
            for field, index in (("first line number", 0), ("last line number", -1)):
                self.sheet.mark(field, *self.numbers[index])
        if self.headings:
            line, text, number = self.headings[0]
            self.sheet.mark("first heading", line, text)
            if number:
                self.sheet.mark("section number", line, number)
        if len(self.headings) > 1:
            line, text, _ = self.headings[-1]
            self.sheet.mark("last heading", line, text)

    def prose(
        self, parts: Sequence[str], face: Face, indent: float = 0.0, hang: float = 0.0
    ) -> None:
        """Sets words in lines, as far as there is room.

        Args:
            parts: The words.
            face: The font and size.
            indent: Of the first line, in pixels.
            hang: Of all lines.
        """
        rows: list[list[str]] = [[]]
        room = self.width - hang - indent
        length, space = 0.0, face.length(" ")
        for part in parts:
            extent = face.length(part)
            if rows[-1] and length + space + extent > room:
                rows.append([])
                room, length = self.width - hang, 0.0
            length += extent + (space if rows[-1] else 0)
            rows[-1].append(part)
        for index, row in enumerate(rows):
            if not self.room(1):
                return
            self.down(face)
            start = hang + (0 if index else indent)
            last = index == len(rows) - 1
            self._set(" ".join(row), face, start, justified=self.style.justified and not last)

    def _set(self, text: str, face: Face, start: float, justified: bool) -> None:
        spaces = text.count(" ")
        extra = 0.0
        if justified and spaces:
            extra = min((self.width - start - face.length(text)) / spaces, face.size * 0.8)
        self.sheet.write(text, self.left + start, self.y, face, space=extra)


def fill(rng: np.random.Generator, page: Page) -> None:
    """Sets blocks until the column is full, or ends it early."""
    blocks: dict[Callable[[np.random.Generator, Page], None], float] = {
        paragraph: 8,
        heading: 2.4,
        listing: page.style.code,
        bullets: 1.2,
        definition: between(rng, 0, 4) if often(rng, 0.3) else 0.1,
        floats.figure: 0.7,
        floats.table: 0.5,
        floats.formula: 0.5,
    }
    if often(rng, 0.1):
        page.y += between(rng, 0, 0.2) * page.sheet.image.height
    last = page.bottom if often(rng, 0.8) else between(rng, page.y, page.bottom)
    if often(rng, 0.15):
        heading(rng, page)
    while page.y < last and page.room(3):
        weighted(rng, blocks)(rng, page)


def paragraph(rng: np.random.Generator, page: Page) -> None:
    """Some sentences."""
    style = page.style
    page.down(style.body, style.gap)
    count = weighted(rng, {1: 2, 2: 3, 4: 3, 7: 1})
    page.prose(prose.paragraph(rng, count), style.body, indent=style.indent)


def heading(rng: np.random.Generator, page: Page) -> None:
    """A heading, perhaps with a number; never right below another one."""
    style = page.style
    if page.headings and page.sheet.lines and page.headings[-1][0] == len(page.sheet.lines) - 1:
        return
    level = weighted(rng, {1: 2, 2: 4, 3: 3})
    face = style.heads[level - 1]
    if not page.room(5):
        return
    page.down(face, between(rng, 1.5, 2.2))
    number = prose.section(rng, level) if style.numbered else ""
    text = prose.heading(rng)
    if number:
        text = f"{number}{'.' if often(rng, 0.1) else ''}{' ' * whole(rng, 1, 3)}{text}"
    while face.length(text) > page.width and " " in text.strip():
        text = text.rsplit(" ", 1)[0].rstrip()
    line = page.write(text, face, at=0.5 if often(rng, 0.05) else 0.0)
    if line is not None:
        page.headings.append((line, text, number if text.startswith(number) else ""))
        if style.link[0] and often(rng, 0.5):
            page.sheet.colours.append((page.sheet.lines[line].box, style.link))
    page.down(style.body, between(rng, 0.2, 0.7))


def listing(rng: np.random.Generator, page: Page) -> None:
    """Lines of a program, perhaps with numbers, perhaps on grey."""
    style, face = page.style, page.style.mono
    page.down(style.body, 0.4)
    room = int((page.bottom - page.y) / (face.height * style.pitch))
    count = min(whole(rng, 1, 8 if often(rng, 0.5) else 40), room)
    if style.code_ground and count > 0:
        top = page.y + 0.3 * face.height
        below = page.y + (count + 0.3) * face.height * style.pitch
        box = (page.left - 4, top, page.left + page.width + 4, below)
        page.sheet.pen.rectangle(box, fill=style.code_ground, outline=style.code_ground + 20)
    indent = page.left + (0 if style.code_numbers else between(rng, 0, 0.08) * page.width)
    for _ in range(count):
        page.down(face)
        text = prose.code(rng)
        while page.sheet.write(text, indent, page.y, face) is None and len(text) > 8:
            text = text[: len(text) // 2]
        if style.code_numbers:
            _number(page)


def _number(page: Page) -> None:
    """The number of a line, small, on its left."""
    body = page.style.body
    small = dataclasses.replace(body, size=max(7, round(body.size * 0.6)))
    number = str(page.next_number)
    line = page.sheet.write(number, page.left - small.size * 0.7, page.y, small, align=1.0)
    page.next_number += 1
    if line is not None:
        page.numbers.append((line, number))


def bullets(rng: np.random.Generator, page: Page) -> None:
    """A list with bullets or numbers."""
    style = page.style
    hang = 2 * style.body.size
    ordered = often(rng, 0.3)
    for index in range(whole(rng, 2, 5)):
        if page.room(2):
            page.down(style.body, 0.3)
            y = page.y + style.body.height * style.pitch
            sign = f"{index + 1}." if ordered else "•"
            page.sheet.write(sign, page.left + 0.9 * style.body.size, y, style.body)
            page.prose(prose.paragraph(rng, whole(rng, 1, 2)), style.body, hang=hang)


def definition(rng: np.random.Generator, page: Page) -> None:
    """A term in bold or typewriter letters, and below it what it means."""
    style = page.style
    page.down(style.body, 1.4)
    face = style.mono if often(rng, 0.5) else style.bold
    page.write(prose.code(rng).strip()[:30], face)
    page.prose(prose.paragraph(rng, whole(rng, 1, 3)), style.body, hang=3 * style.body.size)
