# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""TextVQA: questions about text in photos, ten annotators' answers each."""

import functools
import os
from pathlib import Path

from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Source, read_inside


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens TextVQA (Singh et al., "Towards VQA Models That Can Read").

    Args:
        folder: holds the parquet shards of `lmms-lab/textvqa`, `[data/]{split}-*.parquet`; or the
            original `TextVQA_0.5.1_{train,val,test}.json`, whose pictures are in `train_images/`
            (train and val) and `test_images/`.
        split: "train", "val" (or "validation") or "test", which has no answers.

    Raises:
        FileNotFoundError: the split is not in the folder.
        ValueError: the split is unknown, or its files are of something else.
    """
    root, split = Path(folder), rows.split_name(split)
    stored = "validation" if split == "val" else split
    shards = rows.parquet_shards(root, ("data", ""), stored)
    notes = root / f"TextVQA_0.5.1_{split}.json"
    pictures = "test_images" if split == "test" else "train_images"

    def parse(row: rows.Row) -> rows.Row:
        image_id = rows.identifier(row, "image_id")
        return {
            "example_id": f"textvqa/{split}/{rows.identifier(row, 'question_id')}",
            "image": row["image"] if shards else f"{pictures}/{image_id}.jpg",
            "question": rows.text(row, "question"),
            "answers": rows.answers(row.get("answers"), required=split != "test"),
        }

    if shards:
        entries = rows.parquet_rows(shards, ("image_id", "question_id", "question"), ("answers",))
        found = rows.collect(entries, parse)
        return Source(f"textvqa/{split}", found.examples, rows.parquet_picture, found.skipped)
    if not notes.is_file() or not (root / pictures).is_dir():
        expected = (f"[data/]{stored}-*.parquet", f"{notes.name} with {pictures}/")
        raise rows.not_here(root, f"TextVQA's {split} split", expected)
    found = rows.collect(rows.json_rows(notes), parse)
    read = functools.partial(read_inside, str(root))
    return Source(f"textvqa/{split}", found.examples, read, found.skipped)
