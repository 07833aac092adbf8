# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The middle of a receipt: what was bought, what it costs, and how it was paid."""

import numpy as np

from . import phrases, words
from .chance import between, often, pick, weighted
from .facts import Facts
from .fonts import Face
from .roll import Cell, Roll, left, right

_STOPS = (0.0, 0.45, 0.68)  # where the columns before the amount begin or end


def print_goods(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Prints what was bought, between rules."""
    style = weighted(rng, {"one": 3, "two": 4, "table": 4})
    ruled = often(rng, 0.65)
    if ruled:
        roll.line()
    if style == "table" or often(rng, 0.4):
        _heads(rng, roll, facts)
        roll.line()
    spaced = between(rng, 0.3, 1) if often(rng, 0.25) else 0.0
    for item in facts.bought.items:
        if not roll.full:
            {"one": _one, "two": _two, "table": _table}[style](rng, roll, facts, item)
            roll.feed(spaced)
    if often(rng, 0.5):
        label = f"{facts.cased(pick(rng, phrases.COUNTS))}{facts.colon}"
        count = str(len(facts.bought.items))
        roll.row(left(label), left(count, at=between(rng, 0.4, 0.7)))
    if ruled or often(rng, 0.3):
        roll.line()
    elif often(rng, 0.5):
        roll.feed(between(rng, 0.3, 2))


def _heads(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """The heads of the columns."""
    first, second, third, last = pick(rng, phrases.HEADS)
    cells = [left(first), right(second, _STOPS[1]), right(third, _STOPS[2])]
    cells.append(right(last, facts.sum_at))
    if roll.fits("   ".join(cell.text for cell in cells)):
        face = pick(rng, (roll.body, roll.body, roll.bold))
        roll.row(*[cell for cell in cells if cell.text], face=face)


def _amount(facts: Facts, item: words.Item) -> Cell:
    return right(words.money(item.amount) + facts.suffix, 1.0 if facts.suffix else facts.sum_at)


def _one(rng: np.random.Generator, roll: Roll, facts: Facts, item: words.Item) -> None:
    """A row each."""
    name = facts.cased(item.name)
    if often(rng, 0.5):
        name = f"{item.count} {name}"
    while not roll.fits(f"{name}  ", share=0.7) and " " in name:
        name = name.rsplit(" ", 1)[0]
    roll.row(left(name), _amount(facts, item))


def _two(rng: np.random.Generator, roll: Roll, facts: Facts, item: words.Item) -> None:
    """The name, and below it how many at which price."""
    roll.paragraph(facts.cased(item.name), at=0.0)
    form = pick(rng, ("{n} X {p}", "{n} x {p}", "{c}  {n} X {p}", "@{n} {p}", "{n} pcs @ {p}"))
    detail = form.format(n=item.count, p=words.money(item.price), c=item.code)
    amount = _amount(facts, item)
    beside = roll.fits(f"{detail}{amount.text}     ")
    roll.row(*([left(detail, at=pick(rng, (0.0, 0.05, 0.1)))] if beside else []), amount)


def _table(rng: np.random.Generator, roll: Roll, facts: Facts, item: words.Item) -> None:
    """The name, and its numbers below the heads of the columns."""
    code = item.code if roll.fits(f"{item.code}   ", share=0.38) else ""
    first, second = (code, facts.cased(item.name)) if often(rng, 0.5) else (item.name, code)
    if roll.fits(f"{first}   ", share=0.38) or not second:
        first, second = second, first
    roll.paragraph(first, at=0.0)
    cells = [left(second)] if roll.fits(f"{second}   ", share=0.38) else []
    price = words.money(item.price)
    cells += [right(str(item.count), _STOPS[1]), right(price, _STOPS[2]), _amount(facts, item)]
    roll.row(*[cell for cell in cells if cell.text])


def print_sums(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Prints subtotal, tax, rounding, the total, and how it was paid."""
    bought = facts.bought
    face = weighted(rng, {roll.body: 5, roll.bold: 3, roll.big: 4})
    for label, cents in _before_total(rng, bought):
        _sum(roll, facts, label, cents)
    if often(rng, 0.2):
        roll.line()
    _sum(roll, facts, pick(rng, phrases.TOTALS), bought.total, face=face, field="total")
    after = face if often(rng, 0.3) else roll.body
    if often(rng, 0.2):
        roll.feed(between(rng, 0.2, 1))
    if often(rng, 0.85):
        _sum(roll, facts, pick(rng, phrases.PAYMENTS), bought.paid, face=after)
        if often(rng, 0.85):
            _sum(roll, facts, pick(rng, phrases.CHANGES), bought.paid - bought.total, face=after)


def _before_total(rng: np.random.Generator, bought: words.Purchase) -> list[tuple[str, int]]:
    """The sums that stand above the total."""
    sums = []
    if often(rng, 0.7):
        sums.append((pick(rng, phrases.SUBTOTALS), bought.net))
    if often(rng, 0.35):
        sums.append((pick(rng, phrases.DISCOUNTS), 0))
    if bought.tax or often(rng, 0.4):
        sums.append((pick(rng, phrases.TAXES), bought.tax))
    if often(rng, 0.3):
        sums.append((pick(rng, phrases.TOTALS), bought.net + bought.tax))
    if bought.rounding or often(rng, 0.45):
        sums.append((pick(rng, phrases.ROUNDINGS), bought.rounding))
    return sums


def _sum(
    roll: Roll, facts: Facts, label: str, cents: int, face: Face | None = None, field: str = ""
) -> None:
    """A label and a sum, side by side where there is room."""
    face = face or roll.body
    number = words.money(cents)
    text = number if facts.currency_apart else facts.currency + number
    value = Cell(text, at=facts.sum_at, align=1.0, field=field, answer=number)
    label = facts.cased(label) + facts.colon
    start = facts.sum_at - face.length(f"{text}  ") / roll.width
    cells = [value]
    if facts.currency_apart:
        start -= face.length("RM ") / roll.width + 0.1
        cells.append(left("RM", at=start))
    length = face.length(label) / roll.width
    at, align = facts.label_at, facts.label_align
    if align and (length > at or at > start):
        at = min(max(length, at), start)
    elif not align:
        at = min(at, start - length)
    if length > start:
        roll.paragraph(label, at=0.0, face=face)
        roll.row(*cells, face=face)
    else:
        roll.row(Cell(label, at=max(at, 0.0), align=align), *cells, face=face)
    if facts.underlined:
        roll.underline(start, face)


def print_tax(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Prints the summary of the tax, sometimes in a frame."""
    roll.feed(between(rng, 0.5, 2.5))
    top = roll.y
    bought = facts.bought
    stops = between(rng, 0.5, 0.7), between(rng, 0.86, 0.98)
    if often(rng, 0.5):
        roll.row(left("GST SUMMARY"), face=pick(rng, (roll.body, roll.bold)))
        if often(rng, 0.4):
            roll.line()
    heads = (phrases.NET_HEADS, phrases.GST_HEADS)
    cells = [right(pick(rng, head), stop) for head, stop in zip(heads, stops, strict=True)]
    roll.row(left(pick(rng, phrases.TAX_HEADS)), *cells)
    rows = [(pick(rng, phrases.RATES), bought.net, bought.tax)]
    if often(rng, 0.5):
        rows.append((pick(rng, phrases.ZERO_RATES), 0, 0))
    if often(rng, 0.35):
        rows.append(("TOTAL", bought.net, bought.tax))
    for label, net, tax in rows:
        roll.row(left(label), right(words.money(net), stops[0]), right(words.money(tax), stops[1]))
    if often(rng, 0.25):
        roll.frame(top)
