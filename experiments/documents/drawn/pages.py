# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pages of manuals that are drawn, unlimited: as LaTeX, Texinfo and R set them."""

import dataclasses

import numpy as np

from . import frames, lists, looks, prose, titles
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
    page = _page(rng, Sheet(width, height, pad=0.08), _style(rng, width))
    kind = weighted(rng, {"text": 8, "title": 1.2, "columns": 0.8, "contents": 0.5, "index": 0.5})
    if kind == "title":
        titles.print_title(rng, page)
    else:
        _running(rng, page)
        fillers = {"columns": _two_columns, "contents": lists.contents, "index": lists.index}
        fillers.get(kind, fill)(rng, page)
    page.finish()
    if often(rng, 0.94):
        return looks.develop(rng, page.sheet, frames.exact(page.sheet), looks.rendered(rng))
    frame = frames.scanned(rng, page.sheet)
    return looks.develop(rng, page.sheet, frame.within(max(width, height)), looks.scanned(rng))


def _page(rng: np.random.Generator, sheet: Sheet, style: Style) -> Page:
    """An empty page with margins; the left one is wide where lines of programs are numbered."""
    width, height = sheet.image.size
    left = between(rng, 0.09, 0.22) + (between(rng, 0.03, 0.12) if style.code_numbers else 0)
    right = between(rng, 0.08, 0.2)
    return Page(
        sheet,
        style,
        left=left * width,
        width=(1 - left - right) * width,
        y=between(rng, 0.075, 0.16) * height,
        bottom=between(rng, 0.84, 0.94) * height,
        next_number=int(10 ** between(rng, 0, 3.6)),
    )


def _style(rng: np.random.Generator, width: int) -> Style:
    """The faces and distances of a manual."""
    kind = weighted(rng, {"serif": 8, "sans": 2})
    family = pick(rng, of_kind(kind))
    if often(rng, 0.5):
        family = next((f for f in of_kind("serif") if f.name == "Latin Modern Roman"), family)
    size = round(width * between(rng, 0.0145, 0.0205))
    body = Face(file=family.regular, size=size)
    heads = pick(rng, of_kind("sans")) if often(rng, 0.25) else family
    largest = between(rng, 1.2, 1.75)
    steps = (largest, 1 + (largest - 1) * 0.55, max(1.15, 1 + (largest - 1) * 0.25))
    coded = often(rng, 0.3)
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
        code=between(rng, 4, 16) if coded else between(rng, 0, 2.5),
        code_numbers=often(rng, 0.7 if coded else 0.1),
        code_ground=whole(rng, 8, 35) if often(rng, 0.12) else 0,
        link=weighted(rng, {(0, 0, 0): 6, (20, 30, 190): 2, (190, 20, 30): 1}),
    )


def _running(rng: np.random.Generator, page: Page) -> None:
    """The page number, the running head and the running foot."""
    number = prose.roman(whole(rng, 1, 19)) if often(rng, 0.05) else _page_number(rng)
    style = weighted(rng, {"head": 6, "foot": 4.5, "both": 1, "none": 0.3})
    line = page.style.body.height
    if style in ("head", "both"):
        shown = number if style == "head" and often(rng, 0.9) else ""
        _row(rng, page, page.y - between(rng, 1.2, 2.2) * line, "running head", shown)
        number = "" if shown else number
    if style != "none" and number:
        foot = "running foot" if often(rng, 0.2) else ""
        _row(rng, page, page.bottom + between(rng, 1.6, 3) * line, foot, number)


def _page_number(rng: np.random.Generator) -> str:
    """Low numbers are more frequent, as most manuals are short."""
    return str(int(10 ** between(rng, 0, 2.8)))


def _row(rng: np.random.Generator, page: Page, y: float, field: str, number: str) -> None:
    """A row above or below the text: words, or a page number, or both apart."""
    style = page.style
    face = weighted(rng, {style.body: 6, style.italic: 1.5, style.bold: 1})
    face = dataclasses.replace(face, size=max(8, round(face.size * pick(rng, (1, 1, 0.9)))))
    number_left = often(rng, 0.15)
    if field:
        text = _running_text(rng)
        at = float(number_left) if number else pick(rng, (0.0, 0.0, 0.5, 1.0))
        if face.length(text) < 0.85 * page.width:
            page.write(text, face, at=at, y=y, answers={field: text})
        if often(rng, 0.3):
            page.rule(y + 0.4 * face.height)
    if number:
        at = (0.0 if number_left else 1.0) if field else weighted(rng, {0.5: 6, 1.0: 1, 0.0: 0.3})
        forms = ("Page {}", "- {} -", "page {}") if not field and often(rng, 0.12) else ("{}",)
        text = pick(rng, forms).format(number)
        page.write(text, face, at=at, y=y, answers={"page number": number})


def _running_text(rng: np.random.Generator) -> str:
    text = prose.heading(rng)
    if often(rng, 0.5):
        text = f"{pick(rng, ('Chapter', 'Chapter', 'Appendix'))} {whole(rng, 1, 12)}: {text}"
    elif often(rng, 0.3):
        text = f"{prose.section(rng, whole(rng, 1, 2))} {text}"
    return text.upper() if often(rng, 0.15) else text


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
    page.headings.clear()  # which of them is the first or the last one is not clear
    page.numbers.clear()
