# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The items of a benchmark: their pictures in memory, a few at once, and how a record begins."""

import functools
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax.data.source import Example
from cropvlm_jax.evals.conditions import ORACLE
from cropvlm_jax.evals.records import Record
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.ahead import ahead

PIXELS = 2**26  # most pixels of the pictures in memory
KEPT = ("question", "answers", "options", "label", "category", "cycle_category")  # in records


class Item(NamedTuple):
    """An item in work.

    Attributes:
        number: its index in the data set.
        example: as the data set has it.
        image: uint8 `[H, W, 3]`; empty where the picture cannot be read.
        seconds: that reading the picture took.
        unreadable: why the picture cannot be read; "" where it can.
    """

    number: int
    example: Example
    image: np.ndarray
    seconds: float
    unreadable: str = ""


def read_item(source: Any, index: int) -> Item:
    """Reads an item with its picture.

    Raises:
        OSError: the picture cannot be read, and the source knows nothing else of the item.
        ValueError: for the same reason.
    """
    began = time.perf_counter()
    rows = getattr(source, "rows", None)
    example = None if rows is None else rows[index]
    try:
        example = source[index]
        image = host.to_rgb(example["image"])
    except (OSError, ValueError) as error:
        if example is None:
            raise
        return Item(index, example, np.empty((0, 0, 3), np.uint8), 0.0, str(error))
    return Item(index, example, image, time.perf_counter() - began)


def read_parts(source: Any, indices: Iterable[int]) -> Iterator[list[Item]]:
    """Items, as many at once as there may be pixels in memory; threads read the next ones."""
    part: list[Item] = []
    pixels = 0
    began = time.perf_counter()
    for item in ahead(functools.partial(read_item, source), indices):
        item = item._replace(seconds=time.perf_counter() - began)  # that it was waited for
        size = item.image.size // 3
        if part and pixels + size > PIXELS:
            yield part
            part, pixels = [], 0
        part.append(item)
        pixels += size
        began = time.perf_counter()
    yield part


def begin_record(item: Item) -> Record:
    """The record of an item before anything was asked about it."""
    example: Mapping[str, Any] = item.example
    record: Record = {"boxes": {}, "replies": {}, "image_tokens": {}, "tokens": {}}
    if item.unreadable:
        record = {}
    record |= {"index": item.number, "example_id": example["example_id"]}
    record |= {key: example[key] for key in KEPT if key in example}
    if item.unreadable:
        return record | {"unreadable": item.unreadable}
    if "boxes" in example:
        record["boxes"] = {ORACLE: [[int(v) for v in box] for box in example["boxes"]]}
    elif "box" in example:
        record["boxes"] = {ORACLE: [int(v) for v in example["box"]]}
    # Items about one picture are not independent, so that records say which picture it was.
    picture = hashlib.blake2b(item.image.tobytes(), digest_size=8).hexdigest()
    size = list(item.image.shape[:2])
    return record | {"size": size, "picture": picture, "seconds": {"read": item.seconds}}


def check_answers(source: Any, total: int) -> None:
    """Checks that the first `total` items have answers, before any is worked on.

    Raises:
        ValueError: an item has none.
    """
    rows = getattr(source, "rows", None)
    if not isinstance(rows, list):
        return
    for row in rows[:total]:
        if not row["answers"]:
            raise ValueError(
                f"{row['example_id']} has no answers to score replies against: this split hides "
                "them, or the file lacks them"
            )
