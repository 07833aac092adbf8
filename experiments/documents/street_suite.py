# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The suite of street photos: the words that people marked, and which of them is the largest."""

from collections import defaultdict
from pathlib import Path

from cropvlm_jax.data import rows
from cropvlm_jax.data.sources import jsonl

LARGEST = "Which word is written in the largest letters?"
LEAD = 1.3  # times as large as any other word of the photo


def questions(folder: Path, split: str) -> list[rows.Row]:
    """The questions of the folder, and one about the largest word of each photo that has one."""
    found = []
    by_photo = defaultdict(list)
    for row in jsonl.open(folder, split).rows:
        row = row | {"example_id": f"street/{split}/{len(found) + 1}", "category": "named word"}
        found.append(row)
        if "box" in row:
            by_photo[row["image"]].append(row)
    for photo, words in by_photo.items():
        first, *others = sorted(words, key=_area, reverse=True)
        if not others or _area(first) >= LEAD * _area(others[0]):
            name = f"street/{split}/{Path(photo).stem}/largest"
            found.append(
                first | {"example_id": name, "question": LARGEST, "category": "largest word"}
            )
    return found


def _area(row: rows.Row) -> int:
    x1, y1, x2, y2 = row["box"]
    return (x2 - x1) * (y2 - y1)
