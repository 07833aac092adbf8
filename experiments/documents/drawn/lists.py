# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables of contents and indexes."""

import numpy as np

from . import prose
from .blocks import Page
from .chance import between, often, pick, whole
from .fonts import Face


def contents(rng: np.random.Generator, page: Page, most: int = 80) -> None:
    """A table of contents; its entries are no headings."""
    style = page.style
    page.down(style.heads[0])
    line = page.write("Contents", style.heads[0])
    if line is not None and most > 20:  # on a page of its own
        page.headings.append((line, "Contents", ""))
    dotted, number = often(rng, 0.5), whole(rng, 1, 9)
    for _ in range(most):
        if not page.room(4):
            return
        level = pick(rng, (0, 1, 1, 2))
        page.down(style.body, 1.6 if level == 0 else 1)
        number += pick(rng, (0, 0, 1, 2))
        face = style.bold if level == 0 else style.body
        text = f"{prose.section(rng, level + 1)}  {prose.heading(rng)}"
        inset = level * 2 * face.size
        page.left, page.width = page.left + inset, page.width - inset
        line = _entry(page, text, str(number), dotted and level > 0, face)
        page.left, page.width = page.left - inset, page.width + inset
        if style.link[0] and line is not None:
            page.sheet.colours.append((page.sheet.lines[line].box, style.link))
    page.down(style.body, 1)


def index(rng: np.random.Generator, page: Page) -> None:
    """An index in two columns."""
    style, left, width = page.style, page.left, page.width
    if often(rng, 0.6):
        page.down(style.heads[0])
        line = page.write("Index", style.heads[0])
        if line is not None:
            page.headings.append((line, "Index", ""))
    top, dotted = page.y, often(rng, 0.6)
    page.width = 0.46 * width
    last = page.bottom if often(rng, 0.7) else between(rng, top, page.bottom)
    for start in (left, left + 0.54 * width):
        page.left, page.y = start, top
        while page.room(1) and page.y < last:
            page.down(style.body)
            if often(rng, 0.06):
                page.down(style.body)
                page.write(pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"), style.bold)
            else:
                face = style.mono if often(rng, 0.4) else style.body
                _entry(page, prose.heading(rng)[:22], str(whole(rng, 1, 300)), dotted, face)
    page.left, page.width = left, width


def _entry(page: Page, text: str, number: str, dotted: bool, face: Face) -> int | None:
    """Words on the left, a number on the right, perhaps dots between them.

    Returns:
        The line of the words, if they were written.
    """
    style = page.style
    while face.length(text) > page.width * 0.8 and " " in text:
        text = text.rsplit(" ", 1)[0]
    line = page.write(text, face)
    page.write(number, style.body, at=1.0)
    start = page.left + face.length(text) + style.body.size
    stop = page.left + page.width - style.body.length(number) - style.body.size
    if dotted and stop - start > 3 * style.body.size:
        page.sheet.dashes(". ", start, stop, page.y, style.body)
    return line
