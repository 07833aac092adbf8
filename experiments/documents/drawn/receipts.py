# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Receipts that are drawn, unlimited: as shops print them and as people scan them."""

import dataclasses
import string

import numpy as np

from . import degrade, words
from .chance import between, digits, often, pick, weighted, whole
from .document import Document, Sheet
from .fonts import Face
from .roll import Cell, Roll, centre, left, right
from .warp import Frame

_TITLES = (
    "TAX INVOICE",
    "INVOICE",
    "RECEIPT",
    "CASH BILL",
    "SIMPLIFIED TAX INVOICE",
    "CASH SALES",
    "OFFICIAL RECEIPT",
    "TAX INVOICE",
    "Tax Invoice",
    "GUEST CHECK",
    "- TAX INVOICE -",
    "BILL",
)
_NUMBERS = (
    "INVOICE NO",
    "RECEIPT #",
    "DOC NO",
    "BILL NO",
    "SLIP NO.",
    "RCPT NO",
    "INV NO.",
    "CHECK NO",
    "REF NO",
    "ORDER NO",
    "TRANS",
    "DOCUMENT NO",
    "TICKET",
    "Invoice No",
    "Receipt No",
    "Bill #",
)
_PEOPLE = (
    "CASHIER",
    "SALESPERSON",
    "TABLE",
    "COUNTER",
    "TERMINAL",
    "MEMBER",
    "POS",
    "STAFF",
    "Cashier",
    "PAX",
    "SERVER",
    "OPERATOR",
    "REF.",
    "CUSTOMER",
    "ATTENDANT",
    "SHIFT",
    "STATION",
    "LOCATION",
)
_DATE_LABELS = (
    "DATE",
    "Date",
    "DATE",
    "INVOICE DATE",
    "BILL DATE",
    "TARIKH",
    "BIZDATE",
    "Inv Date",
    "TRX DATE",
    "SALES DATE",
    "Bill Date",
    "DT",
    "ENTRY TIME",
    "Printed",
    "PAID DATE",
)
_TOTALS = (
    "TOTAL",
    "TOTAL",
    "Total",
    "GRAND TOTAL",
    "NET TOTAL",
    "TOTAL AMOUNT",
    "TOTAL PAYABLE",
    "TOTAL INCL. GST@6%",
    "TOTAL (INCLUSIVE OF GST)",
    "TOTAL SALES (INCLUSIVE GST)",
    "AMOUNT DUE",
    "TOTAL ROUNDED",
    "FINAL TOTAL",
    "TOTAL AFTER ADJ INCL GST",
    "NETT",
    "TOTAL RM",
    "NET AMT",
    "ROUNDED TOTAL (RM)",
    "TOTAL DUE (GST INC)",
    "TOTAL AMT PAYABLE",
    "BALANCE DUE",
    "PAY",
    "JUMLAH",
    "Total Sales (Inclusive of GST)",
    "Total Payable",
    "TOTAL TO PAY",
    "Bill Total",
)
_SUBTOTALS = (
    "SUB TOTAL",
    "SUBTOTAL",
    "SUB-TOTAL",
    "TOTAL SALES (EXCLUDING GST)",
    "GROSS AMT",
    "TOTAL EXCL GST",
    "TOTAL (EXCLUDING GST)",
    "TOTAL AMOUNT",
    "Sub Total",
    "TAXABLE AMT",
    "TOTAL",
    "AMOUNT",
)
_FAREWELLS = (
    "THANK YOU",
    "PLEASE COME AGAIN",
    "GOODS SOLD ARE NOT RETURNABLE",
    "THANK YOU. PLEASE COME AGAIN.",
    "GOODS SOLD ARE NOT REFUNDABLE",
    "EXCHANGE ARE ALLOWED WITHIN 7 DAYS WITH RECEIPT",
    "STRICTLY NO CASH REFUND",
    "*** THANK YOU ***",
    "BARANG YANG DIJUAL TIDAK BOLEH DITUKAR",
    "KEEP THE INVOICE FOR APPLICABLE RETURNS",
    "CUSTOMER COPY",
    "PRICES INCLUSIVE OF GST",
    "TERIMA KASIH SILA DATANG LAGI",
    "Goods sold are not returnable or exchangeable",
)
_SMALL_WORDS = str.maketrans(string.ascii_uppercase, string.ascii_uppercase)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a receipt says, and how it says it.

    Attributes:
        company, date: The answers.
        bought: The goods and sums.
        title: Whether words begin with capitals only.
        date_at: "top", "items" (above the goods), "sums" (below them) or "end".
        colon: What follows a label.
        currency: What precedes a sum that matters.
        columns: Where the texts of sums begin and the sums end, as parts of the printed width.
        label_align: 0 where labels of sums begin together, 1 where they end together.
        suffix: The code of the tax behind a price.
    """

    company: str
    date: str
    bought: words.Purchase
    title: bool
    date_at: str
    colon: str
    currency: str
    columns: tuple[float, float]
    label_align: float
    suffix: str


def draw_receipt(rng: np.random.Generator) -> Document:
    """Draws a receipt with its total, date and company.

    The same state of the generator and the same fonts give the same receipt.
    """
    on_page = often(rng, 0.16)
    width = whole(rng, 260, 420) if on_page else whole(rng, 420, 700)
    roll = Roll(rng, width)
    facts = _facts(rng)
    _print(rng, roll, facts)
    _annotate(rng, roll.sheet)
    frame, look = _scan(rng, roll.sheet), degrade.scanned(rng)
    if on_page:
        frame, look = _on_page(rng, roll.sheet), _page_look(rng)
    elif often(rng, 0.1):
        frame, look = _photo(rng, roll.sheet), degrade.photographed(rng)
    return degrade.develop(rng, roll.sheet, frame.within(1600), look)


def _facts(rng: np.random.Generator) -> Facts:
    """Chooses what stands on a receipt."""
    title = often(rng, 0.2)
    name = words.company(rng)
    aligned = often(rng, 0.35)
    end = between(rng, 0.86, 0.93) if often(rng, 0.25) else 1.0
    return Facts(
        company=name.title() if title else name,
        date=words.date(rng),
        bought=words.purchase(rng),
        title=title,
        date_at=weighted(rng, {"top": 5, "items": 2, "sums": 0.6, "end": 1.8}),
        colon=pick(rng, (":", " :", "", ": ")),
        currency=weighted(rng, {"": 6, "RM ": 2, "RM": 1, "$": 0.4, "MYR ": 0.1}),
        columns=(
            between(rng, 0.5, 0.78) if aligned else weighted(rng, {0.0: 4, 0.3: 1, 0.45: 1}),
            end,
        ),
        label_align=1.0 if aligned else 0.0,
        suffix=weighted(rng, {"": 4, " SR": 1, " S": 1, " T": 0.6, " Z": 0.4, " ZRL": 0.3}),
    )


def _print(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Prints a receipt from top to bottom and cuts the paper."""
    roll.feed(weighted(rng, {between(rng, 0.3, 2): 4, between(rng, 2, 7): 4}))
    _header(rng, roll, facts)
    dated = _meta(rng, roll, facts)
    _goods(rng, roll, facts)
    _sums(rng, roll, facts)
    if often(rng, 0.55):
        _tax_table(rng, roll, facts)
    if not dated:
        _dateline(rng, roll, facts)
    _farewell(rng, roll)
    roll.feed(weighted(rng, {between(rng, 0.5, 2): 5, between(rng, 2, 9): 2}))
    roll.sheet.cut(int(min(roll.y + roll.body.height, roll.sheet.image.height)))


def _cased(facts: Facts, text: str) -> str:
    return text.title() if facts.title else text


def _header(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """The company, its numbers and its address."""
    if often(rng, 0.1):
        _logo(rng, roll)
    if often(rng, 0.08):
        roll.row(centre(pick(rng, (words.invented(rng).lower(), digits(rng, 7)))), face=roll.big)
    if often(rng, 0.06):
        roll.paragraph(pick(rng, _TITLES))
    at = 0.0 if often(rng, 0.12) else 0.5
    face = weighted(rng, {roll.body: 4, roll.bold: 3, roll.big: 3})
    name = facts.company
    if often(rng, 0.12) and len(name.split()) > 2 and face is not roll.big:
        half = len(name.split()) // 2
        roll.paragraph(" ".join(name.split()[:half]), at, face, field="company")
        name = " ".join(name.split()[half:])
    roll.paragraph(name, at, face, field="company")
    lines = [words.company_number(rng)] if often(rng, 0.8) else []
    lines += words.address(rng) + ([words.telephone(rng)] if often(rng, 0.75) else [])
    lines += [words.gst_number(rng)] if often(rng, 0.7) else []
    for text in lines:
        roll.paragraph(_cased(facts, text), at)
    if often(rng, 0.6):
        roll.feed(between(rng, 0, 1.2))
        roll.paragraph(pick(rng, _TITLES), at, face=pick(rng, (roll.body, roll.bold, roll.big)))


def _logo(rng: np.random.Generator, roll: Roll) -> None:
    """A sign above the name."""
    wide, high = roll.width * between(rng, 0.15, 0.5), roll.body.height * between(rng, 2, 6)
    x = roll.start + (roll.width - wide) / 2
    box = (x, roll.y + 4, x + wide, roll.y + 4 + high)
    shape = pick(rng, (roll.sheet.pen.ellipse, roll.sheet.pen.rectangle))
    shape(box, outline=255, width=whole(rng, 2, 6), fill=pick(rng, (None, 255, 160)))
    roll.y += high + 8


def _dated(rng: np.random.Generator, facts: Facts, label: bool) -> str:
    """The date as it stands on the receipt, perhaps with a label and the time."""
    text = facts.date
    if often(rng, 0.55):
        text += pick(rng, (" ", " ", "  ", " - ")) + words.clock(rng)
    return f"{pick(rng, _DATE_LABELS)}{facts.colon or ' '} {text}" if label else text


def _meta(rng: np.random.Generator, roll: Roll, facts: Facts) -> bool:
    """Numbers of the receipt and who sold; whether the date is among them."""
    if often(rng, 0.5):
        roll.line() if often(rng, 0.5) else roll.feed(between(rng, 0.2, 1.5))
    pairs = [
        (pick(rng, _NUMBERS if often(rng, 0.5) else _PEOPLE), _code(rng))
        for _ in range(whole(rng, 0, 5))
    ]
    dated = facts.date_at in ("top", "items")
    style = weighted(rng, {"list": 4, "two": 4, "plain": 3})
    rows = {"list": _listed, "two": _twofold, "plain": _plain}[style]
    rows(rng, roll, facts, pairs, dated)
    return dated


def _code(rng: np.random.Generator) -> str:
    """A number or a name as receipts have them."""
    if often(rng, 0.3):
        return words.invented(rng)
    return pick(rng, ("", "CS", "V001-", "R", "#", "")) + digits(rng, whole(rng, 1, 9))


def _listed(
    rng: np.random.Generator, roll: Roll, facts: Facts, pairs: list[tuple[str, str]], dated: bool
) -> None:
    """A label and its value a row."""
    at = between(rng, 0.22, 0.42)
    place = len(pairs) if facts.date_at == "items" else whole(rng, 0, len(pairs))
    for index in range(len(pairs) + 1):
        if index == place and dated:
            label = _cased(facts, pick(rng, _DATE_LABELS))
            text = _dated(rng, facts, label=False)
            if often(rng, 0.65) and roll.fits(label + "  ", share=at):
                mark = facts.colon.strip() + " " if often(rng, 0.6) else ""
                roll.row(left(label), Cell(mark + text, at=at, field="date", answer=facts.date))
            else:
                shown = f"{label}{facts.colon or ' '} {text}"
                roll.row(Cell(shown, field="date", answer=facts.date))
        if index < len(pairs):
            label, value = pairs[index]
            if roll.fits(label + "  ", share=at):
                roll.row(left(label), left(f"{facts.colon.strip()} {value}".strip(), at=at))
            else:
                roll.row(left(f"{label}{facts.colon} {value}"))


def _twofold(
    rng: np.random.Generator, roll: Roll, facts: Facts, pairs: list[tuple[str, str]], dated: bool
) -> None:
    """Two labels with their values a row; the date is on the right, seldom on the left."""
    texts = [f"{_cased(facts, label)}{facts.colon} {value}" for label, value in pairs]
    place = whole(rng, 0, 3) if facts.date_at == "top" else len(texts)
    second = between(rng, 0.52, 0.68)
    if dated:
        texts.insert(min(place, len(texts)), _dated(rng, facts, label=often(rng, 0.75)))
    while texts:
        row, at, align = [], 0.0, 0.0
        while texts and len(row) < 2:
            text = texts[0]
            if row and not (
                roll.fits(row[0].text + "  ", share=second) and roll.fits(text, share=1 - second)
            ):
                break
            texts.pop(0)
            named = dated and facts.date in text
            field, answer = ("date", facts.date) if named else ("", "")
            row.append(Cell(text, at=at, align=align, field=field, answer=answer))
            at, align = second, 0.0
        roll.row(*row)


def _plain(
    rng: np.random.Generator, roll: Roll, facts: Facts, pairs: list[tuple[str, str]], dated: bool
) -> None:
    """The date and some numbers in a row, without labels."""
    if dated:
        cells = [Cell(_dated(rng, facts, label=often(rng, 0.15)), field="date", answer=facts.date)]
        other = right(f"{pick(rng, _NUMBERS)} {digits(rng, 5)}" if often(rng, 0.5) else _code(rng))
        if often(rng, 0.3):
            cells = [dataclasses.replace(cells[0], at=1.0, align=1.0)]
            other = left(_code(rng))
        if roll.fits(cells[0].text + other.text + "   ") and often(rng, 0.8):
            cells.append(other)
        roll.row(*cells)
    for label, value in pairs[:3]:
        roll.paragraph(f"{label} {value}", at=0.0)


def _goods(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """What was bought."""
    style = weighted(rng, {"one": 3, "two": 4, "table": 4})
    ruled = often(rng, 0.6)
    if ruled:
        roll.line()
    if style == "table" or often(rng, 0.35):
        _heading(rng, roll, facts)
        roll.line()
    for item in facts.bought.items:
        if roll.full:
            break
        _item(rng, roll, facts, item, style)
        if often(rng, 0.15):
            roll.feed(0.6)
    if often(rng, 0.5):
        count = len(facts.bought.items)
        label = pick(rng, ("TOTAL QTY", "ITEM(S)", "Item Count", "TOTAL QUANTITY", "ITEMS", "QTY"))
        roll.row(left(f"{label}{facts.colon}"), left(str(count), at=between(rng, 0.35, 0.7)))
    if ruled or often(rng, 0.3):
        roll.line()
    elif often(rng, 0.5):
        roll.feed(between(rng, 0.3, 2))


_STOPS = (0.0, 0.45, 0.66, 1.0)


def _heading(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """The heads of the columns."""
    heads = pick(
        rng,
        (
            ("ITEM", "QTY", "U/P", "AMOUNT"),
            ("DESCRIPTION", "QTY", "PRICE", "TOTAL"),
            ("QTY", "DESCRIPTION", "", "AMOUNT"),
            ("CODE/DESC", "PRICE", "DISC", "AMOUNT"),
            ("Item", "Qty", "S/Price", "Amount"),
            ("DESCRIPTION", "", "", "AMOUNT(RM)"),
        ),
    )
    cells = [
        left(heads[0]),
        *map(right, heads[1:3], _STOPS[1:3]),
        right(heads[3], facts.columns[1]),
    ]
    roll.row(*[cell for cell in cells if cell.text], face=pick(rng, (roll.body, roll.bold)))


def _item(rng: np.random.Generator, roll: Roll, facts: Facts, item: words.Item, style: str) -> None:
    """One of the goods, in one row or two."""
    name = _cased(facts, item.name)
    price, amount = words.money(item.price), words.money(item.amount) + facts.suffix
    at = facts.columns[1] if facts.columns[1] < 1 and not facts.suffix else 1.0
    if style == "one":
        while not roll.fits(f"{name}  ", share=0.7) and " " in name:
            name = name.rsplit(" ", 1)[0]
        lead = f"{item.count} " if often(rng, 0.5) else ""
        roll.row(left(lead + name), right(amount, at))
    elif style == "two":
        roll.paragraph(name, at=0.0)
        detail = pick(
            rng, ("{n} X {p}", "{n} x {p}", "{c}  {n} X {p}", "@{n} {p}", "{n} pcs @ {p}")
        )
        text = detail.format(n=item.count, p=price, c=item.code)
        if roll.fits(text + amount + "   "):
            roll.row(left(text, at=pick(rng, (0.0, 0.05, 0.1))), right(amount, at))
        else:
            roll.row(right(amount, at))
    else:
        roll.paragraph(name, at=0.0)
        code = item.code if roll.fits(item.code + "   ", share=0.4) else ""
        cells = [left(code), right(str(item.count), _STOPS[1]), right(price, _STOPS[2])]
        roll.row(*[cell for cell in cells if cell.text], right(amount, at))


def _sums(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """Subtotal, tax, rounding, the total, and how it was paid."""
    bought = facts.bought
    before: list[tuple[str, int]] = []
    if often(rng, 0.65):
        before.append((pick(rng, _SUBTOTALS), bought.net))
    if often(rng, 0.3):
        before.append((pick(rng, ("DISCOUNT", "DISC", "SERVICE CHARGE", "Total Discount")), 0))
    if bought.tax or often(rng, 0.3):
        before.append(
            (pick(rng, ("GST 6%", "GST @6%", "TAX", "GST", "TOTAL GST", "SST 6%")), bought.tax)
        )
    if often(rng, 0.2):
        before.append((pick(rng, _TOTALS), bought.net + bought.tax))
    if bought.rounding or often(rng, 0.35):
        before.append(
            (pick(rng, ("ROUNDING", "ROUNDING ADJ", "ROUND ADJ.", "Rounding")), bought.rounding)
        )
    face = weighted(rng, {roll.body: 5, roll.bold: 3, roll.big: 4})
    for label, cents in before:
        _sum(rng, roll, facts, label, cents)
    if often(rng, 0.2):
        roll.line()
    _sum(rng, roll, facts, pick(rng, _TOTALS), bought.total, face=face, field="total")
    after = face if often(rng, 0.3) else roll.body
    if often(rng, 0.8):
        how = pick(
            rng,
            (
                "CASH",
                "CASH",
                "CASH",
                "VISA",
                "CREDIT CARD",
                "PAYMENT",
                "PAID",
                "CASH RECEIVED",
                "TENDER",
            ),
        )
        _sum(rng, roll, facts, how, bought.paid, face=after)
        if often(rng, 0.85):
            change = pick(rng, ("CHANGE", "CHANGE", "CHANGE DUE", "Change", "BAKI"))
            _sum(rng, roll, facts, change, bought.paid - bought.total, face=after)


def _sum(
    rng: np.random.Generator,
    roll: Roll,
    facts: Facts,
    label: str,
    cents: int,
    face: Face | None = None,
    field: str = "",
) -> None:
    """A label and a sum, side by side where there is room."""
    face = face or roll.body
    number = words.money(cents)
    text = facts.currency + number
    at, end = facts.columns
    start = end - face.length(text + "  ") / roll.width
    label = _cased(facts, label) + facts.colon
    room = at if facts.label_align else start - at
    value = Cell(text, at=end, align=1.0, field=field, answer=number)
    if face.length(label) > room * roll.width or (facts.label_align and at > start):
        at, align = 0.0, 0.0
        if face.length(label) > start * roll.width:
            roll.paragraph(label, at=0.0, face=face)
            roll.row(value, face=face)
            return
    else:
        align = facts.label_align
    roll.row(Cell(label, at=at, align=align), value, face=face)


def _tax_table(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """The summary of the tax, sometimes in a frame."""
    roll.feed(between(rng, 0.3, 2))
    top = roll.y
    bought = facts.bought
    stops = (between(rng, 0.5, 0.7), between(rng, 0.86, 0.98))
    if often(rng, 0.5):
        roll.row(left("GST SUMMARY"), face=pick(rng, (roll.body, roll.bold)))
    roll.row(
        left(pick(rng, ("GST SUMMARY", "TAX CODE", "CODE", "GST Analysis"))),
        right(pick(rng, ("AMOUNT(RM)", "AMOUNT", "GOODS", "Amt(RM)")), stops[0]),
        right(pick(rng, ("TAX(RM)", "TAX", "GST")), stops[1]),
    )
    rows = [(pick(rng, ("SR @ 6%", "S = 6%", "SR 6", "T @ 6%")), bought.net, bought.tax)]
    if often(rng, 0.5):
        rows.append((pick(rng, ("ZRL @ 0%", "Z = 0%", "ZR 0", "Z @ 0%")), 0, 0))
    if often(rng, 0.3):
        rows.append(("TOTAL", bought.net, bought.tax))
    for label, net, tax in rows:
        roll.row(left(label), right(words.money(net), stops[0]), right(words.money(tax), stops[1]))
    if often(rng, 0.25):
        pad = roll.body.height * 0.4
        box = (roll.start - 2, top + pad * 0.3, roll.stop, roll.y + pad)
        roll.sheet.pen.rectangle(box, outline=255, width=whole(rng, 1, 2))
        roll.y += pad


def _dateline(rng: np.random.Generator, roll: Roll, facts: Facts) -> None:
    """The date below the sums, beside numbers that nobody reads."""
    if often(rng, 0.5):
        roll.line() if often(rng, 0.5) else roll.feed(between(rng, 0.2, 1.5))
    text = _dated(rng, facts, label=often(rng, 0.25))
    more = (
        f"  SH{digits(rng, 2)} {pick(rng, ('B', 'ZJ'))}{digits(rng, 2)}" if often(rng, 0.4) else ""
    )
    cell = Cell(text + more if roll.fits(text + more) else text, field="date", answer=facts.date)
    other = right(f"{pick(rng, ('T1 R', 'POS', 'NO. ', ''))}{digits(rng, 6)}")
    place = pick(rng, (0.0, 0.0, 0.5))
    if place:
        roll.row(dataclasses.replace(cell, at=0.5, align=0.5))
    elif roll.fits(cell.text + other.text + "   "):
        roll.row(cell, other)
    else:
        roll.row(cell)


def _farewell(rng: np.random.Generator, roll: Roll) -> None:
    """The last words, perhaps with a bar code."""
    roll.feed(between(rng, 0.2, 2))
    at = 0.0 if often(rng, 0.1) else 0.5
    for _ in range(weighted(rng, {0: 1, 1: 2, 2: 3, 3: 2, 5: 1})):
        if not roll.full:
            roll.paragraph(pick(rng, _FAREWELLS), at)
    if often(rng, 0.08) and not roll.full:
        _bars(rng, roll)


def _bars(rng: np.random.Generator, roll: Roll) -> None:
    """A bar code."""
    x, stop = int(roll.start + roll.width * between(rng, 0, 0.25)), roll.stop - roll.width * 0.1
    high = roll.body.height * between(rng, 1.5, 3)
    while x < stop:
        bar, space = whole(rng, 1, 4), whole(rng, 1, 4)
        roll.sheet.pen.rectangle((x, roll.y + 6, x + bar - 1, roll.y + 6 + high), fill=255)
        x += bar + space
    roll.y += high + 10


def _annotate(rng: np.random.Generator, sheet: Sheet) -> None:
    """What people add: notes, rings, ticks, stamps, holes."""
    width, height = sheet.image.size
    if often(rng, 0.3):
        x, y = between(rng, 0, 0.7) * width, between(rng, 0, 0.06) * height
        wide, high = between(rng, 0.12, 0.4) * width, between(rng, 0.02, 0.05) * height
        degrade.scrawl(rng, sheet, (x, y, x + wide, y + high))
    if often(rng, 0.15):
        x, y = between(rng, 0, 0.7) * width, between(rng, 0.2, 0.95) * height
        degrade.scrawl(rng, sheet, (x, y, x + 0.25 * width, y + 0.03 * height))
    if often(rng, 0.07):
        degrade.circle(rng, sheet, sheet.marks["total"].lines[0])
    if often(rng, 0.07):
        degrade.stamp(rng, sheet, between(rng, 0, 0.7) * width, between(rng, 0, 0.9) * height)
    if often(rng, 0.07):
        for y in (between(rng, 0.1, 0.3) * height, between(rng, 0.6, 0.8) * height):
            x, radius = between(rng, 0.03, 0.2) * width, width * 0.03
            sheet.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    for _ in range(whole(rng, 3, 12) if often(rng, 0.35) else 0):
        x, y, radius = rng.random() * width, rng.random() ** 3 * height, between(rng, 0.5, 2.5)
        sheet.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)


def _turned(rng: np.random.Generator, corners: np.ndarray, degrees: float) -> np.ndarray:
    """Corners turned around their middle by a small random angle, and sheared a little."""
    angle = np.deg2rad(rng.normal() * degrees)
    shear = rng.normal() * np.deg2rad(degrees) * 0.3
    matrix = np.array([[np.cos(angle), -np.sin(angle) + shear], [np.sin(angle), np.cos(angle)]])
    middle = corners.mean(0)
    return (corners - middle) @ matrix.T + middle


def _bent(rng: np.random.Generator, width: int) -> np.ndarray:
    """A gentle wave along the paper."""
    along = np.linspace(0, 1, 17)
    wave = np.sin(along * between(rng, 1, 7) + rng.random() * 6)
    return wave * width * between(rng, 0, 0.012)


def _scan(rng: np.random.Generator, sheet: Sheet) -> Frame:
    """The paper fills the picture, or nearly so."""
    width, height = sheet.image.size
    size = between(rng, 1.0, 1.15)
    wide, high = width * size, height * size
    loose = often(rng, 0.3)
    borders = [between(rng, -0.01, 0.06 if loose else 0.012) * width for _ in range(4)]
    corners = _rectangle(borders[0], borders[1], wide, high)
    total = round(wide + borders[0] + borders[2]), round(high + borders[1] + borders[3])
    bend = None
    if often(rng, 0.45):
        corners = _turned(rng, corners, 0.7)
        bend = _bent(rng, width) if often(rng, 0.4) else None
    return Frame(width=total[0], height=total[1], corners=corners, bend=bend)


def _photo(rng: np.random.Generator, sheet: Sheet) -> Frame:
    """The paper lies on something, seen from an angle."""
    width, height = sheet.image.size
    borders = [between(rng, 0.0, 0.15) * width for _ in range(4)]
    corners = _turned(rng, _rectangle(borders[0], borders[1], width, height), 1.5)
    corners += rng.normal(size=(4, 2)) * 0.015 * width
    total = round(width + borders[0] + borders[2]), round(height + borders[1] + borders[3])
    return Frame(width=total[0], height=total[1], corners=corners, bend=_bent(rng, width))


def _on_page(rng: np.random.Generator, sheet: Sheet) -> Frame:
    """A small receipt on the white page of a scanner or a copier."""
    width, height = sheet.image.size
    page = max(width / between(rng, 0.25, 0.45), height / 0.95 / 1.414)
    long = page * 1.414
    x = between(rng, 0.2, 0.6) * (page - width)
    y = min(between(rng, 0.0, 0.3) * long, long - height)
    corners = _rectangle(x, y, width, height)
    if often(rng, 0.4):
        corners = _turned(rng, corners, 0.6)
    return Frame(width=round(page), height=round(long), corners=corners)


def _page_look(rng: np.random.Generator) -> degrade.Look:
    look = degrade.scanned(rng)
    paper = whole(rng, 248, 255)
    return dataclasses.replace(look, paper=paper, around=paper, shade=0.0, contrast=1)
