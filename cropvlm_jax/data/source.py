# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every data set becomes: examples by index, their pictures still encoded."""

import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

from cropvlm_jax.data import faults
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
        example_id: A name that no other example of the source has, the same in every run.
        image: Encoded bytes, a path, or uint8 `[H, W, 3]`: what `host.to_rgb` takes.
        question: The question as the data set words it.
        answers: The gold answers of all annotators; empty in splits that hide them.
        box: Percent box of the evidence, where the data set knows it.
        boxes: Percent boxes of all places to look at, in the lexicographic order of (x1, y1, x2,
            y2), where the data set knows them; none where the whole picture is enough.
        around: Percent box of the place in which `box` is found by a second look.
        options: The choices of a multiple-choice question.
        label: The letter of the right option.
        category: The data set's own grouping, for reports.
        cycle_category: Which order the options are in, where each question comes in several.
    """

    box: Box
    boxes: list[Box]
    around: Box
    options: list[str]
    label: str
    category: str
    cycle_category: str


class Examples(Protocol):
    """Random access to examples: a `Source`, drawn scenes, or a mixture of several of these."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    @property
    def fingerprint(self) -> str:
        """A text that other examples, or the same in another order, would not have."""
        ...

    def picture_size(self, index: int) -> tuple[int, int]:
        """Height and width of an example's picture; raises `OSError` or `ValueError`."""
        ...

    def name_of(self, index: int) -> str:
        """What messages call an example: its id, and the picture's file where there is one."""
        ...


class Source:
    """Random-access examples of one split; rows that could not be understood are left out.

    Attributes:
        name: The name that logs and reports use.
        rows: The examples, whose `image` says where the picture is: a list, or a sequence that has
            a `fingerprint` of its own.
        read_image: Turns such an `image` into what `Example.image` holds.
        skipped: One line for each row left out: which row, and why.
        lost_boxes: One line for each row that is used without its box, which is wrong.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[dict[str, Any]],
        read_image: Callable[[Any], Any],
        skipped: Iterable[str] = (),
        lost_boxes: Iterable[str] = (),
    ):
        """Wraps rows that are parsed already.

        Args:
            name: The name that logs and reports use.
            rows: Examples whose `image` says where the picture is.
            read_image: Turns such an `image` into what `Example.image` holds; raises `OSError` or
                `ValueError` where there is no picture. Picklable, as data workers are processes.
            skipped: One line for each row left out: which row, and why.
            lost_boxes: One line for each row that is used without its box: which row, and why.

        Raises:
            ValueError: There is no row.
        """
        self.name, self.skipped, self.lost_boxes = name, list(skipped), list(lost_boxes)
        self.rows, self.read_image = rows, read_image
        total = len(self.skipped) + len(rows)
        faults.log(f"{name}: {len(self.skipped)} of {total} rows left out", self.skipped)
        boxless = f"{len(self.lost_boxes)} of {len(rows)} rows kept without their box"
        faults.log(f"{name}: {boxless}", self.lost_boxes)
        if not rows:
            why = f": {faults.some_of(self.skipped)}" if self.skipped else ""
            raise ValueError(f"{name}: no usable example{why}")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{self.name} ({len(self)} examples)"

    def __getitem__(self, index: int) -> Example:
        row = self.rows[operator.index(index)]
        return {**row, "image": self.read_image(row["image"])}  # type: ignore[typeddict-item]

    @property
    def fingerprint(self) -> str:
        """A digest of the examples but for their pictures, the same wherever they are stored."""
        if not isinstance(self.rows, list):
            return self.rows.fingerprint  # type: ignore[attr-defined]
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr(row | {"image": None}).encode())
        return digest.hexdigest()

    def picture_size(self, index: int) -> tuple[int, int]:
        """Height and width of an example's picture, from its header.

        Raises:
            OSError: The picture is missing or broken.
            ValueError: The picture is too large, or lies outside of the data folder.
        """
        return host.picture_size(self[index]["image"])

    def ids(self) -> list[str]:
        """The example_ids, without reading any picture of a source that was not prepared."""
        return [row["example_id"] for row in self.rows]

    def name_of(self, index: int) -> str:
        """What messages call an example: its id, and the picture's file where there is one."""
        row = self.rows[operator.index(index)]
        file = f" ({row['image']})" if isinstance(row["image"], str) else ""
        return f"{row['example_id']}{file}"

    def part(self, start: float, stop: float) -> "Source":
        """The stretch from `start` to `stop`, shares of the examples in their order."""
        if not 0 <= start < stop <= 1:
            raise ValueError(f"a part is from 0 <= start to start < stop <= 1: {start}, {stop}")
        rows = self.rows[round(start * len(self)) : round(stop * len(self))]
        return Source(f"{self.name}[{start:g}:{stop:g}]", rows, self.read_image)


def inside(folder: str | os.PathLike, relative: str) -> Path:
    """A file of the data folder.

    Raises:
        ValueError: The path leads out of the folder, by `..`, by being absolute or through a link.
        FileNotFoundError: There is no such file.
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
