# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Title pages: the title, who wrote it, when, and of which version it is."""

import dataclasses

import numpy as np

from . import blocks, lists, prose
from .blocks import Page
from .chance import between, often, pick, whole
from .fonts import Face


def print_title(rng: np.random.Generator, page: Page) -> None:
    """Sets the first page of a manual: with rules, as Texinfo does, or as LaTeX does."""
    if often(rng, 0.3):
        _ruled(rng, page)
    else:
        _centred(rng, page)


def _title(rng: np.random.Generator, page: Page, face: Face, at: float) -> None:
    """The title in one row, or it would not be one answer."""
    text = prose.title(rng)
    while face.length(text) > page.width and " " in text:
        text = text.rsplit(" ", 1)[0]
    while face.length(text) > page.width:
        text = text[:-1]
    page.write(text, face, at=at, answers={"title": text})


def _dated(rng: np.random.Generator, page: Page, at: float) -> None:
    """The version and the date, in one row or two; either may be missing."""
    style = page.style
    date, version = prose.date(rng), prose.version(rng)
    shown = pick(rng, ("Version {}", "version {}", "v{}", "Release {}", "for version {}")).format(
        version
    )
    with_date, with_version = often(rng, 0.9), often(rng, 0.6)
    if with_date and with_version and often(rng, 0.5):
        text = pick(rng, ("{v}, {d}", "{v} ({d})", "{d} {v}")).format(v=shown, d=date)
        page.write(text, style.body, at=at, answers={"date": date, "version": version})
        return
    if with_version:
        page.write(shown, style.body, at=at, answers={"version": version})
        page.down(style.body)
    if with_date:
        before = pick(rng, ("", "", "", "Printed: ", "Last revised ", "Updated "))
        page.write(before + date, style.body, at=at, answers={"date": date})


def _centred(rng: np.random.Generator, page: Page) -> None:
    """The title in the middle; a few lines below it the text begins, or nothing more."""
    style = page.style
    alone = often(rng, 0.25)
    page.y += between(rng, 0.0, 0.25 if alone else 0.08) * page.sheet.image.height
    at = 0.0 if often(rng, 0.06) else 0.5
    face = dataclasses.replace(style.body, size=round(style.body.size * between(rng, 1.5, 2.3)))
    if often(rng, 0.4):
        face = dataclasses.replace(face, file=style.heads[0].file)
    page.down(face)
    _title(rng, page, face, at)
    page.down(style.body, between(rng, 0.5, 1.5))
    order = [_authors, _dated]
    for part in order if often(rng, 0.8) else order[::-1]:
        page.down(style.body, between(rng, 1, 2))
        part(rng, page, at)
    page.down(style.body, between(rng, 1, 2.5))
    if alone:
        return
    if often(rng, 0.5):
        _abstract(rng, page)
    if often(rng, 0.45):
        lists.contents(rng, page, most=whole(rng, 4, 20))
    y = page.bottom + 2 * style.body.height
    if often(rng, 0.8):
        page.write("1", style.body, at=0.5, y=y, answers={"page number": "1"})
    _below(rng, page)


def _below(rng: np.random.Generator, page: Page) -> None:
    """The text that begins on the title page; its headings are no answers there."""
    blocks.fill(rng, page)
    page.headings.clear()
    page.numbers.clear()


def _authors(rng: np.random.Generator, page: Page, at: float) -> None:
    page.write(prose.person(rng), page.style.body, at=at)
    if often(rng, 0.4):
        page.down(page.style.mono)
        name = prose.word(rng)
        page.write(f"{name}@{prose.word(rng)}.org", page.style.mono, at=at)


def _abstract(rng: np.random.Generator, page: Page) -> None:
    style = page.style
    page.write("Abstract", style.bold, at=0.5)
    left, width = page.left, page.width
    page.left, page.width = left + 0.08 * width, 0.84 * width
    page.prose(
        prose.paragraph(rng, whole(rng, 2, 5)),
        dataclasses.replace(style.body, size=max(8, round(style.body.size * 0.9))),
    )
    page.left, page.width = left, width
    page.down(style.body, 1.5)


def _ruled(rng: np.random.Generator, page: Page) -> None:
    """Large letters above a thick rule, the authors above a thinner one at the foot."""
    style = page.style
    height = page.sheet.image.height
    page.y += between(rng, 0.03, 0.22) * height
    face = dataclasses.replace(style.bold, size=round(style.body.size * between(rng, 1.8, 2.8)))
    page.down(face)
    _title(rng, page, face, 0.0)
    page.y += 0.45 * face.height
    page.rule(page.y, width=3)
    at_foot = often(rng, 0.35)
    if not at_foot:
        page.down(style.body, 1.2)
        _dated(rng, page, 1.0)
    page.y = max(page.y + 3 * style.body.height, between(rng, 0.6, 0.82) * height)
    for _ in range(whole(rng, 1, 4)):
        page.down(style.bold)
        page.write(prose.person(rng), style.bold)
    page.rule(page.y + 0.6 * style.body.height, width=2)
    if at_foot:
        page.down(style.body, 1.8)
        _dated(rng, page, 0.0)
