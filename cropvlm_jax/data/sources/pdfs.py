# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""PDF pages as zoom questions that nobody labelled: their text layers know answers and places."""

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cropvlm_jax import geometry
from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Box, Source, inside

try:
    import pypdfium2
    from pypdfium2 import raw
except ImportError as error:
    raise ImportError("reading PDFs needs pypdfium2: pip install 'cropvlm-jax[data]'") from error

DPI = 150
MAX_EDGE = 4096  # px
LEAST_HEIGHT = 8  # px of a rendered line of text: smaller print cannot be read
QUESTIONS_PER_PAGE = 2
_PHRASE = re.compile(r"(?<!\S)(?=(?P<phrase>(?:[^\W\d_]+ ){3})(?P<word>[^\W\d_]{4,14})(?!\S))")
_FINE = 10**6  # steps of the grid on which page coordinates become percent boxes
_LOCK = threading.Lock()  # PDFium is not thread-safe


class _Candidate(NamedTuple):
    """A question about the characters `start` to `stop` of a page's text."""

    start: int
    stop: int
    question: str
    answer: str
    category: str


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens all PDF files below a folder.

    A page of contents, where three lines or more end in a page number after dots or a wide gap,
    asks for these numbers (category "contents"); any other page asks which word follows three that
    stand on it once (category "text"). At most `QUESTIONS_PER_PAGE` a page, always the same ones;
    the box is that of the line, or of the four words. Pages are rendered when they are read, at
    `DPI` or so that no side exceeds `MAX_EDGE`; text lower than `LEAST_HEIGHT` then is not asked
    about. A link that leads out of the folder is refused.

    `skipped` has a line for each file and page that cannot be opened, and for each file that has
    pages without a text layer (scans), with text that is too small, or nothing to ask about. The
    log sums up all pages.

    Args:
        folder: of the PDF files; splits go by the files' names, so no document is in two.
        split: "train" (80% of the files), "val" (or "validation") or "test" (10% each).

    Raises:
        ValueError: the split is unknown or empty, or nothing in it is usable.
        FileNotFoundError: there is no PDF file.
    """
    root, split = Path(folder), rows.split_name(split)
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() == ".pdf")
    if not found:
        raise FileNotFoundError(f"there is no PDF file in {folder}")
    paths = [path for path in found if _split(path) == split]
    if not paths:
        raise ValueError(
            f"none of the {len(found)} PDF files in {folder} falls in split {split!r}: "
            "splits go by file name, so add files or rename some"
        )
    examples: list[rows.Row] = []
    skipped: list[str] = []
    total = _Pages()
    for number, path in enumerate(paths, 1):
        name = _readable(path.relative_to(root))
        try:
            inside(root, str(path.relative_to(root)))
            with _LOCK, pypdfium2.PdfDocument(path) as document:
                pages = _Pages()
                for index in range(len(document)):
                    try:
                        examples.extend(_examples(document, index, name, path, pages))
                    except pypdfium2.PdfiumError as error:
                        skipped.append(f"{name} page {index + 1}: {error}")
                    logging.log_every_n_seconds(
                        logging.INFO,
                        "pdfs/%s: file %d of %d, %d questions",
                        5,
                        split,
                        number,
                        len(paths),
                        len(examples),
                    )
            skipped.extend(f"{name}: {fault}" for fault in pages.faults())
            total.add(pages)
        except (pypdfium2.PdfiumError, OSError, ValueError) as error:
            skipped.append(f"{name}: {error}")
    logging.info("pdfs/%s: %d files, %s", split, len(paths), total)
    return Source(f"pdfs/{split}", examples, _render, skipped)


@dataclasses.dataclass
class _Pages:
    """How many pages of a file, or of several, are of which kind.

    Attributes:
        asked: pages with questions.
        empty: pages with nothing on them.
        no_text: pages with something on them, but no text.
        too_small: pages without questions, as text that could be asked about is too small.
        nothing: pages without questions although they have text.
    """

    asked: int = 0
    empty: int = 0
    no_text: int = 0
    too_small: int = 0
    nothing: int = 0

    def __str__(self) -> str:
        return (
            f"{sum(dataclasses.astuple(self))} pages: {self.asked} with questions, {self.empty} "
            f"empty, {self.no_text} without a text layer, {self.too_small} with too small text, "
            f"{self.nothing} with nothing to ask about"
        )

    def add(self, other: "_Pages") -> None:
        """Counts the pages of another file too."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def faults(self) -> Iterator[str]:
        """What a user should know of the file that these pages are of, a line for each."""
        count = sum(dataclasses.astuple(self))
        if self.no_text:
            yield (
                f"no text layer on {self.no_text} of {count} pages, perhaps scans: run OCR first, "
                "such as `ocrmypdf IN.pdf OUT.pdf`"
            )
        if self.too_small:
            yield (
                f"text lower than {LEAST_HEIGHT} px as rendered on {self.too_small} of {count} "
                "pages: cut such large pages into smaller ones"
            )
        if not self.asked and (self.nothing or not count - self.empty):
            yield (
                f"nothing to ask about on its {count} pages: no sentences, no table of contents; "
                "if they are scans with a stamp, run OCR first"
            )


def _readable(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode(errors="replace")


def _split(path: Path) -> str:
    place = rows.fraction(_readable(Path(path.name)))
    return "train" if place < 0.8 else "val" if place < 0.9 else "test"


def _scale(page: Any) -> float:
    """Pixels per point of a rendered page."""
    # Sizes are rounded up, rounding errors too.
    return min(DPI / 72, MAX_EDGE / max(page.get_size())) * (1 - 1e-6)


def _render(place: tuple[Path, int]) -> np.ndarray:
    """Page `place[1]` of a file as uint8 `[H, W, 3]`."""
    path, index = place
    try:
        with _LOCK, pypdfium2.PdfDocument(path) as document:
            with contextlib.closing(document[index]) as page:
                rendered = page.render(scale=_scale(page), rev_byteorder=True)
                with contextlib.closing(rendered) as bitmap:
                    return bitmap.to_numpy().copy()
    except pypdfium2.PdfiumError as error:
        raise OSError(f"cannot render page {index + 1} of {path}: {error}") from error


def _examples(
    document: Any, index: int, name: str, path: Path, pages: _Pages
) -> Iterator[rows.Row]:
    """The questions about a page, which is counted in `pages`."""
    with (
        contextlib.closing(document[index]) as page,
        contextlib.closing(page.get_textpage()) as layer,
    ):
        length = layer.count_chars()
        text = "".join(chr(raw.FPDFText_GetUnicode(layer.raw, i)) for i in range(length))
        if not text.strip():
            drawn = raw.FPDFPage_CountObjects(page.raw) > 0
            pages.no_text += drawn
            pages.empty += not drawn
            return

        def order(candidate: _Candidate) -> bytes:
            return hashlib.sha256(f"{name} {index} {candidate.start}".encode()).digest()

        candidates = sorted(_contents(text, layer) or _phrases(text), key=order)
        placed = ((c, _place(c, text, layer, page)) for c in candidates)
        least = LEAST_HEIGHT / _scale(page)
        asked, small = 0, False
        for candidate, place in placed:
            if place is None:
                continue
            box, height = place
            if height < least:
                small = True
                continue
            asked += 1
            yield {
                "example_id": f"pdfs/{name}/{index + 1}.{asked}",
                "image": (path, index),
                "question": unicodedata.normalize("NFKC", candidate.question),  # no ligatures
                "answers": [unicodedata.normalize("NFKC", candidate.answer)],
                "box": box,
                "category": candidate.category,
            }
            if asked == QUESTIONS_PER_PAGE:
                break
        pages.asked += asked > 0
        pages.too_small += small and not asked
        pages.nothing += not asked and not small


def _contents(text: str, layer: Any) -> list[_Candidate]:
    """Lines of a table of contents, unless the page has fewer than three of them."""
    dotted, spaced = [], []
    for line in re.finditer(r"\S[^\r\n]*", text):
        content = line.group().rstrip()
        head = content.rstrip("0123456789")
        title, page = " ".join(head.rstrip(" .").split()), content[len(head) :]
        letters = sum(map(str.isalpha, title))
        if letters < 3 or not title.isprintable() or not 1 <= len(page) <= 4:
            continue
        start, stop = line.start(), line.start() + len(content)
        question = f"Which page does *{title}* begin on?"
        candidate = _Candidate(start, stop, question, page, "contents")
        if head.count(".") - head.rstrip(" .").count(".") >= 3:
            dotted.append(candidate)
        elif head[-1].isspace():
            chars = _char_boxes(layer, text, start, stop)
            if _gaps(chars)[-len(page)] >= 2 * _height(chars):
                spaced.append(candidate)
    pages = [int(candidate.answer) for candidate in spaced]
    lines = dotted + (spaced if pages == sorted(pages) else [])  # else it is some other table
    if len(lines) < 3:
        return []
    asked = Counter(candidate.question for candidate in lines)
    return [c for c in lines if asked[c.question] == 1]


def _phrases(text: str) -> list[_Candidate]:
    """Three words that stand on the page once, followed by a plain word on the same line."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = Counter(zip(words, words[1:], words[2:], strict=False))
    candidates = []
    for found in _PHRASE.finditer(text):
        phrase = found["phrase"].split()
        first, second, third = (word.lower() for word in phrase)
        if counts[first, second, third] == 1 and sum(map(len, phrase)) >= 12:
            question = f'What word follows "{" ".join(phrase)}"?'
            start, stop = found.start("phrase"), found.end("word")
            candidates.append(_Candidate(start, stop, question, found["word"], "text"))
    return candidates


def _place(candidate: _Candidate, text: str, layer: Any, page: Any) -> tuple[Box, float] | None:
    """Percent box of a candidate, and the height of its text in points.

    None outside the page, or where a phrase is not in one piece.
    """
    chars = _char_boxes(layer, text, candidate.start, candidate.stop)
    low, high = chars[:, :2].min(0), chars[:, 2:].max(0)
    height = _height(chars)
    if candidate.category == "text" and (
        min(high - low) > 1.5 * height or _gaps(chars).max() > height
    ):
        return None
    x, y = ctypes.c_int(), ctypes.c_int()
    corners = []
    for right, up in (low, high):
        raw.FPDF_PageToDevice(page.raw, 0, 0, _FINE, _FINE, 0, right, up, x, y)
        corners.append((x.value, y.value))
    pixels = np.sort(np.array(corners), axis=0)
    if pixels.min() < 0 or pixels.max() > _FINE:
        return None
    x1, y1, x2, y2 = geometry.from_pixels(pixels.reshape(4), np.array([_FINE, _FINE])).tolist()
    return (x1, y1, x2, y2), height


def _char_boxes(layer: Any, text: str, start: int, stop: int) -> np.ndarray:
    """Left, bottom, right, top of the characters that are no spaces, in points: `[C, 4]`."""
    return np.array([layer.get_charbox(i) for i in range(start, stop) if not text[i].isspace()])


def _gaps(chars: np.ndarray) -> np.ndarray:
    """Distances between neighbouring characters `[C, 4]`, negative where they touch: `[C - 1]`."""
    here, there = chars[:-1], chars[1:]
    return np.maximum(there[:, :2] - here[:, 2:], here[:, :2] - there[:, 2:]).max(-1)


def _height(chars: np.ndarray) -> float:
    """Longest side of any character `[C, 4]`: about the height of the line, however rotated."""
    return (chars[:, 2:] - chars[:, :2]).max()
