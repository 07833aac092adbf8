# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What people and machines add to a printed sheet: handwriting, rings, stamps, holes, bar codes."""

import numpy as np

from .chance import between, often, pick, whole
from .document import Box, Sheet
from .fonts import Face, of_kind
from .roll import Roll

_STAMPS = ("POSTED", "PAID", "RECEIVED", "CHECKED", "COPY", "LUNAS", "ENTERED", "VERIFIED")


def annotate(rng: np.random.Generator, sheet: Sheet) -> None:
    """Adds notes, a ring around the total, a stamp, holes and specks to some sheets."""
    width, height = sheet.image.size
    if often(rng, 0.35):  # a number at the top, mostly on the right
        x, y = (1 - rng.random() ** 2) * 0.7 * width, between(rng, 0, 0.07) * height
        wide, high = between(rng, 0.12, 0.35) * width, between(rng, 0.015, 0.045) * height
        _scrawl(rng, sheet, (x, y, x + wide, y + high))
    if often(rng, 0.15):  # a note anywhere below
        x, y = between(rng, 0, 0.7) * width, between(rng, 0.2, 0.95) * height
        _scrawl(rng, sheet, (x, y, x + 0.25 * width, y + 0.03 * height))
    if often(rng, 0.1):
        _ring(rng, sheet, sheet.marks["total"].lines[0])
    if often(rng, 0.07):
        _stamp(rng, sheet, between(rng, 0, 0.7) * width, between(rng, 0, 0.9) * height)
    if often(rng, 0.07):  # holes of a file
        for y in (between(rng, 0.1, 0.3) * height, between(rng, 0.6, 0.8) * height):
            _disc(sheet, between(rng, 0.03, 0.2) * width, y, width * 0.03)
    for _ in range(whole(rng, 3, 20) if often(rng, 0.5) else 0):  # specks, more at the top
        x, y = rng.random() * width, rng.random() ** 3 * height
        _disc(sheet, x, y, between(rng, 0.3, 2.2))


def _disc(sheet: Sheet, x: float, y: float, radius: float) -> None:
    sheet.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _scrawl(rng: np.random.Generator, sheet: Sheet, box: Box) -> None:
    """Handwriting: curls side by side in a box, apart as digits are or joined as letters are."""
    left, top, right, bottom = box
    count = whole(rng, 1, 8)
    along = np.linspace(0, 1, 14)
    curls = []
    for place in range(count):
        turns, first, second = between(rng, 2, 10), rng.random() * 6.3, rng.random() * 6.3
        x = (place + 0.5 + 0.45 * np.sin(turns * along + first)) / count
        y = 0.5 + 0.5 * np.sin(turns * between(rng, 0.4, 1) * along + second)
        curls.append(np.stack([left + x * (right - left), top + y * (bottom - top)], 1))
    level, width = whole(rng, 100, 255), _nib(rng, sheet)
    for stroke in [np.concatenate(curls)] if often(rng, 0.35) else curls:
        sheet.pen.line(stroke.ravel().tolist(), fill=level, width=width, joint="curve")


def _nib(rng: np.random.Generator, sheet: Sheet) -> int:
    """The width of a pen's line in pixels."""
    return max(1, round(sheet.image.width / between(rng, 130, 320)))


def _stamp(rng: np.random.Generator, sheet: Sheet, x: float, y: float) -> None:
    """A rubber stamp, a little turned, pale."""
    family = pick(rng, of_kind("sans"))
    size = round(sheet.image.width * between(rng, 0.06, 0.13))
    ink = Face(file=family.bold, size=size).ink(pick(rng, _STAMPS))
    if ink is None:
        return
    mask = ink.mask.rotate(between(rng, -20, 20), expand=True)
    level = whole(rng, 50, 160)
    sheet.image.paste(level, (round(x), round(y)), mask)


def _ring(rng: np.random.Generator, sheet: Sheet, box: Box) -> None:
    """A pen's ring around something: more than one turn, and never round."""
    left, top, right, bottom = box
    wide, high = (right - left) * between(rng, 0.55, 1.1), (bottom - top) * between(rng, 0.7, 1.5)
    angle = rng.random() * 6.3 + np.linspace(0, 6.3 * between(rng, 0.9, 1.4), 40)
    away = 1 + 0.12 * np.sin(angle * between(rng, 0.4, 1.7) + rng.random() * 6.3)
    x = (left + right) / 2 + wide * away * np.cos(angle)
    y = (top + bottom) / 2 + high * away * np.sin(angle)
    points = np.stack([x, y], 1).ravel().tolist()
    sheet.pen.line(points, fill=whole(rng, 120, 255), width=_nib(rng, sheet), joint="curve")


def bar_code(rng: np.random.Generator, roll: Roll) -> None:
    """Prints a bar code."""
    x, stop = int(roll.start + roll.width * between(rng, 0, 0.25)), roll.stop - roll.width * 0.1
    top, high = roll.y + 6, roll.body.height * between(rng, 1.5, 3)
    while x < stop:
        bar, space = whole(rng, 1, 4), whole(rng, 1, 4)
        roll.sheet.pen.rectangle((x, top, x + bar - 1, top + high), fill=255)
        x += bar + space
    roll.y = top + high + 4
