# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the layout of a document's pages tells: page numbers, running heads, headings, captions.

All rules look at the whole document, so that they are seldom wrong: a page number counts up with
the pages, a running head stands at one height, headings have a font that returns.
"""

import dataclasses
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from cropvlm_jax.data.pdf_text import Piece, Place, Row

LONGEST = 40  # characters of an answer
QUESTIONS = {
    "page number": "What is the page number printed on this page?",
    "running head": "What is the running head at the top of this page?",
    "running foot": "What is the running foot at the bottom of this page?",
    "first heading": "What is the first heading on this page?",
    "last heading": "What is the last heading on this page?",
    "section number": "What is the section number of the first heading on this page?",
    "figure number": "What is the number of the figure on this page?",
    "table number": "What is the number of the table on this page?",
    "figure caption": "What is the caption of the figure on this page?",
    "table caption": "What is the caption of the table on this page?",
    "first line number": "What is the first line number of the code on this page?",
    "last line number": "What is the last line number of the code on this page?",
    "title": "What is the title of this document?",
    "date": "What is the date on the title page?",
    "version": "What is the version number on the title page?",
}
_NUMBER = re.compile(r"\d{1,4}|[ivxlc]{1,9}|[IVXLC]{1,9}")
_ARABIC = re.compile(r"\d{1,4}")
_MOST_WORDS = 10  # of a heading
_NEAR = 4  # pages on either side that must count on
_SECTION = re.compile(r"(?:\d{1,3}|[A-Z])(?:\.\d{1,3}){0,4}\.?")
_PARTS = re.compile(r"(?:chapter|appendix|part|kapitel|section)\b.{0,8}", re.IGNORECASE)
_CAPTION = re.compile(
    r"(Figure|Table) ((?:[A-Z]|\d{1,3})(?:[.-]\d{1,3}){0,2})(?:: ?|\. | (?=[A-Z])|$)"
)
_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?"
)
_DATE = re.compile(
    rf"(?<!\w)(?:(?:19|20)\d\d[-/.][01]?\d[-/.][0-3]?\d|[0-3]?\d[-/.][01]?\d[-/.](?:19|20)\d\d"
    rf"|[0-3]?\d(?:st|nd|rd|th)?,? {_MONTH},? (?:19|20)\d\d"
    rf"|{_MONTH} [0-3]?\d(?:st|nd|rd|th)?,? (?:19|20)\d\d|{_MONTH},? (?:19|20)\d\d)(?!\w|[-/]\d)"
)
_VERSION = re.compile(
    r"(?<!\w)(?:[Vv]ersion:?|[Rr]elease:?|[Vv]\.?) ?(\d+(?:\.\d+)+[a-z]?)(?![\w.]\w)"
)
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-"})


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that the layout of a page tells.

    Attributes:
        category: one of `QUESTIONS`.
        answers: how it may be written, the best first.
        place: where it stands.
        size: of its font, as a share of the page's height.
    """

    category: str
    answers: tuple[str, ...]
    place: Place
    size: float


def findings(pages: Sequence[Sequence[Row]], outline: Collection[str] = ()) -> list[list[Finding]]:
    """What the layout of each page tells.

    Args:
        pages: of a document, their rows from top to bottom.
        outline: titles of its bookmarks; where there are some, headings must be among them.
    """
    document = _Document(pages, outline)
    return [list(document.of_page(index)) for index in range(len(pages))]


@dataclasses.dataclass(frozen=True)
class _PageNumber:
    """A candidate: the number's value, its words, and the row in which they are."""

    value: int
    system: str
    zone: str
    row: int
    piece: Piece


class _Document:
    """The pages of a document, and what is found by comparing them."""

    def __init__(self, pages: Sequence[Sequence[Row]], outline: Collection[str]):
        self.pages = pages
        sizes: Counter[float] = Counter()
        styles: Counter[tuple[float, bool]] = Counter()
        for rows in pages:
            for row in rows:
                for piece in row.pieces:
                    for word in piece.words:
                        sizes[round(word.size, 4)] += len(word.text)
                styles[_style(row.whole)] += 1
        self.body = sizes.most_common(1)[0][0] if sizes else 0.0
        self.styles = styles
        self.outline = {_key(title) for title in outline} if len(outline) >= 5 else set()
        self.numbers = _page_numbers(pages)
        self.heads = self._repeated(0)
        self.feet = self._repeated(-1)

    def _repeated(self, place: int) -> list[bool]:
        """Whether the first (0) or last (-1) row of each page is the same on pages near it."""
        keys = []
        for rows in self.pages:
            row = rows[place] if rows else None
            text = re.sub(r"\d+", "0", row.text) if row else ""
            keys.append((text, row.baseline if row else 0.0))
        same = []
        for index, (text, baseline) in enumerate(keys):
            near = keys[max(index - 6, 0) : index + 7]
            count = sum(text == other and abs(baseline - y) < 0.004 for other, y in near)
            same.append(bool(text) and count >= 3)
        return same

    def of_page(self, index: int) -> Iterator[Finding]:
        rows = self.pages[index]
        if not rows:
            return
        number = self.numbers[index]
        if number:
            answers = (number.piece.text,)
            yield Finding("page number", answers, number.piece.place, number.piece.size)
        yield from self._running(index, "running head", 0, "top", self.heads[index])
        yield from self._running(index, "running foot", -1, "bottom", self.feet[index])
        body = self._body(index)
        if index == 0:
            yield from self._title_page(rows)
        else:
            yield from self._headings(body)
        yield from self._captions(body)
        yield from self._line_numbers(body)

    def _body(self, index: int) -> Sequence[Row]:
        """The rows between head and foot."""
        rows, number = list(self.pages[index]), self.numbers[index]
        top = number.row + 1 if number and number.zone == "top" else int(self.heads[index])
        bottom = len(rows) - int(self.feet[index])
        if number and number.zone == "bottom":
            bottom = min(bottom, number.row)
        return rows[top:bottom]

    def _running(
        self, index: int, category: str, place: int, zone: str, same: bool
    ) -> Iterator[Finding]:
        rows, number = self.pages[index], self.numbers[index]
        pieces = rows[place].pieces
        if number is not None and number.zone == zone:
            if rows[number.row] is not rows[place]:
                return
            rest = (_without(piece, number.piece) for piece in pieces)
            pieces = tuple(piece for piece in rest if piece.words)
        elif not same:
            return
        if len(pieces) == 1:
            yield from _asked(category, pieces[0])

    def _title_page(self, rows: Sequence[Row]) -> Iterator[Finding]:
        largest = max(row.whole.size for row in rows)
        titles = [row for row in rows if row.whole.size > 0.95 * largest]
        if largest < 1.25 * self.body or titles[0].top > 0.6 or len(self.pages) < 3:
            return
        if len(titles) == 1:
            yield from _asked("title", titles[0].whole)
        for category, pattern, group in (("date", _DATE, 0), ("version", _VERSION, 1)):
            found = [(row, match) for row in rows for match in pattern.finditer(row.text)]
            if len(found) == 1:
                row, match = found[0]
                piece = _words_at(row, match.span(group))
                answer = match.group(group)
                yield Finding(category, (answer,), piece.place, piece.size)

    def _headings(self, rows: Sequence[Row]) -> Iterator[Finding]:
        found = [index for index, row in enumerate(rows) if self._may_be_heading(row)]
        if not found:
            return
        for category, index in (("first heading", found[0]), ("last heading", found[-1])):
            if category == "last heading" and len(found) == 1 or not self._is_heading(rows, index):
                continue
            whole = rows[index].whole
            number = _section_number(whole)
            if number is None:
                yield from _asked(category, whole)
                continue
            title = whole.part(1)
            if _readable(title.text) and _readable(whole.text, longest=LONGEST + 6):
                answers = dict.fromkeys((*_spellings(whole.text), *_spellings(title.text)))
                yield Finding(category, tuple(answers), whole.place, whole.size)
            if category == "first heading":
                piece = whole.part(0, 1)
                yield Finding("section number", (number,), piece.place, piece.size)

    def _may_be_heading(self, row: Row) -> bool:
        """Whether a row might be taken for a heading, or for a part of one."""
        whole = row.whole
        if sum(map(str.isalnum, whole.text)) < 3:
            return False
        if any(piece.size >= 1.15 * self.body for piece in row.pieces):
            return True
        if whole.size < 0.98 * self.body or len(whole.words) > _MOST_WORDS:
            return False
        first = whole.words[0].text
        return (
            whole.bold
            or "." in first[:-1]
            and _SECTION.fullmatch(first) is not None
            or (_section_number(whole) is not None and whole.part(0, 2).bold)
        )

    def _is_heading(self, rows: Sequence[Row], index: int) -> bool:
        """Whether a row that might be one is a heading for sure, and all of one."""
        row, whole = rows[index], rows[index].whole
        number = _section_number(whole)
        sizes = [word.size for word in whole.words]
        if (
            sum(map(str.isalpha, whole.text)) < 3
            or len(row.pieces) > (1 if number is None else 2)
            or len(whole.words) > _MOST_WORDS
            or max(sizes) > 1.06 * min(sizes)
            or whole.text[-1] in ".,:;"
            or _PARTS.fullmatch(whole.text)
        ):
            return False
        for other in (*rows[max(index - 1, 0) : index], *rows[index + 1 : index + 2]):
            apart = abs(other.baseline - row.baseline)
            if apart < 1.7 * whole.size and (
                _style(other.whole) == _style(whole) or other.whole.size > 1.1 * self.body
            ):
                return False
        large = whole.size >= 1.15 * self.body
        if self.outline:
            title = whole if number is None else whole.part(1)
            listed = {_key(whole.text), _key(title.text)} & self.outline
            return bool(listed) and (large or number is not None)
        return (large or whole.bold and number is not None) and self.styles[_style(whole)] >= 3

    def _captions(self, rows: Sequence[Row]) -> Iterator[Finding]:
        found = defaultdict(list)
        for index, row in enumerate(rows):
            if match := _CAPTION.match(row.text):
                found[match[1].lower()].append((index, match))
        for kind, places in found.items():
            if len(places) > 1:
                continue
            (index, match), row = places[0], rows[places[0][0]]
            label = _words_at(row, match.span(2))
            yield Finding(f"{kind} number", (match[2],), label.place, label.size)
            alone = index + 1 == len(rows) or (
                rows[index + 1].baseline - row.baseline > 1.6 * row.whole.size
            )
            if alone and match.end() < len(row.text) - 4:
                yield from _asked(f"{kind} caption", _words_at(row, (match.end(), len(row.text))))

    def _line_numbers(self, rows: Sequence[Row]) -> Iterator[Finding]:
        """Numbers before the lines of a program, each one more than the one before."""
        small = [
            row.pieces[0].part(0, 1)
            for row in rows
            if row.pieces[0].words[0].size < 0.85 * self.body
            and _ARABIC.fullmatch(row.pieces[0].words[0].text)
        ]
        values = [int(piece.text) for piece in small]
        if len(small) < 3 or values != list(range(values[0], values[0] + len(values))):
            return
        for category, piece in (("first line number", small[0]), ("last line number", small[-1])):
            yield Finding(category, (piece.text,), piece.place, piece.size)


def _page_numbers(pages: Sequence[Sequence[Row]]) -> list[_PageNumber | None]:
    """The page number that each page shows, where it is certain."""
    candidates = [list(_number_candidates(rows)) for rows in pages]
    by_key: dict[tuple[str, str, int], dict[int, float]] = defaultdict(dict)
    for index, found in enumerate(candidates):
        for number in found:
            by_key[_count(number, index)][index] = number.piece.words[0].baseline
    chosen: list[_PageNumber | None] = []
    for index, found in enumerate(candidates):
        sure = []
        for number in found:
            others, baseline = by_key[_count(number, index)], number.piece.words[0].baseline
            near = [
                other
                for other in range(index - _NEAR, index + _NEAR + 1)
                if other != index and abs(others.get(other, -1) - baseline) < 0.006
            ]
            if len(near) >= 2:
                sure.append(number)
        chosen.append(sure[0] if len(sure) == 1 else None)
    return chosen


def _count(number: _PageNumber, index: int) -> tuple[str, str, int]:
    return number.zone, number.system, number.value - index


def _number_candidates(rows: Sequence[Row]) -> Iterator[_PageNumber]:
    zones = [("top", index) for index in range(min(2, len(rows)))]
    zones += [("bottom", index) for index in range(max(len(rows) - 2, 2), len(rows))]
    for zone, index in zones:
        for piece in rows[index].pieces:
            words = piece.words
            for place in sorted({0, 1, len(words) - 1} if len(words) > 1 else {0}):
                text = words[place].text
                alone = (
                    len(words) == 1 or place == 1 and words[0].text.lower() in ("page", "-", "–")
                )
                if _ARABIC.fullmatch(text) or (alone and _NUMBER.fullmatch(text)):
                    system = "arabic" if text.isdigit() else "roman"
                    value = int(text) if text.isdigit() else _roman(text.lower())
                    yield _PageNumber(value, system, zone, index, piece.part(place, place + 1))


def _roman(text: str) -> int:
    values = [{"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}[letter] for letter in text]
    pairs = zip(values, values[1:] + [0], strict=True)
    return sum(value if value >= after else -value for value, after in pairs)


def _without(piece: Piece, other: Piece) -> Piece:
    return Piece(tuple(word for word in piece.words if word not in other.words))


def _words_at(row: Row, span: tuple[int, int]) -> Piece:
    """The words of a row that hold a stretch of its text, given by its first and last character."""
    (start, stop), words, at = span, [], 0
    for word in row.whole.words:
        if at < stop and at + len(word.text) > start:
            words.append(word)
        at += len(word.text) + 1
    return Piece(tuple(words))


def _section_number(piece: Piece) -> str | None:
    """The number that a heading begins with, such as "3.2" or "A.1"."""
    first = piece.words[0].text
    if len(piece.words) > 1 and _SECTION.fullmatch(first) and (first != "A" or piece.bold):
        return first.rstrip(".")
    return None


def _style(piece: Piece) -> tuple[float, bool]:
    return round(piece.size, 3), piece.bold


def _key(title: str) -> str:
    """A title for comparison: letters and digits, the section number before it left out."""
    plain = unicodedata.normalize("NFKD", title).lower()
    return "".join(filter(str.isalnum, plain))


def _asked(category: str, piece: Piece) -> Iterator[Finding]:
    if _readable(piece.text):
        yield Finding(category, _spellings(piece.text), piece.place, piece.size)


def _spellings(text: str) -> tuple[str, ...]:
    """With plain quotes and dashes, and as it is printed."""
    return tuple(dict.fromkeys((text.translate(_PLAIN), text)))


def _readable(text: str, longest: int = LONGEST) -> bool:
    """Whether a text is short, and of Latin letters that the text layer knows."""
    if len(text) > longest or sum(map(str.isalpha, text)) < 3 or not text.isprintable():
        return False
    return all(ord(letter) < 0x250 or letter in "‘’“”–—…•" for letter in text)
