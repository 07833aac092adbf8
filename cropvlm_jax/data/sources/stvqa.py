# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""ST-VQA: questions about text in photos of six older data sets."""

import functools
import os
from pathlib import Path

from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Source, read_inside
from cropvlm_jax.pixels import host

VAL_SHARE = 0.1  # of the training pictures, as large as the split in common use


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens ST-VQA, task 3 (Biten et al., "Scene Text Visual Question Answering").

    It comes with no validation split: a hash of the picture's path puts about a tenth of the
    training pictures, with all their questions, into "val".

    Args:
        folder: holds `train_task_3.json` or `test_task_3.json` of the Robust Reading Competition,
            and the pictures, such as `coco-text/COCO_train2014_000000000036.jpg`, or in `train/` or
            `train_images/` (`test/`, `test_task3_images/`), whatever the json says.
        split: "train", "val" (or "validation") or "test", which has no answers.

    Raises:
        FileNotFoundError: the split is not in the folder.
        ValueError: the split is unknown, or its file is of something else.
    """
    root, split = Path(folder), rows.split_name(split)
    part = "test" if split == "test" else "train"
    path = root / f"{part}_task_3.json"
    if not path.is_file():
        raise rows.not_here(root, f"ST-VQA's {split} split", (path.name,))

    def parse(row: rows.Row) -> rows.Row:
        return {
            "example_id": f"stvqa/{split}/{rows.identifier(row, 'question_id')}",
            "image": rows.text(row, "file_path").removeprefix(f"{part}/"),
            "question": rows.text(row, "question"),
            "answers": rows.answers(row.get("answers"), required=part == "train"),
        }

    found = rows.collect(rows.json_rows(path), parse)
    examples = [
        row
        for row in found.examples
        if part == "test" or (rows.fraction(row["image"]) < VAL_SHARE) == (split == "val")
    ]
    read = functools.partial(_read, str(root), part)
    return Source(f"stvqa/{split}", examples, read, found.skipped)


def _read(folder: str, part: str, relative: str) -> bytes:
    inner = {"train": "train_images", "test": "test_task3_images"}[part]
    for place in (f"{part}/{relative}", f"{inner}/{relative}"):
        if os.path.isfile(os.path.join(folder, place)):
            relative = place
    picture = read_inside(folder, relative)
    height, width = host.picture_size(picture)
    if min(height, width) == 1:
        raise ValueError(f"{relative} is {width} x {height} px: nothing to see")
    return picture
