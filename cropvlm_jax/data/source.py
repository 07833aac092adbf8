# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every data set becomes: examples by index, their pictures still encoded."""

import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from absl import logging

from cropvlm_jax.pixels import host

Box = tuple[int, int, int, int]


class _Required(TypedDict):
    example_id: str
    image: Any
    question: str
    answers: list[str]


class Example(_Required, total=False):
    """One question about one picture.

    Attributes:
        example_id: unique in the source, stable between runs.
        image: encoded bytes, a path, or uint8 `[H, W, 3]`: what `host.to_rgb` takes.
        question: as the data set words it.
        answers: gold answers, all annotators'; empty in splits that hide them.
        box: percent box of the evidence, where the data set knows it.
        options: choices of a multiple-choice question.
        label: letter of the right option.
        category: the data set's own grouping, for reports.
        cycle_category: which order the options are in, where questions come in several.
    """

    box: Box
    options: list[str]
    label: str
    category: str
    cycle_category: str


class Source:
    """Random-access examples of one split; rows that could not be understood are left out.

    Attributes:
        name: for logs and reports.
        rows: the examples, whose `image` says where the picture is; a list, or what has a
            `fingerprint` of its own.
        read_image: turns that into what `Example.image` holds.
        skipped: one line for each row left out: which, and why.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[dict[str, Any]],
        read_image: Callable[[Any], Any],
        skipped: Iterable[str] = (),
    ):
        """Wraps rows that are parsed already.

        Args:
            name: for logs and reports.
            rows: examples whose `image` says where the picture is.
            read_image: turns that into what `Example.image` holds; raises `OSError` or `ValueError`
                on a picture that is not there. Picklable, as data workers are processes.
            skipped: why rows were left out.
        """
        self.name, self.skipped = name, list(skipped)
        self.rows, self.read_image = rows, read_image
        if self.skipped:
            first = "; ".join(self.skipped[:3])
            logging.warning(
                "%s: %d of %d rows left out: %s%s",
                name,
                len(self.skipped),
                len(self.skipped) + len(rows),
                first,
                " ..." if len(self.skipped) > 3 else "",
            )
        if not rows:
            raise ValueError(f"{name}: no usable example" + (f": {first}" if self.skipped else ""))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{self.name} ({len(self)} examples)"

    def __getitem__(self, index: int) -> Example:
        row = self.rows[operator.index(index)]
        return {**row, "image": self.read_image(row["image"])}  # type: ignore[typeddict-item]

    @property
    def fingerprint(self) -> str:
        """Tells apart sources of other examples, wherever they are and whatever their pictures."""
        if not isinstance(self.rows, list):
            return self.rows.fingerprint  # type: ignore[attr-defined]
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr(row | {"image": None}).encode())
        return digest.hexdigest()

    def picture_size(self, index: int) -> tuple[int, int]:
        """Height and width of an example's picture, from its header.

        Raises:
            OSError: the picture is missing or broken.
            ValueError: it is too large, or lies where it must not.
        """
        return host.picture_size(self[index]["image"])

    def part(self, start: float, stop: float) -> "Source":
        """The stretch from `start` to `stop`, shares of the examples in their order."""
        if not 0 <= start < stop <= 1:
            raise ValueError(f"a part is from 0 <= start to start < stop <= 1: {start}, {stop}")
        rows = self.rows[round(start * len(self)) : round(stop * len(self))]
        return Source(f"{self.name}[{start:g}:{stop:g}]", rows, self.read_image)


def inside(folder: str | os.PathLike, relative: str) -> Path:
    """A file of the data folder.

    Raises:
        ValueError: the path leads out of the folder, by `..`, by being absolute or through a link.
        FileNotFoundError: there is no such file.
    """
    root = os.path.realpath(folder)
    path = Path(os.path.realpath(os.path.join(root, relative)))
    if not path.is_relative_to(root):
        message = f"{relative!r} leads out of the data folder {folder}"
        if Path(os.path.normpath(os.path.join(root, relative))).is_relative_to(root):
            message += " through a link: copy it in, or download with `hf download --local-dir`"
        raise ValueError(message)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {relative!r} in {folder}")
    return path


def read_inside(folder: str | os.PathLike, relative: str) -> bytes:
    """What a file of the data folder holds; raises as `inside` does, and `OSError`."""
    return inside(folder, relative).read_bytes()
