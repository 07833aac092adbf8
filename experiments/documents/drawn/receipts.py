# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Receipts that are drawn, unlimited: as shops print them and as people scan them."""

import dataclasses

import numpy as np

from . import facts as contents
from . import frames, goods, header, looks, notes, phrases
from .chance import between, digits, often, pick, weighted, whole
from .document import Document
from .facts import Facts
from .roll import Cell, Roll, right

_LONGEST = 1600  # pixels of a picture's longer edge


def draw_receipt(rng: np.random.Generator) -> Document:
    """Draws a receipt with the fields "total", "date" and "company".

    The same state of the generator and the same fonts give the same receipt.
    """
    kind = weighted(rng, {"scan": 7.8, "page": 1.7, "photo": 0.5})
    roll = Roll(rng, whole(rng, 260, 420) if kind == "page" else whole(rng, 440, 760))
    _print(rng, roll, contents.choose(rng))
    notes.annotate(rng, roll.sheet)
    frame, look = {
        "scan": (frames.scanned, looks.scanned),
        "page": (frames.on_page, looks.copied),
        "photo": (frames.photographed, looks.photographed),
    }[kind]
    return looks.develop(rng, roll.sheet, frame(rng, roll.sheet).within(_LONGEST), look(rng))


def _print(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Prints a receipt from top to bottom and cuts the paper."""
    roll.feed(weighted(rng, {between(rng, 0.3, 2): 2.5, between(rng, 2, 9): 6}))
    header.print_header(rng, roll, facts)
    header.print_numbers(rng, roll, facts)
    goods.print_goods(rng, roll, facts)
    goods.print_sums(rng, roll, facts)
    tax_first = often(rng, 0.6)
    taxed = often(rng, 0.65)
    if taxed and tax_first:
        goods.print_tax(rng, roll, facts)
    if facts.date_at == "end":
        _dateline(rng, roll, facts)
    _farewell(rng, roll)
    if taxed and not tax_first:
        goods.print_tax(rng, roll, facts)
    roll.feed(weighted(rng, {between(rng, 0.5, 2): 5, between(rng, 2, 8): 2}))
    roll.cut()


def _dateline(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """The date below the sums, beside numbers that nobody reads."""
    if often(rng, 0.6):
        roll.separate()
    text = contents.dated(rng, facts, label=often(rng, 0.25))
    if often(rng, 0.4):
        longer = f"{text} SH{digits(rng, 2)} {pick(rng, ('B', 'ZJ'))}{digits(rng, 2)}"
        text = longer if roll.fits(longer) else text
    cell = Cell(text, field="date", answer=facts.date)
    other = f"{pick(rng, ('T1 R', 'POS', 'NO. ', ''))}{digits(rng, 6)}"
    if often(rng, 0.45):
        roll.row(dataclasses.replace(cell, at=0.5, align=0.5))
    else:
        roll.row(cell, *([right(other)] if roll.fits(f"{text}   {other}") else []))
    if often(rng, 0.4):
        roll.paragraph(f"{pick(rng, phrases.PEOPLE)} {contents.code(rng)}", at=0.0)


def _farewell(rng: np.random.Generator, roll: Roll) -> None:
    """The last words, perhaps with a bar code."""
    roll.feed(between(rng, 0.2, 3))
    at = 0.0 if often(rng, 0.1) else 0.5
    for _ in range(weighted(rng, {0: 0.7, 1: 1.5, 2: 3, 3: 3, 5: 2})):
        if not roll.full:
            roll.paragraph(pick(rng, phrases.FAREWELLS), at)
    if often(rng, 0.08) and not roll.full:
        notes.bar_code(rng, roll)
