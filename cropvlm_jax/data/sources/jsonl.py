# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Anybody's pictures and questions, as JSON lines."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Box, Source, read_inside


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens a file with one JSON object a line.

    Its fields: `image`, a path that starts at the file's folder; `question`; `answers`, a list of
    strings, or `answer`, one (needed but in the split "test"); optionally `box`, percent
    `[x1, y1, x2, y2]` of the evidence, and `example_id`, which is else "jsonl/{split}/{line}"; of
    lines with the same `example_id` the first one counts.

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

    taken: set[str] = set()

    def parse(row: rows.Row) -> rows.Row:
        row = {"example_id": f"jsonl/{split}/{row['line']}"} | row
        answers = [row["answer"]] if "answer" in row else row.get("answers")
        example: rows.Row = {
            "example_id": rows.identifier(row, "example_id"),
            "image": rows.text(row, "image"),
            "question": rows.text(row, "question"),
            "answers": rows.answers(answers, required=split != "test"),
        }
        if row.get("box") is not None:
            example["box"] = _box(row["box"])
        if example["example_id"] in taken:
            raise ValueError(f"an earlier line has the example_id {example['example_id']!r}")
        taken.add(example["example_id"])
        return example

    examples, skipped = rows.collect(rows.jsonl_rows(path), parse)
    return Source(f"jsonl/{split}", examples, functools.partial(read_inside, path.parent), skipped)


def _box(box: Any) -> Box:
    whole = isinstance(box, list) and len(box) == 4 and all(type(edge) is int for edge in box)
    if not whole or not geometry.is_valid(np.array(box, object)):
        raise ValueError(f"box {box!r} is not [x1, y1, x2, y2] in whole percent, x2 > x1, y2 > y1")
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2
