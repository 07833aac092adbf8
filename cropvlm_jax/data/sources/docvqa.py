# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""DocVQA, questions about scanned pages, and InfographicVQA, which is distributed alike."""

import functools
import os
from pathlib import Path

from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Source, read_inside


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens DocVQA (Mathew et al., "DocVQA: A Dataset for VQA on Document Images").

    Args:
        folder: holds the parquet shards of `lmms-lab/DocVQA`, `[DocVQA/ or data/]{split}-*.parquet`
            (validation and test); or `{split}_v1.0.json` or `{split}_v1.0_withQT.json` of the
            Robust Reading Competition, with the pictures in `documents/`, `{split}/documents/` or
            `spdocvqa_images/`.
        split: "train", "val" (or "validation") or "test", which has no answers.

    Raises:
        FileNotFoundError: the split is not in the folder.
        ValueError: the split is unknown, or its files are of something else.
    """
    split = rows.split_name(split)
    notes = (f"{split}_v1.0.json", f"{split}_v1.0_withQT.json")
    pictures = ("documents", f"{split}/documents", "spdocvqa_images")
    return _open(Path(folder), "DocVQA", split, "docId", notes, "image", pictures)


def open_infographics(folder: str | os.PathLike, split: str) -> Source:
    """Opens InfographicVQA (Mathew et al., "InfographicVQA").

    Args:
        folder: holds the parquet shards of `lmms-lab/DocVQA`,
            `[InfographicVQA/ or data/]{split}-*.parquet` (validation and test); or
            `infographicsVQA_{split}_v1.0.json` of the Robust Reading Competition (also spelled
            `infographicVQA_`, `_withQT`), with the pictures in `infographicsvqa_images/` or
            `images/`.
        split: "train", "val" (or "validation") or "test", which has no answers.

    Raises:
        FileNotFoundError: the split is not in the folder.
        ValueError: the split is unknown, or its files are of something else.
    """
    split = rows.split_name(split)
    notes = tuple(
        f"{name}_{split}_v1.0{ending}.json"
        for name in ("infographicsVQA", "infographicVQA")
        for ending in ("", "_withQT")
    )
    pictures = ("infographicsvqa_images", "images")
    return _open(
        Path(folder), "InfographicVQA", split, "image_url", notes, "image_local_name", pictures
    )


def _open(
    folder: Path,
    title: str,
    split: str,
    own_column: str,
    notes: tuple[str, ...],
    picture_field: str,
    picture_folders: tuple[str, ...],
) -> Source:
    """Parquet first, then JSON; `own_column` tells the two data sets' parquet files apart."""
    name = f"{title.lower()}/{split}"
    stored = "validation" if split == "val" else split
    shards = rows.parquet_shards(folder, (title, "data", ""), stored)
    pictures = next((inner for inner in picture_folders if (folder / inner).is_dir()), None)

    def parse(row: rows.Row) -> rows.Row:
        if not shards:
            # The JSON of DocVQA says "documents/", whatever the folder is called.
            picture = rows.text(row, picture_field).removeprefix("documents/")
            row = row | {"image": f"{pictures}/{picture}"}
        return {
            "example_id": f"{name}/{rows.identifier(row, 'questionId')}",
            "image": row["image"],
            "question": rows.text(row, "question"),
            "answers": rows.answers(row.get("answers"), required=split != "test"),
        }

    if shards:
        entries = rows.parquet_rows(shards, ("questionId", "question", own_column), ("answers",))
        found = rows.collect(entries, parse)
        return Source(name, found.examples, rows.parquet_picture, found.skipped)
    path = rows.first_file(folder, notes)
    if path is None or pictures is None:
        expected = (
            f"[{title}/]{stored}-*.parquet",
            f"{' or '.join(notes)} with {' or '.join(f'{inner}/' for inner in picture_folders)}",
        )
        raise rows.not_here(folder, f"{title}'s {split} split", expected)
    found = rows.collect(rows.json_rows(path), parse)
    read = functools.partial(read_inside, str(folder))
    return Source(name, found.examples, read, found.skipped)
