# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SROIE: scanned receipts, with questions about their total, date and company made here."""

import functools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Box, Source, inside, read_inside
from cropvlm_jax.pixels import host

QUESTIONS = {
    "total": "What is the total amount on the receipt?",
    "date": "What is the date on the receipt?",
    "company": "Which company issued the receipt?",
}
_SPLIT_ENDS = {"train": 0.70, "val": 0.85, "test": 1.0}
_MOST_LINES = 3  # over which a company's name is spread


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens SROIE (Huang et al., "ICDAR2019 Competition on Scanned Receipt OCR and Information
    Extraction"), with three questions a receipt.

    An answer is the field as annotated. Its box surrounds the line that holds the field's words and
    numbers, or the consecutive lines that do so together: of several the last one for the total,
    else the first one; there is no box where none does. A hash of the picture's name puts about 70,
    15 and 15% of the receipts into "train", "val" and "test"; receipts of equal `fields` go where
    the first of them does, as some were scanned more than once.

    Args:
        folder: holds `receipts.jsonl`, a receipt a line: `image` (a path), its `width` and `height`
            in pixels, `fields`, and `lines`, each with `text` and `box` (left, top, right, bottom
            in pixels); or the competition's `img/` of pictures, `box/*.csv` and `key/*.json`.
        split: "train", "val" (or "validation") or "test".

    Raises:
        FileNotFoundError: the folder holds no SROIE.
        ValueError: the split is unknown, or no receipt is usable.
    """
    root, split = Path(folder), rows.split_name(split)
    if (root / "receipts.jsonl").is_file():
        entries = rows.jsonl_rows(root / "receipts.jsonl")
    elif all((root / inner).is_dir() for inner in ("img", "box", "key")):
        entries = _competition_rows(root)
    else:
        raise rows.not_here(root, "SROIE", ("receipts.jsonl", "the folders img, box and key"))
    found = rows.collect(entries, _receipt)
    receipts = found.examples
    first: dict[str, str] = {}
    fields = [json.dumps(r["fields"], sort_keys=True, allow_nan=False) for r in receipts]
    homes = [first.setdefault(f, r["name"]) for f, r in zip(fields, receipts, strict=True)]
    asked: Iterator[rows.Entry] = (
        (f"{receipt['image']}, {field}", functools.partial(dict, receipt, field=field))
        for receipt, home in zip(receipts, homes, strict=True)
        if _split(home) == split
        for field in QUESTIONS
    )
    made = rows.collect(asked, functools.partial(_example, split))
    read = functools.partial(read_inside, str(root))
    skipped = found.skipped + made.skipped
    return Source(f"sroie/{split}", made.examples, read, skipped, made.lost_boxes)


def _split(name: str) -> str:
    share = rows.fraction(f"sroie/{name}")
    return next(split for split, end in _SPLIT_ENDS.items() if share < end)


def _receipt(row: rows.Row) -> rows.Row:
    """Checks a receipt, and names it by its picture."""
    image = rows.text(row, "image")
    for key in ("width", "height"):
        if type(row.get(key)) is not int or row[key] < 1:
            raise ValueError(f"{key} is {row.get(key)!r}")
    if not isinstance(row.get("fields"), dict) or not isinstance(row.get("lines"), list):
        raise ValueError("no fields or no lines")
    if not all(map(_is_line, row["lines"])):
        raise ValueError("a line without text or without a box of four numbers")
    return row | {"name": PurePosixPath(image).stem}


def _is_line(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("text"), str)
        and isinstance(line.get("box"), list)
        and len(line["box"]) == 4
        and all(isinstance(edge, int | float) and math.isfinite(edge) for edge in line["box"])
    )


def _example(split: str, row: rows.Row) -> rows.Row:
    field = row["field"]
    answer = rows.text(row["fields"], field).strip()
    example = {
        "example_id": f"sroie/{split}/{row['name']}/{field}",
        "image": row["image"],
        "question": QUESTIONS[field],
        "answers": [answer],
        "category": field,
    }
    lines = _evidence(answer, row["lines"], last=field == "total")
    if not lines:
        return example
    return rows.with_box(example, functools.partial(_around, lines, (row["height"], row["width"])))


def _evidence(answer: str, lines: list[dict[str, Any]], last: bool) -> list[dict[str, Any]]:
    """The fewest consecutive lines that hold the answer; none where there are none such."""
    wanted = _words(answer)
    for count in range(1, _MOST_LINES + 1) if wanted.strip() else ():
        runs = [lines[start : start + count] for start in range(len(lines) - count + 1)]
        holding = [run for run in runs if wanted in _words(" ".join(line["text"] for line in run))]
        if holding:
            return holding[-1 if last else 0]
    return []


def _words(text: str) -> str:
    """Words and numbers with a space around each, so that "9.00" is not found in "19.00"."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.lower())
    return " ".join(["", *re.findall(r"\d+|[^\W\d_]+", text), ""])


def _around(lines: list[dict[str, Any]], size: tuple[int, int]) -> Box:
    low, high = np.split(np.array([line["box"] for line in lines], np.float64), 2, axis=1)
    corner = np.array(size[::-1])
    if (low >= high).any() or (low >= corner).any() or (high <= 0).any():
        raise ValueError("the evidence's box is empty or outside the picture")
    pixels = np.concatenate([np.maximum(low.min(0), 0), np.minimum(high.max(0), corner)])
    x1, y1, x2, y2 = geometry.from_pixels(pixels, np.array(size)).tolist()
    return x1, y1, x2, y2


def _competition_rows(root: Path) -> Iterator[rows.Entry]:
    for picture in sorted((root / "img").iterdir()):
        yield f"receipt {picture.stem}", functools.partial(_competition_row, root, picture)


def _competition_row(root: Path, picture: Path) -> rows.Row:
    name, image = picture.stem, f"img/{picture.name}"
    height, width = host.picture_size(inside(root, image))
    fields = json.loads(read_inside(root, f"key/{name}.json").decode("utf-8-sig"))
    lines = []
    for line in read_inside(root, f"box/{name}.csv").decode("utf-8-sig").split("\n"):
        if line.strip():
            *corners, text = line.rstrip("\r").split(",", 8)
            if len(corners) != 8:
                raise ValueError(f"{line!r} in box/{name}.csv is not eight numbers and a text")
            xs, ys = [int(x) for x in corners[0::2]], [int(y) for y in corners[1::2]]
            lines.append({"text": text, "box": [min(xs), min(ys), max(xs), max(ys)]})
    return {
        "image": image,
        "width": width,
        "height": height,
        "fields": fields,
        "lines": lines,
    }
