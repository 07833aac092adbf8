# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The upper part of a receipt: who sold, where, when, and under which number."""

import dataclasses

import numpy as np

from . import phrases, words
from .chance import between, digits, often, pick, weighted, whole
from .facts import Facts, code, dated
from .roll import Cell, Roll, centre, left, right

Pairs = list[tuple[str, str]]  # labels and values


def print_header(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Prints the company, its numbers and its address."""
    if often(rng, 0.07):
        _logo(rng, roll)
    if often(rng, 0.08):
        roll.row(centre(pick(rng, (words.invented(rng).lower(), digits(rng, 7)))), face=roll.big)
    if often(rng, 0.05):
        roll.paragraph(pick(rng, phrases.TITLES))
    at = 0.0 if often(rng, 0.08) else 0.5
    _company(rng, roll, facts.company, at)
    lines = [words.company_number(rng)] if often(rng, 0.8) else []
    lines += words.address(rng) if often(rng, 0.95) else []
    lines += [words.telephone(rng)] if often(rng, 0.75) else []
    lines += [words.gst_number(rng)] if often(rng, 0.7) else []
    for text in lines:
        roll.paragraph(facts.cased(text), at)
    if often(rng, 0.65):
        roll.feed(between(rng, 0, 1.5))
        face = weighted(rng, {roll.body: 4, roll.bold: 3, roll.big: 2})
        roll.paragraph(pick(rng, phrases.TITLES), at, face=face)
    if often(rng, 0.07):
        _customer(rng, roll, facts)


def _company(rng: np.random.Generator, roll: Roll, name: str, at: float) -> None:
    """The name, in one row or in two, plain or emphasised."""
    face = weighted(rng, {roll.body: 4, roll.bold: 3, roll.big: 5})
    parts = name.split()
    if often(rng, 0.06) and len(parts) > 2:
        half = len(parts) // 2
        roll.paragraph(" ".join(parts[:half]), at, face, field="company")
        parts = parts[half:]
    text = " ".join(parts)
    if not roll.fits(text, face) and roll.fits(text, face.stretched(wide=1.5)):
        face = face.stretched(wide=0.7)  # printers squeeze rather than break a name
    elif not roll.fits(text, face) and often(rng, 0.6):
        face = roll.body
    roll.paragraph(text, at, face, field="company")


def _logo(rng: np.random.Generator, roll: Roll) -> None:
    """A sign above the name."""
    wide, high = roll.width * between(rng, 0.15, 0.5), roll.body.height * between(rng, 2, 6)
    x, top = roll.start + (roll.width - wide) / 2, roll.y + 4
    shape = pick(rng, (roll.sheet.pen.ellipse, roll.sheet.pen.rectangle))
    fill = pick(rng, (None, None, 255, 160, 90))
    shape((x, top, x + wide, top + high), outline=255, width=whole(rng, 2, 6), fill=fill)
    for _ in range(whole(rng, 0, 5)):
        start, stop = (sorted(rng.random(2)) for _ in range(2))
        part = x + wide * start[0], top + high * stop[0], x + wide * start[1], top + high * stop[1]
        pick(rng, (roll.sheet.pen.ellipse, roll.sheet.pen.rectangle))(part, fill=whole(rng, 0, 255))
    roll.y += high + 8


def _customer(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """To whom was sold: another company."""
    roll.feed(between(rng, 0, 1))
    if often(rng, 0.5):
        roll.row(left(pick(rng, ("BILL TO:", "SOLD TO :", "Customer:", "M/S:"))))
    roll.paragraph(facts.cased(words.company(rng)), at=0.0, face=pick(rng, (roll.body, roll.bold)))
    for text in words.address(rng):
        roll.paragraph(facts.cased(text), at=0.0)


def print_numbers(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Prints numbers of the receipt and who sold, and the date if that is its place."""
    if often(rng, 0.6):
        roll.separate()
    pairs = [
        (facts.cased(pick(rng, phrases.NUMBERS if often(rng, 0.5) else phrases.PEOPLE)), code(rng))
        for _ in range(whole(rng, 1, 6))
    ]
    style = weighted(rng, {"list": 2.7, "two": 5.3, "plain": 2.5})
    {"list": _listed, "two": _twofold, "plain": _plain}[style](rng, roll, facts, pairs)


def _listed(rng: np.random.Generator, roll: Roll, facts: Facts, pairs: Pairs) -> None:
    """A label and its value a row."""
    at = between(rng, 0.25, 0.48)
    place = {"top": whole(rng, 0, len(pairs)), "goods": len(pairs)}.get(facts.date_at, -1)
    for index in range(len(pairs) + 1):
        if index == place:
            _dated_row(rng, roll, facts, at)
        if index < len(pairs):
            label, value = pairs[index]
            if roll.fits(f"{label}  ", share=at):
                value = f"{facts.colon.strip()} {value}".strip()
                roll.row(left(label), left(value, at=at))
            else:
                roll.paragraph(f"{label}{facts.colon} {value}", at=0.0)


def _dated_row(rng: np.random.Generator, roll: Roll, facts: Facts, at: float) -> None:
    label = facts.cased(pick(rng, phrases.DATES))
    text = dated(rng, facts, label=False)
    if often(rng, 0.8) and roll.fits(f"{label}  ", share=at):
        mark = f"{facts.colon.strip()} " if often(rng, 0.6) else ""
        roll.row(left(label), Cell(mark + text, at=at, field="date", answer=facts.date))
    else:
        shown = f"{label}{facts.colon or ' '} {text}"
        roll.row(Cell(shown, field="date", answer=facts.date))


def _twofold(rng: np.random.Generator, roll: Roll, facts: Facts, pairs: Pairs) -> None:
    """Two labels with their values a row; the date is more often on the right."""
    cells = [Cell(f"{label}{facts.colon} {value}") for label, value in pairs]
    if facts.date_at != "end":
        text = dated(rng, facts, label=often(rng, 0.75))
        place = pick(rng, (0, 1, 1, 1, 1, 1, 1, 3)) if facts.date_at == "top" else len(cells)
        cells.insert(min(place, len(cells)), Cell(text, field="date", answer=facts.date))
    second = between(rng, 0.54, 0.7)
    flush = often(rng, 0.45)
    while cells:
        row = [cells.pop(0)]
        if row[0].field and often(rng, 0.35):  # alone, on the right
            roll.row(dataclasses.replace(row[0], at=1.0, align=1.0))
            continue
        if cells and _side_by_side(roll, row[0].text, cells[0].text, second, flush):
            at, align = (1.0, 1.0) if flush else (second, 0.0)
            row.append(dataclasses.replace(cells.pop(0), at=at, align=align))
        roll.row(*row)


def _side_by_side(roll: Roll, first: str, other: str, second: float, flush: bool) -> bool:
    if flush:
        return roll.fits(f"{first}   {other}")
    return roll.fits(f"{first}  ", share=second) and roll.fits(other, share=1 - second)


def _plain(rng: np.random.Generator, roll: Roll, facts: Facts, pairs: Pairs) -> None:
    """The date and some numbers in a row, without labels."""
    before = whole(rng, 0, len(pairs)) if often(rng, 0.4) else 0
    for label, value in pairs[:before]:
        roll.paragraph(f"{label} {value}", at=0.0)
    if facts.date_at != "end":
        text = dated(rng, facts, label=often(rng, 0.15))
        other = f"{pick(rng, phrases.NUMBERS)} {digits(rng, 5)}" if often(rng, 0.5) else code(rng)
        flip = often(rng, 0.6)
        cell = Cell(text, at=float(flip), align=float(flip), field="date", answer=facts.date)
        beside = roll.fits(f"{text}   {other}") and often(rng, 0.8)
        if not beside and often(rng, 0.3):
            cell = dataclasses.replace(cell, at=0.5, align=0.5)
        roll.row(cell, *([left(other) if flip else right(other)] if beside else []))
    for label, value in pairs[before : before + 3]:
        roll.paragraph(f"{label} {value}", at=0.0)
