# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pages of manuals that are drawn, unlimited: as LaTeX, Texinfo and R set them."""

import dataclasses

import numpy as np

from . import frames, looks, prose, titles
from .blocks import Page, Style, fill
from .chance import between, often, pick, weighted, whole
from .document import Document, Sheet
from .fonts import Face, of_kind


def draw_page(rng: np.random.Generator) -> Document:
    """Draws a page of a manual with those of its fields that it has.

    They are "page number", "running head", "running foot", "first heading", "last heading",
    "section number", "figure number", "table number", "figure caption", "table caption", "first
    line number", "last line number", and on title pages "title", "date", "version". The same state
    of the generator and the same fonts give the same page.
    """
    width = whole(rng, 800, 1240)
    height = round(width * weighted(rng, {2**0.5: 6, 11 / 8.5: 3, between(rng, 1.2, 1.6): 1}))
    style = _style(rng, width)
    sheet = Sheet(width, height)
    margin = between(rng, 0.09, 0.24) * width
    shift = rng.normal() * 0.02 * width
    top, bottom = between(rng, 0.07, 0.16) * height, between(rng, 0.84, 0.94) * height
    page = Page(sheet, style, left=margin + shift, width=width - 2 * margin, y=top, bottom=bottom)
    if often(rng, 0.12):
        titles.print_title(rng, page)
    else:
        _running(rng, page)
        if often(rng, 0.1):
            _two_columns(rng, page)
        else:
            fill(rng, page)
    page.mark_headings()
    if often(rng, 0.9):
        return looks.develop(rng, sheet, frames.exact(sheet), looks.rendered(rng))
    frame = frames.scanned(rng, sheet)
    return looks.develop(rng, sheet, frame.within(max(width, height)), looks.scanned(rng))


def _style(rng: np.random.Generator, width: int) -> Style:
    """The faces and distances of a manual."""
    kind = weighted(rng, {"serif": 8, "sans": 2})
    family = pick(rng, of_kind(kind))
    if often(rng, 0.5):
        family = next((f for f in of_kind("serif") if f.name == "Latin Modern Roman"), family)
    size = round(width * between(rng, 0.0145, 0.0205))
    body = Face(file=family.regular, size=size)
    heads = pick(rng, of_kind("sans")) if often(rng, 0.25) else family
    largest = between(rng, 1.25, 2.0)
    steps = (largest, 1 + (largest - 1) * 0.55, max(1.15, 1 + (largest - 1) * 0.25))
    return Style(
        body=body,
        bold=Face(file=family.bold, size=size),
        italic=Face(file=family.italic, size=size),
        mono=Face(file=pick(rng, of_kind("mono")).regular, size=max(8, round(size * 0.93))),
        heads=tuple(Face(file=heads.bold, size=round(size * step)) for step in steps),
        pitch=between(rng, 1.15, 1.4),
        numbered=often(rng, 0.75),
        indent=between(rng, 1, 2) * size if often(rng, 0.6) else 0.0,
        gap=between(rng, 0.3, 0.9) if often(rng, 0.6) else 0.0,
        justified=often(rng, 0.85),
    )


def _running(rng: np.random.Generator, page: Page) -> None:
    """The page number, the running head and the running foot."""
    number = prose.roman(whole(rng, 1, 19)) if often(rng, 0.05) else str(whole(rng, 1, 420))
    style = weighted(rng, {"foot": 5, "head": 5, "both": 1.5, "none": 0.3})
    if style in ("head", "both"):
        shown = number if style == "head" and often(rng, 0.9) else ""
        _row(
            rng,
            page,
            page.y - between(rng, 1.2, 2.2) * page.style.body.height,
            "running head",
            shown,
        )
        number = "" if shown else number
    if style != "none" and number:
        y = page.bottom + between(rng, 1.6, 3) * page.style.body.height
        foot = often(rng, 0.15)
        _row(rng, page, y, "running foot" if foot else "", number)


def _row(rng: np.random.Generator, page: Page, y: float, field: str, number: str) -> None:
    """A row above or below the text: words, or a page number, or both apart."""
    style = page.style
    face = weighted(rng, {style.body: 5, style.italic: 2, style.bold: 1.5})
    face = dataclasses.replace(face, size=max(8, round(face.size * pick(rng, (1, 1, 0.9)))))
    left_number = often(rng, 0.3)
    if field:
        text = prose.heading(rng)
        if often(rng, 0.4):
            text = f"{pick(rng, ('Chapter', 'Section', 'Appendix'))} {whole(rng, 1, 12)}: {text}"
        elif often(rng, 0.2):
            text = f"{prose.section(rng, 2)} {text}"
        if often(rng, 0.15):
            text = text.upper()
        at = float(left_number) if number else pick(rng, (0.0, 0.5, 1.0))
        page.write(text, face, at=at, y=y, answers={field: text})
        if often(rng, 0.3):
            below = y + 0.4 * face.height
            page.rule(below)
    if number:
        at = (0.0 if left_number else 1.0) if field else weighted(rng, {0.5: 6, 1.0: 1, 0.0: 0.5})
        text = number
        if not field and often(rng, 0.12):
            text = pick(rng, ("Page {}", "- {} -", "– {} –", "page {}")).format(number)
        page.write(text, face, at=at, y=y, answers={"page number": number})


def _two_columns(rng: np.random.Generator, page: Page) -> None:
    """Fills a page in two columns."""
    left, width, top = page.left, page.width, page.y
    page.left, page.width = max(left - 0.05 * width, 10), width * 1.1
    column = page.width * 0.475
    starts = page.left, page.left + page.width - column
    page.width = column
    for start in starts:
        page.left, page.y = start, top
        fill(rng, page)
