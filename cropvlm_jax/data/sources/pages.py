# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions that the layout of PDF pages answers: page number, running head, headings, captions."""

import contextlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
from absl import logging

from cropvlm_jax import geometry
from cropvlm_jax.data import page_layout, pdf_files, pdf_text, rows
from cropvlm_jax.data.source import Box, Source, inside

try:
    import pypdfium2
except ImportError as error:
    raise ImportError("reading PDFs needs pypdfium2: pip install pypdfium2") from error

_FINE = 10**6  # steps of the grid on which shares of a page become percent boxes


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens all PDF files below a folder, with questions about their layout.

    `page_layout.QUESTIONS` lists them by category. Nothing is asked where the text layer leaves a
    doubt, so many pages have one or two questions and some have none. Boxes are tight around the
    answer. Pages are rendered when they are read, as those of the source `pdfs`.

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
    for number, path in enumerate(paths, 1):
        relative = path.relative_to(root)
        name = pdf_files.readable(relative)
        logging.log_every_n_seconds(
            logging.INFO, "pages/%s: file %d of %d", 5, split, number, len(paths)
        )
        try:
            inside(root, str(relative))
            found = questions(path, name)
        except (pypdfium2.PdfiumError, OSError, ValueError) as error:
            skipped.append(f"{name}: {error}")
            continue
        if not found:
            skipped.append(f"{name}: nothing to ask about")
        examples += found
    counts = Counter(example["category"] for example in examples)
    told = ", ".join(f"{count} {category}" for category, count in counts.most_common())
    logging.info("pages/%s: %d files: %s", split, len(paths), told)
    return Source(f"pages/{split}", examples, pdf_files.render, skipped)


def questions(path: Path, name: str, most_pages: int | None = None) -> list[rows.Row]:
    """The questions about a document's pages.

    Args:
        path: of the file.
        name: of the document, for the examples' ids.
        most_pages: how many pages to read; None for all.

    Raises:
        PdfiumError: the file cannot be opened.
    """
    with pdf_files.LOCK, pypdfium2.PdfDocument(path) as document:
        count = len(document) if most_pages is None else min(len(document), most_pages)
        read = [_rows(document, index, name) for index in range(count)]
        outline = _outline(document)
    found = page_layout.findings([lines for lines, _ in read], outline)
    return [
        {
            "example_id": f"pages/{name}/{index + 1}/{finding.category}".replace(" ", "_"),
            "image": (path, index),
            "question": page_layout.QUESTIONS[finding.category],
            "answers": list(finding.answers),
            "box": _box(finding.place),
            "category": finding.category,
        }
        for index, of_page in enumerate(found)
        for finding in of_page
        if finding.size >= read[index][1]
    ]


def _rows(
    document: pypdfium2.PdfDocument, index: int, name: str
) -> tuple[list[pdf_text.Row], float]:
    """The rows of a page, none of a broken one; and the smallest font that can be read on it."""
    try:
        with (
            contextlib.closing(document[index]) as page,
            contextlib.closing(page.get_textpage()) as layer,
        ):
            points = pdf_files.LEAST_HEIGHT / pdf_files.scale(page)
            return pdf_text.rows_of(page, layer), points / page.get_size()[1]
    except pypdfium2.PdfiumError as error:
        logging.warning("%s, page %d: %s", name, index + 1, error)
        return [], 0.0


def _outline(document: pypdfium2.PdfDocument) -> list[str]:
    """Titles of the bookmarks; none where they are broken."""
    try:
        return [bookmark.get_title() for bookmark in document.get_toc()]
    except (pypdfium2.PdfiumError, UnicodeError):
        return []


def _box(place: pdf_text.Place) -> Box:
    fine = np.array([round(edge * _FINE) for edge in place])
    x1, y1, x2, y2 = geometry.from_pixels(fine, np.array([_FINE, _FINE])).tolist()
    return x1, y1, x2, y2
