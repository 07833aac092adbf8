# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Anybody's pictures and questions, as JSON lines."""

import collections
import dataclasses
import difflib
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax import geometry
from cropvlm_jax.data import framed_boxes, rows
from cropvlm_jax.data.source import Box, Source, inside, read_inside
from cropvlm_jax.pixels import host

FIELDS = ("image", "question", "answers", "answer", "box", "frame", "category", "example_id")
FRAMES = ("percent", "pixels", "thousandths")  # of boxes, the first one where a line names none
MANY = 8  # boxes without a frame that cannot be in percent, to doubt all of them if most are so


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens a file with one JSON object a line.

    Its fields: `image`, a path that starts at the file's folder; `question`; `answers`, a list of
    strings or one string, or `answer`, one (needed but in the split "test"); optionally `box`,
    `[left, top, right, bottom]` of the evidence, `frame`, what its numbers count, one of `FRAMES`,
    `category`, a kind of question by which an evaluation tells results apart, and `example_id`,
    which is else "jsonl/{split}/{line}"; of lines with the same `example_id` the first one counts.

    Boxes may have fractions; they become the smallest boxes in whole percent around them. A box
    that cannot be used costs the box, any other fault costs the line; the log counts and names
    both, and fields that are not read.

    Args:
        folder: holds `{split}.jsonl`, or is a file. One that is named after a split, such as
            `train.jsonl`, is that split; any other is the same for all splits.
        split: any name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no line of it is usable, or the file is of another split.
    """
    path = Path(folder)
    if path.is_dir() or path.suffix != ".jsonl":
        path = path / f"{split}.jsonl"
    elif rows.SPLITS.get(path.stem, split) != rows.SPLITS.get(split, split):
        raise ValueError(f"{path} is by its name not the split {split!r}")
    if not path.is_file():
        raise rows.not_here(path.parent, f"The split {split!r}", (path.name,))
    parser = _Parser(path.parent, split)
    found = parser.without_doubtful_boxes(rows.collect(rows.jsonl_rows(path), parser))
    if not found.examples and path.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise ValueError(f"{path} is one JSON list: write each of its objects on a line of its own")
    parser.log_doubts()
    parser.log_unread()
    read = functools.partial(read_inside, path.parent)
    return Source(parser.name, found.examples, read, found.skipped, found.lost_boxes)


class _Parser:
    """Turns lines into examples, and remembers what only the whole file can tell.

    Attributes:
        folder: of the pictures.
        split: of the file.
        name: of the source.
        taken: the example_ids so far.
        unread: fields that nothing reads, and in how many lines they are.
        frameless: the example_ids of lines whose box has no frame.
        not_percent: how many of these boxes cannot be in percent.
        written: boxes by frame, as they are written, and the sizes of their pictures in it.
    """

    def __init__(self, folder: Path, split: str):
        self.folder, self.split, self.name = folder, split, f"jsonl/{split}"
        self.taken: set[str] = set()
        self.unread: collections.Counter[str] = collections.Counter()
        self.frameless: set[str] = set()
        self.not_percent = 0
        self.written: dict[str, list[tuple[Any, tuple[int, int]]]] = collections.defaultdict(list)

    def __call__(self, row: rows.Row) -> rows.Row:
        """A line as an example; raises `ValueError` where there is none in it."""
        self.unread.update(row.keys() - {*FIELDS, "line"})
        row = {"example_id": f"{self.name}/{row['line']}"} | row
        example: rows.Row = {
            "example_id": rows.identifier(row, "example_id"),
            "image": rows.text(row, "image"),
            "question": rows.text(row, "question"),
            "answers": rows.answers(_answers(row), required=self.split != "test"),
        }
        if example["example_id"] in self.taken:
            raise ValueError(f"an earlier line has the example_id {example['example_id']!r}")
        self.taken.add(example["example_id"])
        if row.get("category") is not None:
            example["category"] = rows.text(row, "category")
        if row.get("box") is None:
            return example
        return rows.with_box(example, functools.partial(self._box, row, example))

    def _box(self, row: rows.Row, example: rows.Row) -> Box:
        """The percent box of a line."""
        box, frame = framed_boxes.numbers(row["box"]), row.get("frame")
        if frame is None:
            self.frameless.add(example["example_id"])
            shares = framed_boxes.are_shares(box)
            self.not_percent += shares or max(box) > 100
            if shares:
                raise ValueError(f"box {list(box)} seems to count shares of 1: make them percent")
            frame = FRAMES[0]
        if frame not in FRAMES:
            raise ValueError(f"frame {frame!r:.80} is none of {', '.join(FRAMES)}")
        height = width = 0
        if frame == "pixels":
            height, width = host.picture_size(inside(self.folder, example["image"]))
        size = geometry.frame_size(frame, height, width)
        self.written[frame].append((box, size))
        return framed_boxes.to_percent(box, frame, size)

    def without_doubtful_boxes(self, found: rows.Collected) -> rows.Collected:
        """What was found, without the boxes that have no frame where most of these are not percent.

        Of boxes in thousandths, say, some have small numbers only and would pass.
        """
        if self.not_percent < max(MANY, len(self.frameless) / 2 + 1):
            return found
        examples, dropped = [], 0
        for example in found.examples:
            if "box" in example and example["example_id"] in self.frameless:
                example = {key: value for key, value in example.items() if key != "box"}
                dropped += 1
            examples.append(example)
        why = (
            f"{self.not_percent} of {len(self.frameless)} boxes without a frame are not in "
            f"percent, so all are left out, {dropped} more; say which they are in, such as "
            '"frame": "pixels" or "frame": "thousandths", in each line'
        )
        return dataclasses.replace(found, examples=examples, lost_boxes=[why, *found.lost_boxes])

    def log_doubts(self) -> None:
        """Warns where all boxes of a frame together look as if they were in another one."""
        for frame, written in self.written.items():
            boxes, sizes = (np.array(values, float) for values in zip(*written, strict=True))
            if reason := framed_boxes.doubt(boxes, sizes):
                logging.warning(
                    '%s: is %r the frame of the boxes? %s; "frame" in each line says which it is',
                    self.name,
                    frame,
                    reason,
                )

    def log_unread(self) -> None:
        """Logs the fields that nothing reads, some of which may be misspelled."""
        names = []
        for name, count in self.unread.most_common():
            meant = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.75)
            hint = f", is {meant[0]!r} meant?" if meant else ""
            names.append(f"{name[:40]!r} ({count}x{hint})")
        if names:
            logging.info("%s: fields that are not read: %s", self.name, ", ".join(names[:8]))


def _answers(row: rows.Row) -> list[Any] | None:
    """What "answer" and "answers" hold, each a list or one answer; None where there is neither."""
    if row.get("answer") is None and row.get("answers") is None:
        return None
    one, listed = (
        value if isinstance(value, list) else [] if value is None else [value]
        for value in (row.get("answer"), row.get("answers"))
    )
    return [answer for answer in one if answer not in listed] + listed
