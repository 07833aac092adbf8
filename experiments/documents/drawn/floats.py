# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures, tables and formulas of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import prose, words
from .chance import between, digits, often, pick, weighted, whole
from .document import Box

if TYPE_CHECKING:
    from .blocks import Page


def figure(rng: np.random.Generator, page: Page) -> None:
    """A drawing and, mostly, its caption below."""
    height = between(rng, 0.06, 0.28) * page.sheet.image.height
    if page.y + 1.25 * height > page.bottom or page.y < 0:
        return
    page.down(page.style.body, 1.0)
    wide = page.width * between(rng, 0.3, 1)
    x = page.left + (page.width - wide) * pick(rng, (0, 0.5, 0.5, 0.5))
    box = (x, page.y, x + wide, page.y + height)
    pick(rng, (_music, _music, _plot, _diagram, _picture))(rng, page, box)
    page.y += height
    if often(rng, 0.65):
        _caption(rng, page, "figure")
    page.down(page.style.body, between(rng, 0.5, 1.2))


def table(rng: np.random.Generator, page: Page) -> None:
    """Rows and columns, with the caption above or below."""
    style = page.style
    rows, columns = whole(rng, 3, 10), whole(rng, 2, 5)
    if not page.room(rows + 6):
        return
    page.down(style.body, 1.0)
    captioned, above = often(rng, 0.7), often(rng, 0.5)
    if captioned and above:
        _caption(rng, page, "table")
        page.down(style.body, 0.5)
    wide = page.width * between(rng, 0.45, 1)
    x = page.left + (page.width - wide) / 2
    mono = often(rng, 0.3)
    page.down(style.body, 0.3)
    _table_rule(page, x, wide, 2)
    for row in range(rows):
        page.down(style.body)
        for column in range(columns):
            face = style.bold if row == 0 and not mono else style.mono if mono else style.body
            text = _entry(rng, row, column)
            if face.length(text) < wide / columns:
                page.sheet.write(text, x + wide * (column + 0.05) / columns, page.y, face)
        if row == 0:
            _table_rule(page, x, wide, 1)
    _table_rule(page, x, wide, 2)
    page.down(style.body, 0.3)
    if captioned and not above:
        _caption(rng, page, "table")
    page.down(style.body, 0.7)


def _table_rule(page: Page, x: float, wide: float, width: int) -> None:
    y = page.y + 0.35 * page.style.body.height
    page.sheet.pen.line((x, y, x + wide, y), fill=255, width=width)


def _entry(rng: np.random.Generator, row: int, column: int) -> str:
    if row == 0 or column == 0 or often(rng, 0.4):
        return prose.word(rng)
    return f"{digits(rng, whole(rng, 1, 3))}.{digits(rng, 2)}"


def _caption(rng: np.random.Generator, page: Page, kind: str) -> None:
    """A row with the number and the words, which are answers if the page has no other such row."""
    style = page.style
    page.down(style.body, 1.2)
    number, text = prose.label(rng), prose.caption(rng)
    start = f"{kind.title()} {number}"
    caption = f"{start}{pick(rng, (': ', ': ', '. '))}{text}"
    single = f"{kind} number" not in page.taken
    answers = {f"{kind} number": number, f"{kind} caption": text}
    if not single or style.body.length(caption) > page.width:
        caption, answers = start, {f"{kind} number": number} if single else {}
    page.taken.add(f"{kind} number")
    page.write(caption, style.body, at=pick(rng, (0.5, 0.5, 0.5, 0.0)), answers=answers)


def formula(rng: np.random.Generator, page: Page) -> None:
    """Something that looks like mathematics, perhaps numbered."""
    style = page.style
    page.down(style.body, 1.8)
    sides = [
        f"{pick(rng, 'abcdfxyz')}{pick(rng, ('', '(t)', '2'))}" for _ in range(whole(rng, 2, 6))
    ]
    page.write(
        pick(rng, (" + ", " = ", " - ")).join(sides) + f" = {whole(rng, 0, 9)}",
        style.italic,
        at=0.5,
    )
    if often(rng, 0.4):
        page.write(f"({whole(rng, 1, 40)})", style.body, at=1.0)
    page.down(style.body, 0.8)


def _music(rng: np.random.Generator, page: Page, box: Box) -> None:
    """Staves with notes."""
    left, top, right, bottom = box
    pen, gap = page.sheet.pen, page.style.body.size * between(rng, 0.3, 0.5)
    y = top + gap
    while y + 5 * gap < bottom:
        for line in range(5):
            pen.line((left, y + line * gap, right, y + line * gap), fill=200)
        for x in np.arange(left + 3 * gap, right - gap, gap * between(rng, 2, 5)).tolist():
            note = y + between(rng, -1, 5) * gap
            pen.ellipse((x, note, x + 1.3 * gap, note + gap), fill=255)
            pen.line((x + 1.3 * gap, note + gap / 2, x + 1.3 * gap, note - 3 * gap), fill=255)
        y += between(rng, 7, 10) * gap


def _plot(rng: np.random.Generator, page: Page, box: Box) -> None:
    """Axes and a curve or points."""
    left, top, right, bottom = box
    pen = page.sheet.pen
    if often(rng, 0.5):
        pen.rectangle(box, outline=255)
    else:
        pen.line((left, top, left, bottom, right, bottom), fill=255)
    xs = np.linspace(left + 5, right - 5, 40)
    middle, swing = (top + bottom) / 2, (bottom - top) * 0.4
    ys = middle + swing * np.sin(xs / (right - left) * between(rng, 2, 20)) * rng.random(40) ** 0.3
    points = np.stack([xs, ys], 1)
    if often(rng, 0.5):
        pen.line(points.ravel().tolist(), fill=200, width=2)
    else:
        for x, y in points.tolist():
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), outline=255)


def _diagram(rng: np.random.Generator, page: Page, box: Box) -> None:
    """Boxes with words, joined by lines."""
    left, top, right, bottom = box
    pen, face = page.sheet.pen, page.style.body
    centres = []
    for _ in range(whole(rng, 2, 6)):
        text = words.invented(rng).lower()
        wide, high = face.length(text) + 12, face.height * 1.6
        if wide >= right - left or high >= bottom - top:
            continue
        x, y = between(rng, left, right - wide), between(rng, top, bottom - high)
        pen.rectangle((x, y, x + wide, y + high), outline=255, fill=0)
        page.sheet.write(text, x + 6, y + high * 0.7, face)
        centres.append((x + wide / 2, y + high))
    for start, stop in zip(centres, centres[1:], strict=False):
        pen.line((*start, *stop), fill=200)


def _picture(rng: np.random.Generator, page: Page, box: Box) -> None:
    """Grey shapes."""
    left, top, right, bottom = box
    pen = page.sheet.pen
    pen.rectangle(box, fill=whole(rng, 0, 120), outline=255)
    for _ in range(whole(rng, 2, 12)):
        xs, ys = (
            sorted(between(rng, left, right) for _ in "ab"),
            sorted(between(rng, top, bottom) for _ in "ab"),
        )
        shape = weighted(rng, {pen.rectangle: 1, pen.ellipse: 1})
        shape((xs[0], ys[0], xs[1], ys[1]), fill=whole(rng, 0, 255))
