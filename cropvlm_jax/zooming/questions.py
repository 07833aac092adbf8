# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is asked about which pictures: of a folder of pictures, or of a file of JSON lines."""

import collections
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cropvlm_jax.data import faults, rows

RESULTS = "results.jsonl"  # a folder with a file of this name holds results, not pictures to zoom
# Names of files that hold pictures; what cannot be opened is then named as a failure.
SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .heic .heif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .jxl "
    ".pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)


class Question(NamedTuple):
    """A question about a picture.

    Attributes:
        id: no other question has it.
        image: the picture as its folder or file names it.
        question: what is asked about it.
        path: of the picture's file.
        fault: why it cannot be asked; "" where it can.
    """

    id: str
    image: str
    question: str
    path: str
    fault: str = ""


def of_folder(folder: Path, question: str, out: Path) -> list[Question]:
    """The same question about every picture of a folder and of the folders in it.

    Pictures are known by their suffixes. The log names files without one of these, links to folders
    and folders of results, such as `out`: these are left out, and so is what is hidden.

    Args:
        folder: of the pictures; their paths in it are their ids.
        question: about each of them.
        out: where the results go.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no picture in it, or `out` is this folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if out.resolve() == folder.resolve():
        raise ValueError(f"{folder} is the folder of the pictures: write results to another one")
    others: list[str] = []
    files = sorted(_files(folder, out.resolve(), others))
    pictures = [file for file in files if _seems_picture(file)]
    others += [str(file.relative_to(folder)) for file in files if not _seems_picture(file)]
    faults.log(f"{folder}: {len(others)} files or folders left out, no pictures by name", others)
    if not pictures:
        raise ValueError(
            f"there is no picture in {folder}, of {len(files)} files: names of pictures end in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return [_of_file(file, folder, question) for file in pictures]


def _files(folder: Path, out: Path, others: list[str]) -> Iterator[Path]:
    """The files in a folder and below that are not hidden; adds to `others` what is not entered."""

    def refuse(error: OSError) -> None:
        raise error

    for name, folders, files in os.walk(folder, onerror=refuse):
        entered = []
        for path in sorted(Path(name) / inner for inner in folders):
            if path.name.startswith(".") or path.resolve() == out:
                continue
            if path.is_symlink():
                others.append(f"{path.relative_to(folder)} (a link to a folder)")
            elif (path / RESULTS).is_file():
                others.append(f"{path.relative_to(folder)} (results)")
            else:
                entered.append(path.name)
        folders[:] = entered
        yield from (Path(name) / file for file in files if not file.startswith("."))


def _seems_picture(file: Path) -> bool:
    """Whether a file is one of a picture by its name; also a link to what is not there."""
    return file.suffix.lower() in SUFFIXES and (file.is_file() or file.is_symlink())


def _of_file(file: Path, folder: Path, question: str) -> Question:
    """The question about a file of a folder."""
    name = file.relative_to(folder).as_posix()
    told = os.fsencode(name).decode("utf-8", "backslashreplace")
    fault = "" if told == name else "its file's name is not UTF-8: rename it"
    return Question(told, told, question, os.fspath(file), fault)


def of_jsonl(file: Path, question: str | None) -> list[Question]:
    """The questions of a file with a JSON object a line.

    Its fields: `image`, an absolute path or one that starts at the file's folder; `question`; and
    optionally `id`, or `example_id` as data sets call it. Others are not read. A line without an id
    is known by its number, from 1.

    Args:
        file: the file.
        question: of lines that have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no line of it can be asked, or two have the same id.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    asked = [_of_line(entry, file.parent, question) for entry in rows.jsonl_rows(file)]
    found = [f"{question.id}: {question.fault}" for question in asked if question.fault]
    if len(found) == len(asked):
        why = faults.some_of(found) or "it is empty"
        raise ValueError(f"no line of {file} can be asked: {why}")
    counts = collections.Counter(question.id for question in asked)
    (twice, count), *_ = counts.most_common(1)
    if count > 1:
        raise ValueError(
            f"{count} lines of {file} have the id {twice!r:.80}: give each its own, or leave ids "
            "out to have lines known by their numbers"
        )
    return asked


def _of_line(entry: rows.Entry, folder: Path, question: str | None) -> Question:
    """The question of a line, or what is wrong with the line."""
    where, read = entry
    line = where.partition(" of ")[0]  # such as "line 17"
    try:
        row = {key: value for key, value in read().items() if value is not None}
        key = "id" if "id" in row else "example_id"
        row = {key: line, "question": question} | row
        image = rows.text(row, "image")
        return Question(
            id=rows.identifier(row, key),
            image=image,
            question=rows.text(row, "question"),
            path=os.path.join(folder, image),
        )
    except (ValueError, ArithmeticError) as error:
        return Question(line, "", "", "", str(error))
