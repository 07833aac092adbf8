# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""PDF pages as zoom questions that nobody labelled: their text layers know answers and places."""

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cropvlm_jax import geometry
from cropvlm_jax.data import pdf_files, rows
from cropvlm_jax.data.source import Box, Source, inside

try:
    import pypdfium2
    from pypdfium2 import raw
except ImportError as error:
    raise ImportError("reading PDFs needs pypdfium2: pip install pypdfium2") from error

QUESTIONS_PER_PAGE = 2
_PHRASE = re.compile(r"(?<!\S)(?=(?P<phrase>(?:[^\W\d_]+ ){3})(?P<word>[^\W\d_]{4,14})(?!\S))")
_FINE = 10**6  # steps of the grid on which page coordinates become percent boxes

# Kinds of pages.
ASKED, EMPTY, NO_TEXT = "with questions", "empty", "without a text layer"
SMALL, NOTHING, BROKEN = "with too small text", "with nothing to ask about", "broken"
KINDS = (ASKED, EMPTY, NO_TEXT, SMALL, NOTHING, BROKEN)


@dataclasses.dataclass(frozen=True)
class _Page:
    """A page: its kind, one of `KINDS`; the questions about it; and, where it is broken, why."""

    kind: str
    questions: Sequence[rows.Row] = ()
    error: str = ""


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
    `pdf_files.DPI` or so that no side exceeds `pdf_files.MAX_EDGE`; text lower than
    `pdf_files.LEAST_HEIGHT` then is not asked about. A link out of the folder is refused.

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
    paths = pdf_files.of_split(root, split)
    examples: list[rows.Row] = []
    skipped: list[str] = []
    kinds: Counter[str] = Counter()
    for number, path in enumerate(paths, 1):
        name = pdf_files.readable(path.relative_to(root))
        try:
            inside(root, str(path.relative_to(root)))
            pages = _read(path, name, f"pdfs/{split}: file {number} of {len(paths)}")
        except (pypdfium2.PdfiumError, OSError, ValueError) as error:
            skipped.append(f"{name}: {error}")
            continue
        of_file = Counter(page.kind for page in pages)
        kinds += of_file
        examples += (question for page in pages for question in page.questions)
        skipped += (f"{name} {page.error}" for page in pages if page.error)
        skipped += (f"{name}: {fault}" for fault in _faults(of_file))
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
    logging.info("pdfs/%s: %d files, %d pages: %s", split, len(paths), kinds.total(), counts)
    return Source(f"pdfs/{split}", examples, pdf_files.render, skipped)


def _faults(kinds: Counter[str]) -> Iterator[str]:
    """What a user should know of a file, a line for each, from how many pages are of each kind."""
    count = kinds.total()
    if kinds[NO_TEXT]:
        yield (
            f"no text layer on {kinds[NO_TEXT]} of {count} pages, perhaps scans: run OCR first, "
            "such as `ocrmypdf IN.pdf OUT.pdf`"
        )
    if kinds[SMALL]:
        yield (
            f"text lower than {pdf_files.LEAST_HEIGHT} px as rendered on {kinds[SMALL]} of {count} "
            "pages: cut such large pages into smaller ones"
        )
    if not kinds[ASKED] and (kinds[NOTHING] or kinds[EMPTY] == count):
        yield (
            f"nothing to ask about on its {count} pages: no sentences, no table of contents; if "
            "they are scans with a stamp, run OCR first"
        )


def _read(path: Path, name: str, progress: str) -> list[_Page]:
    """The pages of a file that is called `name`; raises `PdfiumError` where it cannot be opened."""
    pages = []
    with pdf_files.LOCK, pypdfium2.PdfDocument(path) as document:
        for index in range(len(document)):
            logging.log_every_n_seconds(logging.INFO, "%s, page %d", 5, progress, index + 1)
            try:
                pages.append(_read_page(document, index, name, path))
            except pypdfium2.PdfiumError as error:
                pages.append(_Page(BROKEN, error=f"page {index + 1}: {error}"))
    return pages


def _read_page(document: Any, index: int, name: str, path: Path) -> _Page:
    """A page and the questions about it."""
    with (
        contextlib.closing(document[index]) as page,
        contextlib.closing(page.get_textpage()) as layer,
    ):
        length = layer.count_chars()
        text = "".join(chr(raw.FPDFText_GetUnicode(layer.raw, i)) for i in range(length))
        if not text.strip():
            return _Page(NO_TEXT if raw.FPDFPage_CountObjects(page.raw) > 0 else EMPTY)

        def order(candidate: _Candidate) -> bytes:
            return hashlib.sha256(f"{name} {index} {candidate.start}".encode()).digest()

        candidates = sorted(_contents(text, layer) or _phrases(text), key=order)
        placed = ((c, _place(c, text, layer, page)) for c in candidates)
        least, small = pdf_files.LEAST_HEIGHT / pdf_files.scale(page), False
        questions: list[rows.Row] = []
        for candidate, place in placed:
            if place is None:
                continue
            box, height = place
            if height < least:
                small = True
                continue
            questions.append(
                {
                    "example_id": f"pdfs/{name}/{index + 1}.{len(questions) + 1}",
                    "image": (path, index),
                    "question": unicodedata.normalize("NFKC", candidate.question),  # no ligatures
                    "answers": [unicodedata.normalize("NFKC", candidate.answer)],
                    "box": box,
                    "category": candidate.category,
                }
            )
            if len(questions) == QUESTIONS_PER_PAGE:
                break
    return _Page(ASKED if questions else SMALL if small else NOTHING, questions)


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
