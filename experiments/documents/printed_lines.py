# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Crops of drawn lines of print, unlimited, with what each place of them shows.

They teach a small reader to read: amounts, dates, page numbers and short texts in many fonts, with
parts of the lines around them, as boxes of whole percent cut them.
"""

import dataclasses
import functools
import io
import itertools
import string

import numpy as np
from crop_rule import surround
from drawn.chance import often, pick
from drawn.fonts import families
from drawn.words import MONTHS, clock, invented
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_PLAIN = ("symbol", "dingbat", "emoji", "d050000l", "z003", "chancery", "math")
_PLAIN = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "LiberationSans-Regular.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationMono-Regular.ttf",
    "LiberationSerif-Regular.ttf",
    "DejaVuSerif.ttf",
)
_FULL_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_AMOUNT_LABELS = (
    "TOTAL,Total,TOTAL :,GRAND TOTAL,NET TOTAL,Total (RM),TOTAL AMOUNT,AMOUNT DUE,TOTAL SALES"
).split(",")
_OTHER_AMOUNTS = (
    "SUBTOTAL,Sub Total,CASH,CHANGE,GST 6%,ROUNDING,DISCOUNT,TAX,Rounding Adj,VISA,ITEM,QTY"
).split(",")
_DATE_LABELS = (
    "DATE,DATE :,Date:,DATE: ,INVOICE DATE,BILL DATE :,Date ,Tarikh:,DT:,DOC DATE"
).split(",")

QUESTIONS = {
    "total": "What is the total amount on the receipt?",
    "date": "What is the date on the receipt?",
    "number": "What is the page number?",
    "text": "What is written here?",
}


@dataclasses.dataclass(frozen=True)
class LineCrop:
    """A crop whose middle shows an answer.

    Attributes:
        image: grey, uint8 `[H, W]`.
        kind: what is asked, a key of `QUESTIONS`.
        answer: what the crop's middle says.
        letters: of each letter in the crop: its code and its left, top, right and bottom edge as
            shares of the crop, float `[L, 5]`.
    """

    image: np.ndarray
    kind: str
    answer: str
    letters: np.ndarray


@functools.cache
def font_files() -> tuple[str, ...]:
    """Fonts of this machine in a fixed order, the plainest first."""
    styles = ((family.regular, family.bold, family.italic) for family in families())
    files = dict.fromkeys(itertools.chain.from_iterable(styles))
    plain = [file for file in files if file.endswith(_PLAIN)]
    return tuple(dict.fromkeys([*plain, *files]))


@functools.lru_cache(4096)
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def amount(rng: np.random.Generator) -> str:
    """A price such as 12.50 or 1,204.00."""
    value = 10 ** rng.uniform(0, 3.3)
    if rng.random() < 0.5:
        value = round(value * 20) / 20
    return f"{value:,.2f}" if rng.random() < 0.3 else f"{value:.2f}"


def date(rng: np.random.Generator) -> str:
    """A date in one of the usual orders."""
    day, month, year = rng.integers(1, 32), rng.integers(1, 13), rng.integers(1990, 2027)
    mark, kind = pick(rng, "//--."), rng.random()
    if kind < 0.45:
        return f"{day:02}{mark}{month:02}{mark}{year}"
    if kind < 0.60:
        return f"{day:02}{mark}{month:02}{mark}{year % 100:02}"
    if kind < 0.68:
        return f"{year}{mark}{month:02}{mark}{day:02}"
    if kind < 0.73:
        return f"{day}{mark}{month}{mark}{year}"
    name = pick(rng, MONTHS)
    name = name if often(rng, 0.7) else name.title()
    if kind < 0.90:
        between = pick(rng, "  -/")
        return between.join([f"{day:02}", name, str(year if often(rng, 0.7) else year % 100)])
    if kind < 0.95:
        return f"{name} {day}, {year}"
    return f"{pick(rng, _FULL_MONTHS)} {day}, {year}"


def word(rng: np.random.Generator) -> str:
    """A word that can be spoken, or letters and digits as of a code."""
    kind = rng.random()
    if kind < 0.12:
        return "".join(pick(rng, string.ascii_uppercase) for _ in range(rng.integers(1, 6)))
    if kind < 0.2:
        return str(rng.integers(0, 10 ** int(rng.integers(1, 8))))
    if kind < 0.25:
        letters = string.ascii_letters + string.digits
        return "".join(pick(rng, letters) for _ in range(rng.integers(2, 9)))
    return invented(rng)


def words(rng: np.random.Generator, most: int) -> str:
    """Words of one case, of at most `most` characters together."""
    case = pick(rng, ["upper", "lower", "title", "upper", "capital"])
    text = word(rng)[:most]
    while rng.random() < 0.65:
        longer = text + pick(rng, "     -,./&:").join(["", word(rng)])
        longer = longer.replace(",", ", ")
        if len(longer) > most:
            break
        text = longer
    if rng.random() < 0.06 and len(text) + 2 <= most:
        text = f"({text})"
    changed = {"upper": text.upper(), "lower": text.lower(), "title": text.title()}
    return changed.get(case, text[:1].upper() + text[1:])


@dataclasses.dataclass
class _Row:
    """Texts of a row, each with the place of its left edge in ems from the answer's."""

    texts: list[tuple[str, float]]


def _amount_rows(rng: np.random.Generator, font: ImageFont.FreeTypeFont) -> tuple[str, str, list]:
    """Answer, the line that shows it, and the rows before, with and after it."""
    answer = amount(rng)
    line = pick(rng, ["", "", "", "RM", "RM ", "$", "MYR "]) + answer
    inline = rng.random() < 0.1
    if inline:
        line = f"{pick(rng, _AMOUNT_LABELS)} {line}"
    right = font.getlength(line) / font.size
    away = rng.uniform(1, 14)

    def row(label: str, text: str) -> _Row:
        left = right - font.getlength(text) / font.size
        return _Row([(text, left), (label, -away - font.getlength(label) / font.size)])

    own = _Row([(line, 0.0)]) if inline else row(pick(rng, _AMOUNT_LABELS), line)
    others = [row(pick(rng, _OTHER_AMOUNTS), amount(rng)) for _ in range(8)]
    return answer, line, [*others[:4], own, *others[4:]]


def _date_rows(rng: np.random.Generator, font: ImageFont.FreeTypeFont) -> tuple[str, str, list]:
    answer = line = date(rng)
    own = []
    if rng.random() < 0.5:
        line += pick(rng, [" ", " ", "  ", " - "]) + clock(rng)
    if rng.random() < 0.3 and len(line) < 18:
        line = f"{pick(rng, _DATE_LABELS)} {line}"
    elif rng.random() < 0.6:
        label = pick(rng, _DATE_LABELS)
        own.append((label, -rng.uniform(0.5, 5) - font.getlength(label) / font.size))
    if rng.random() < 0.15 and len(line) < 20:
        line += " " + word(rng)[:5].upper()
    others = [_Row([(words(rng, 20), rng.uniform(-6, 1))]) for _ in range(8)]
    return answer, line, [*others[:4], _Row([(line, 0.0), *own]), *others[4:]]


def _number_rows(rng: np.random.Generator, font: ImageFont.FreeTypeFont) -> tuple[str, str, list]:
    answer = line = str(rng.integers(1, 10 ** int(rng.integers(1, 4)) + 200))
    if rng.random() < 0.15:
        line = pick(rng, ["- {} -", "Page {}", "({})", "[{}]"]).format(answer)
    own = []
    if rng.random() < 0.6:
        head = words(rng, 30)
        width = font.getlength(head) / font.size
        gap = rng.uniform(1.5, 12)
        own = [(head, -gap - width if rng.random() < 0.7 else gap + len(line))]
    empty = _Row([])
    body = [_Row([(" ".join(words(rng, 24) for _ in range(3)), rng.uniform(-30, -4))])] * 3
    rows = [_Row([(line, 0.0), *own]), *[empty] * int(rng.integers(0, 3)), *body]
    rows = rows + [empty] * (5 - len(rows)) if len(rows) < 5 else rows[:5]
    if rng.random() < 0.5:
        return answer, line, [*[empty] * 4, *rows]
    return answer, line, [*rows[::-1], *[empty] * 4]


def _text_rows(rng: np.random.Generator, font: ImageFont.FreeTypeFont) -> tuple[str, str, list]:
    line = words(rng, int(rng.integers(2, 23)))
    others = [_Row([(words(rng, 22), rng.uniform(-3, 2))]) for _ in range(8)]
    return line, line, [*others[:4], _Row([(line, 0.0)]), *others[4:]]


_ROWS = {"total": _amount_rows, "date": _date_rows, "number": _number_rows, "text": _text_rows}


def draw(rng: np.random.Generator, kind: str, loose: float, hard: float = 1.0) -> LineCrop:
    """Draws a line with its neighbours and cuts it out, as `surround` says.

    Args:
        rng: what is drawn from.
        kind: a key of `QUESTIONS`.
        loose: the most that the cut-out is larger than the line, in areas; 1 is tight.
        hard: 0 draws clean print in a few plain fonts, 1 worn print in all fonts.
    """
    size = int(rng.integers(15, 40))
    files = font_files()
    plain = min(len(_PLAIN), len(files))
    font = _font(pick(rng, files[: plain + int(hard * (len(files) - plain))]), size)
    answer, line, rows = _ROWS[kind](rng, font)
    x1, y1, x2, y2 = font.getbbox(line)
    pad = size * rng.uniform(0, 0.35, 4) * (0.6, 1, 0.6, 1)
    box = np.array([x1, y1, x2, y2]) + pad * (-1, -1, 1, 1)
    corner, (width, height) = surround(rng, box, size, loose)
    pitch = (y2 - y1) * rng.uniform(1.1, 1.9) if kind != "number" else size * rng.uniform(1.1, 1.7)
    paper, ink = int(rng.integers(170, 256)), int(rng.integers(0, 120))
    picture = Image.new("L", (width, height), paper)
    canvas, letters = ImageDraw.Draw(picture), []
    for place, row in enumerate(rows):
        top = (place - 4) * pitch - corner[1]
        if not -2 * size < top < height + size:
            continue
        for text, left in row.texts:
            start = left * size - corner[0]
            if start < width and start + font.getlength(text) > 0:
                canvas.text((start, top), text, ink, font=font)
                letters += _letters(font, text, start, top + y1, top + y2)
    found = np.array(letters, np.float32).reshape(-1, 5)
    found[:, 1::2] /= width
    found[:, 2::2] /= height
    return LineCrop(_worn(rng, picture, paper, ink, hard), kind, answer, found)


def _letters(
    font: ImageFont.FreeTypeFont, text: str, left: float, top: float, bottom: float
) -> list[tuple[float, ...]]:
    ends = [left + font.getlength(text[:count]) for count in range(len(text) + 1)]
    return [
        (ord(letter), start, top, stop, bottom)
        for letter, start, stop in zip(text, ends, ends[1:], strict=False)
        if letter != " "
    ]


def _worn(
    rng: np.random.Generator, picture: Image.Image, paper: int, ink: int, hard: float
) -> np.ndarray:
    """The picture as a printer and a scanner would leave it: uint8 `[H, W]`."""
    if often(rng, 0.2 * hard):
        picture = picture.rotate(
            float(rng.normal(0, 0.8)), Image.Resampling.BILINEAR, fillcolor=paper
        )
    pixels = np.asarray(picture, np.float32)
    if often(rng, 0.25 * hard):  # a dot-matrix printer leaves holes
        period = int(rng.integers(2, 4))
        rows, columns = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
        holes = (rows % period == 0) | ((columns % period == 0) & often(rng, 0.7))
        pixels = np.where(holes, pixels + (paper - pixels) * rng.uniform(0.3, 0.9), pixels)
    if often(rng, 0.2 * hard):  # faded ink
        pixels += (paper - pixels) * rng.uniform(0, 0.5) * rng.random(pixels.shape, np.float32)
    if often(rng, 0.6 * hard):
        blurred = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        radius = float(rng.uniform(0.3, 1.3))
        pixels = np.asarray(blurred.filter(ImageFilter.GaussianBlur(radius)), np.float32)
    noise = rng.standard_normal(pixels.shape, np.float32) * rng.uniform(0, 14) * hard
    slope = np.linspace(0, hard * rng.uniform(-40, 40), pixels.shape[1], dtype=np.float32)
    pixels = pixels + noise + slope
    if often(rng, 0.12 * hard):  # a scan in black and white
        pixels = np.where(pixels > ink + rng.uniform(0.4, 0.8) * (paper - ink), 255.0, 0.0)
    worn = np.clip(pixels, 0, 255).astype(np.uint8)
    if often(rng, 0.25 * hard):
        file = io.BytesIO()
        Image.fromarray(worn).save(file, "JPEG", quality=int(rng.integers(25, 80)))
        worn = np.asarray(Image.open(file))
    return worn
