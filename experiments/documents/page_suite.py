# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The suite of pages: real manuals in PDF, split by document, with questions of their layout."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from cropvlm_jax.data import pdf_files, rows
from cropvlm_jax.data.sources import pages
from cropvlm_jax.progress import Progress

FOLDERS = ("texlive-doc", "lilypond", "octave", "r-doc-pdf")
INSTALL = "apt-get install r-doc-pdf texlive-latex-recommended-doc lilypond-doc-pdf octave-doc"
SEED = 0
MOST_PAGES = 300  # of a document, from its beginning
MOST_QUESTIONS = {"train": 600, "val": 120, "test": 150}  # of a document
MOST_ALIKE = 6  # questions of a document with the same answer, such as a running head
QUALITY = 90  # of JPEG


def documents(root: Path) -> dict[str, Path]:
    """The documents by name, which is their path below the folder; one that is twice counts once.

    Raises:
        FileNotFoundError: there is none.
    """
    found: dict[str, Path] = {}
    taken = set()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.pdf")):
            file = path.resolve()
            if file.is_file() and file not in taken:
                taken.add(file)
                found[path.relative_to(root).as_posix()] = file
    if not found:
        raise FileNotFoundError(f"there are no manuals in {root}: {INSTALL}")
    return found


def group(name: str) -> str:
    """What is kept in one split: the manuals of a package, as authors and layouts are the same."""
    parts = name.split("/")
    return "/".join(parts[:-1]) if parts[0] == "texlive-doc" else parts[0]


def split_of(name: str) -> str:
    place = rows.fraction(f"documents/{SEED}/{group(name)}")
    return "val" if 0.24 <= place < 0.32 else "test" if place < 0.38 else "train"


def questions(root: Path, split: str) -> list[rows.Row]:
    """The questions of a split, at most `MOST_QUESTIONS` a document."""
    found = []
    names = {name: path for name, path in documents(root).items() if split_of(name) == split}
    progress = Progress(len(names), what=f"pages/{split}: document")
    for number, (name, path) in enumerate(names.items(), 1):
        found += _fewer(pages.questions(path, name, most_pages=MOST_PAGES), MOST_QUESTIONS[split])
        progress.update(number, name)
    return found


def _fewer(examples: list[rows.Row], most: int) -> list[rows.Row]:
    """At most so many examples, of all categories alike, in their order."""
    ranked = []
    seen: Counter[str] = Counter()
    alike: Counter[tuple[str, str]] = Counter()
    for example in sorted(examples, key=lambda e: rows.fraction(f"{SEED}/{e['example_id']}")):
        category, answer = example["category"], example["answers"][0]
        if alike[category, answer] == MOST_ALIKE:
            continue
        alike[category, answer] += 1
        ranked.append((seen[category], example["example_id"]))
        seen[category] += 1
    kept = {name for _, name in sorted(ranked)[:most]}
    return [example for example in examples if example["example_id"] in kept]


def draw(examples: list[rows.Row], folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Renders the pages into a folder, those that are not there yet, and gives the lines for it."""
    progress = Progress(len(examples), what=f"pages/{split}: picture")
    for number, example in enumerate(examples, 1):
        path, index = example["image"]
        name = example["example_id"].split("/", 1)[1].rsplit("/", 2)[0].removesuffix(".pdf")
        picture = Path("images") / name.replace("/", "_") / f"{index + 1}.jpg"
        if not (folder / picture).exists():
            _save(pdf_files.render((path, index)), folder / picture)
        progress.update(number)
        yield {**example, "image": picture.as_posix()}


def _save(pixels: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    Image.fromarray(pixels).save(part, "JPEG", quality=QUALITY)
    os.replace(part, path)
