# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The text layer of a PDF page as rows of words, with places, font sizes and weights."""

import ctypes
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

try:
    from pypdfium2 import raw
except ImportError as error:
    raise ImportError("reading PDFs needs pypdfium2: pip install pypdfium2") from error

_FINE = 10**6  # steps of the grid on which page coordinates become shares of the page
_GAP = 1.2  # font sizes between two words that are in different pieces of a row
_SAME_ROW = 0.35  # font sizes between the baselines of words in one row, at most
_BOLD = re.compile(r"bold|black|heavy|demi|cmbx|cmssbx|sfbx|ecbx|cmb\d|-bd", re.IGNORECASE)

Place = tuple[float, float, float, float]  # left, top, right, bottom as shares of the page


@dataclasses.dataclass(frozen=True)
class Word:
    """A word as a reader sees it.

    Attributes:
        text: its characters, ligatures taken apart; "\\ufffd" for those that nobody knows.
        place: a tight box around it.
        baseline: share of the page's height, from the top.
        size: of the font, as a share of the page's height.
        bold: whether the font is.
    """

    text: str
    place: Place
    baseline: float
    size: float
    bold: bool


@dataclasses.dataclass(frozen=True)
class Piece:
    """Neighbouring words of a row, without a wide gap between them."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The words with a space between each two."""
        return " ".join(word.text for word in self.words)

    @property
    def place(self) -> Place:
        """The box around all words."""
        return around(word.place for word in self.words)

    @property
    def size(self) -> float:
        """The font size of the longest word."""
        return max(self.words, key=lambda word: len(word.text)).size

    @property
    def bold(self) -> bool:
        """Whether all words are bold."""
        return all(word.bold for word in self.words)

    def part(self, start: int, stop: int | None = None) -> "Piece":
        """The words from `start` to `stop`."""
        return Piece(self.words[start:stop])


@dataclasses.dataclass(frozen=True)
class Row:
    """Words on one baseline, from left to right."""

    pieces: tuple[Piece, ...]

    @property
    def whole(self) -> Piece:
        """All words, whatever the gaps between them."""
        return Piece(tuple(word for piece in self.pieces for word in piece.words))

    @property
    def text(self) -> str:
        """All words with a space between each two."""
        return self.whole.text

    @property
    def top(self) -> float:
        """Upper edge of the highest word: a share of the page's height, from the top."""
        return self.whole.place[1]

    @property
    def baseline(self) -> float:
        """That of the first word: a share of the page's height, from the top."""
        return self.pieces[0].words[0].baseline


def around(places: Iterable[Place]) -> Place:
    """The smallest box around some boxes."""
    edges = np.array(list(places))
    left, top = edges[:, :2].min(0).tolist()
    right, bottom = edges[:, 2:].max(0).tolist()
    return left, top, right, bottom


def rows_of(page: Any, layer: Any) -> list[Row]:
    """The rows of a page from top to bottom; words that do not run from left to right are left out.

    Args:
        page: of pypdfium2, as it is displayed: rotated and cut to its crop box.
        layer: its text page.
    """
    words = sorted(_words(page, layer), key=lambda word: word.baseline)
    rows: list[list[Word]] = []
    for word in words:
        if rows and word.baseline - rows[-1][-1].baseline <= _SAME_ROW * word.size:
            rows[-1].append(word)
        else:
            rows.append([word])
    return [_row(sorted(row, key=lambda word: word.place[0]), page) for row in rows]


def _row(words: list[Word], page: Any) -> Row:
    width, height = page.get_size()
    pieces = [[words[0]]]
    for word in words[1:]:
        before = pieces[-1][-1]
        gap = (word.place[0] - before.place[2]) * width
        if gap > _GAP * max(word.size, before.size) * height:
            pieces.append([word])
        else:
            pieces[-1].append(word)
    return Row(tuple(Piece(tuple(piece)) for piece in pieces))


def _words(page: Any, layer: Any) -> Iterator[Word]:
    """The words of a page in the order of its text layer."""
    reader = _Reader(page, layer)
    start = 0
    for stop in range(layer.count_chars() + 1):
        if stop == layer.count_chars() or reader.is_space(stop):
            if start < stop and (word := reader.word(start, stop)) is not None:
                yield word
            start = stop + 1


class _Reader:
    """Asks PDFium about single characters."""

    def __init__(self, page: Any, layer: Any):
        self._page, self._layer = page.raw, layer.raw
        self._numbers = [ctypes.c_double() for _ in range(4)]
        self._height = page.get_size()[1]

    def is_space(self, index: int) -> bool:
        code = raw.FPDFText_GetUnicode(self._layer, index)
        return code <= 32 and code not in range(1, 9) or code in (0xA0, 0x2028, 0x2029)

    def word(self, start: int, stop: int) -> Word | None:
        """A word as it is displayed; None for one that is invisible or runs upwards."""
        boxes = [box for box in map(self._char_box, range(start, stop)) if box is not None]
        if not boxes:
            return None
        first, last = self._origin(start), self._origin(stop - 1)
        if stop - start > 1 and abs(last[1] - first[1]) > abs(last[0] - first[0]):
            return None
        place = around(boxes)
        if not (0 <= place[0] < place[2] <= 1 and 0 <= place[1] < place[3] <= 1):
            return None
        text = "".join(map(self._character, range(start, stop)))
        return Word(text, place, first[1], self._size(start), self._bold(start))

    def _character(self, index: int) -> str:
        code = raw.FPDFText_GetUnicode(self._layer, index)
        if raw.FPDFText_HasUnicodeMapError(self._layer, index) == 1:
            return "\ufffd"
        text = unicodedata.normalize("NFKC", chr(code))
        private = unicodedata.category(text[0]) in ("Co", "Cn", "Cs", "Cc")
        return "\ufffd" if private else text

    def _char_box(self, index: int) -> Place | None:
        left, right, bottom, top = self._numbers
        raw.FPDFText_GetCharBox(self._layer, index, left, right, bottom, top)
        if left.value >= right.value or bottom.value >= top.value:
            return None
        x1, y1 = self._displayed(left.value, bottom.value)
        x2, y2 = self._displayed(right.value, top.value)
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def _origin(self, index: int) -> tuple[float, float]:
        x, y = self._numbers[:2]
        raw.FPDFText_GetCharOrigin(self._layer, index, x, y)
        return self._displayed(x.value, y.value)

    def _displayed(self, right: float, up: float) -> tuple[float, float]:
        x, y = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(self._page, 0, 0, _FINE, _FINE, 0, right, up, x, y)
        return x.value / _FINE, y.value / _FINE

    def _size(self, index: int) -> float:
        matrix = raw.FS_MATRIX()
        raw.FPDFText_GetMatrix(self._layer, index, matrix)
        scale = abs(matrix.a * matrix.d - matrix.b * matrix.c) ** 0.5
        return raw.FPDFText_GetFontSize(self._layer, index) * scale / self._height

    def _bold(self, index: int) -> bool:
        name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
        raw.FPDFText_GetFontInfo(self._layer, index, name, 128, flags)
        return bool(_BOLD.search(name.value.decode(errors="replace")))
