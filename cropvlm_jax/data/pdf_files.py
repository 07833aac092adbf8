# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""PDF files of a folder: in which split each one is, and what its pages look like."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm_jax.data import rows

try:
    import pypdfium2
except ImportError as error:
    raise ImportError("reading PDFs needs pypdfium2: pip install pypdfium2") from error

DPI = 150
MAX_EDGE = 4096  # px
LEAST_HEIGHT = 8  # px of a rendered line of text: smaller print cannot be read
LOCK = threading.Lock()  # PDFium is not thread-safe


def of_split(folder: str | os.PathLike, split: str) -> list[Path]:
    """The PDF files below a folder that are in a split, sorted.

    Splits go by the files' names, so no document is in two.

    Args:
        folder: of the PDF files.
        split: "train" (80% of the files), "val" (or "validation") or "test" (10% each).

    Raises:
        ValueError: the split is unknown or empty.
        FileNotFoundError: there is no PDF file.
    """
    root, split = Path(folder), rows.split_name(split)
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() == ".pdf")
    if not found:
        raise FileNotFoundError(f"there is no PDF file in {folder}")
    paths = [path for path in found if split_of(path) == split]
    if not paths:
        raise ValueError(
            f"none of the {len(found)} PDF files in {folder} falls in split {split!r}: "
            "splits go by file name, so add files or rename some"
        )
    return paths


def split_of(path: Path) -> str:
    """The split of a file."""
    place = rows.fraction(readable(Path(path.name)))
    return "train" if place < 0.8 else "val" if place < 0.9 else "test"


def readable(path: Path) -> str:
    """A path as text, whatever bytes are in it."""
    return os.fsencode(path.as_posix()).decode(errors="replace")


def scale(page: Any) -> float:
    """Pixels per point of a rendered page."""
    # Sizes are rounded up, rounding errors too.
    return min(DPI / 72, MAX_EDGE / max(page.get_size())) * (1 - 1e-6)


def render(place: tuple[Path, int]) -> np.ndarray:
    """Page `place[1]` of a file as uint8 `[H, W, 3]`.

    Raises:
        OSError: the file or the page is broken.
    """
    path, index = place
    try:
        with LOCK, pypdfium2.PdfDocument(path) as document:
            with contextlib.closing(document[index]) as page:
                rendered = page.render(scale=scale(page), rev_byteorder=True)
                with contextlib.closing(rendered) as bitmap:
                    return bitmap.to_numpy().copy()
    except pypdfium2.PdfiumError as error:
        raise OSError(f"cannot render page {index + 1} of {path}: {error}") from error
