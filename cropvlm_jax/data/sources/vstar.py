# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""V* Bench: multiple-choice questions about small things in large photos, with their boxes."""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cropvlm_jax import geometry, texts
from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Box, Source, inside, read_inside
from cropvlm_jax.pixels import host

QUESTIONS = "test_questions.jsonl"
FOLDERS = ("direct_attributes", "relative_position")  # what the benchmark's scores are about
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPTION = re.compile(r"(?<!\S)\(([A-Z])\)\s*")
_INSTRUCTION = re.compile(r"\s*Answer with the option's letter.*", re.DOTALL | re.IGNORECASE)


def open(folder: str | os.PathLike, split: str = "test") -> Source:
    """Opens V* Bench (Wu & Xie, "V*: Guided Visual Search as a Core Mechanism in Multimodal LLMs").

    The options' order and the right letter come from `test_questions.jsonl`. Without that file the
    questions come from the json beside each picture, where the first option is the right one. These
    json files also tell the targets' boxes; an example's `box` contains all of its targets.

    Args:
        folder: a copy of `craigwu/vstar_bench`.
        split: "test", the only one.

    Raises:
        FileNotFoundError: the folder holds no V* Bench.
        ValueError: the split is unknown, or nothing in the folder is usable.
    """
    if split != "test":
        raise ValueError(f"V* Bench has the one split 'test', not {split!r}")
    root = Path(folder)
    entries = rows.jsonl_rows(root / QUESTIONS) if (root / QUESTIONS).is_file() else _beside(root)
    found = rows.collect(entries, functools.partial(_example, root))
    if not found.examples and not found.skipped:
        raise rows.not_here(root, "V* Bench", (QUESTIONS, *(f"{name}/" for name in FOLDERS)))
    read = functools.partial(read_inside, str(root))
    return Source("vstar/test", found.examples, read, found.skipped, found.lost_boxes)


def _beside(root: Path) -> Iterator[rows.Entry]:
    """Rows as in `test_questions.jsonl`, from the json files beside the pictures."""

    def read(picture: Path) -> rows.Row:
        return _notes(picture) | {
            "question_id": f"{picture.parent.name}/{picture.stem}",
            "image": f"{picture.parent.name}/{picture.name}",
            "category": picture.parent.name,
            "label": "A",
        }

    for folder in FOLDERS:
        for picture in sorted((root / folder).glob("*")):
            if picture.suffix != ".json":
                yield f"{folder}/{picture.name}", functools.partial(read, picture)


def _notes(picture: Path) -> rows.Row:
    """The json beside a picture; empty where there is none."""
    path = picture.with_suffix(".json")
    notes = json.loads(path.read_bytes()) if path.is_file() else {}
    if not isinstance(notes, dict):
        raise ValueError(f"{path.name} is not an object with fields")
    return notes


def _example(root: Path, row: rows.Row) -> rows.Row:
    name = rows.text(row, "image")
    picture = inside(root, name)
    height, width = host.picture_size(picture)
    if "text" in row:
        row = row | _parse(rows.text(row, "text"))
    options = row.get("options")
    if not isinstance(options, list) or not all(isinstance(o, str) and o for o in options):
        raise ValueError(f"options are {options!r}, not a list of texts")
    for option in options:
        texts.check(option, "option")
    label = rows.text(row, "label").strip()
    answers = dict(zip(LETTERS, options, strict=False))
    if label not in answers:
        raise ValueError(f"label {label!r} is none of the {len(options)} options")
    example = {
        "example_id": f"vstar/test/{rows.identifier(row, 'question_id')}",
        "image": name,
        "question": rows.text(row, "question"),
        "answers": [answers[label]],
        "options": options,
        "label": label,
        "category": rows.text(row, "category"),
    }
    targets = _notes(picture).get("bbox")
    if not targets:
        return example
    return rows.with_box(example, functools.partial(_union, targets, height, width))


def _parse(text: str) -> rows.Row:
    """Question and options of a prompt such as "Is it red? (A) yes (B) no Answer with ..."."""
    question, *rest = _OPTION.split(_INSTRUCTION.sub("", text))
    letters, options = rest[::2], [option.strip() for option in rest[1::2]]
    if not letters or "".join(letters) != LETTERS[: len(letters)]:
        raise ValueError(f"no options (A), (B), ... in {text!r}")
    return {"question": question.strip(), "options": options}


def _union(targets: object, height: int, width: int) -> Box:
    """Percent box around targets `[K, 4]`: left, top, width, height in pixels."""
    try:
        low, size = np.split(np.asarray(targets, np.float64).reshape(-1, 4), 2, axis=1)
    except (TypeError, ValueError):
        low = size = np.full((1, 2), np.nan)
    if not (np.isfinite(low + size).all() and (size > 0).all()):
        raise ValueError(f"bbox is {targets}, not a list of [x, y, width, height]")
    if (low >= (width, height)).any() or (low + size <= 0).any():
        raise ValueError(f"bbox {targets} lies outside of the {width} x {height} px picture")
    pixels = np.concatenate([low.min(0), (low + size).max(0)])
    x1, y1, x2, y2 = geometry.from_pixels(pixels, np.array([height, width])).tolist()
    return x1, y1, x2, y2
