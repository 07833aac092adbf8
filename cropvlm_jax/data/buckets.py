# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Buckets: examples whose rows have equal shapes, so that they may be in one batch.

Two things tell them apart: the grid of tiles that the cropper's picture is split into, and the
canvas that the original pixels are on. A step is compiled once for each bucket.
"""

import collections
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from absl import logging

from cropvlm_jax.data import batching, faults
from cropvlm_jax.data.source import Examples
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.canvas import Canvas, choose

_CANVAS, _ROWS = 10_000, 100  # digits of a bucket's number


class Bucket(NamedTuple):
    """What rows of equal shapes have in common; in arrays it is a number.

    Attributes:
        canvas: Index of the canvas that pictures are on.
        rows: Rows of the tiles that pictures are split into, 0 where they are not split.
        columns: Columns of these tiles.
    """

    canvas: int
    rows: int
    columns: int

    @classmethod
    def of(cls, number: int) -> "Bucket":
        """The bucket that has this number."""
        canvas, grid = divmod(number, _CANVAS)
        rows, columns = divmod(grid, _ROWS)
        return cls(canvas, rows, columns)

    @property
    def number(self) -> int:
        """A number that no other bucket has."""
        return _CANVAS * self.canvas + _ROWS * self.rows + self.columns


def tell(counts: Mapping[int, int], canvases: Sequence[Canvas] = ()) -> str:
    """Numbers of examples by bucket in words, such as "3 of 2x2 tiles on 1024x1024 px".

    Args:
        counts: How many examples there are, by `Bucket.number`.
        canvases: What there is for the original pixels, told where there are several.
    """
    told = []
    for number, count in counts.items():
        bucket = Bucket.of(number)
        tiles = f"{bucket.rows}x{bucket.columns} tiles" if bucket.rows else "one tile"
        on = f" on {canvases[bucket.canvas]}" if len(canvases) > 1 else ""
        told.append(f"{count} of {tiles}{on}")
    return ", ".join(told) or "none"


def bucket_examples(
    source: Examples,
    cropper_input: batching.CropperInput | None,
    canvases: Sequence[Canvas] = (),
    batch_size: int = 1,
    first: int | None = None,
) -> np.ndarray:
    """The bucket of every example, from the headers of the pictures.

    Headers are read only where there is something to decide: pictures are split, or there are
    several canvases.

    Args:
        source: The examples.
        cropper_input: What the cropper sees of an example; None where no picture is split.
        canvases: What there is for the original pixels; empty where rows have no canvas.
        batch_size: Examples that are left over in a bucket after whole batches of so many go on the
            next larger canvas that is used.
        first: How many examples to look at; None looks at all.

    Returns:
        `Bucket.number`, int32 `[n]`; -1 where the header cannot be read (the log counts and names
        these).
    """
    count = len(source) if first is None else min(first, len(source))
    splits = cropper_input is not None and cropper_input.splits
    if not splits and len(canvases) < 2:
        return np.zeros(count, np.int32)
    unreadable: list[str] = []

    def bucket(index: int) -> int:
        try:
            height, width = source.picture_size(index)
            canvas = choose(height, width, canvases) if canvases else 0
            if canvases:  # what the cropper sees is the picture that is on it
                most_high, most_wide = canvases[canvas]
                height, width = host.size_to_fit(height, width, most_high, most_wide)
            rows, columns = (
                cropper_input.grid(height, width) if splits and cropper_input else (0, 0)
            )
        except (ValueError, OSError) as error:
            unreadable.append(f"{source.name_of(index)}: {error}")
            return -1
        return Bucket(canvas, rows, columns).number

    buckets = np.empty(count, np.int32)
    with futures.ThreadPoolExecutor() as pool:
        for some in _stretches(count):
            buckets[some] = list(pool.map(bucket, some))
    faults.log(f"{len(unreadable)} of {count} examples left out", sorted(unreadable))
    return with_whole_batches(buckets, canvases, batch_size) if canvases else buckets


def _stretches(count: int) -> Iterator[range]:
    """The indices of examples, few at once; the log tells how far they are."""
    logged = time.monotonic()
    for start in range(0, count, 1024):
        some = range(start, min(start + 1024, count))
        yield some
        if time.monotonic() - logged > 10:
            logged = time.monotonic()
            logging.info("reading picture sizes: %d of %d", some.stop, count)


def with_whole_batches(
    buckets: np.ndarray, canvases: Sequence[Canvas], batch_size: int
) -> np.ndarray:
    """Moves what fills no batch to larger canvases, so that it is not left out.

    Of each bucket, the last examples that are left over after whole batches go on the smallest
    canvas in use that is larger both ways; where there is none they stay.

    Args:
        buckets: `Bucket.number` of every example, -1 for those to leave out; int `[n]`.
        canvases: What there is, which `Bucket.canvas` is an index of.
        batch_size: Examples of a batch.

    Returns:
        The buckets then, int `[n]`.
    """
    numbers = np.unique(buckets[buckets >= 0]).tolist()
    members = {Bucket.of(number): np.flatnonzero(buckets == number) for number in numbers}
    for bucket in sorted(members, key=lambda bucket: _area(canvases[bucket.canvas])):
        canvas = canvases[bucket.canvas]
        larger = [
            other
            for other in members
            if other.canvas != bucket.canvas
            and other._replace(canvas=bucket.canvas) == bucket
            and canvases[other.canvas].holds(canvas.height, canvas.width)
        ]
        if larger:
            next_larger = min(larger, key=lambda other: _area(canvases[other.canvas]))
            whole, left_over = np.split(members[bucket], [_whole(members[bucket], batch_size)])
            members[bucket] = whole
            members[next_larger] = np.sort(np.concatenate([members[next_larger], left_over]))
    moved = buckets.copy()
    for bucket, indices in members.items():
        moved[indices] = bucket.number
    return moved


def _area(canvas: Canvas) -> int:
    return canvas.height * canvas.width


def _whole(examples: np.ndarray, batch_size: int) -> int:
    """How many of these examples are in whole batches."""
    return len(examples) - len(examples) % batch_size


def describe(
    buckets: np.ndarray, cropper_input: batching.CropperInput, canvases: Sequence[Canvas] = ()
) -> str:
    """What the cropper reads of the pictures and what they are on, for the log.

    Args:
        buckets: `Bucket.number` of every example, -1 for those that are left out; int `[n]`.
        cropper_input: What the cropper sees of an example.
        canvases: What there is for the original pixels.
    """
    grids: collections.Counter[tuple[int, int]] = collections.Counter()
    used: collections.Counter[int] = collections.Counter()
    for number, count in collections.Counter(buckets[buckets >= 0].tolist()).items():
        bucket = Bucket.of(number)
        grids[bucket.rows, bucket.columns] += count
        used[bucket.canvas] += count
    described = []
    for (rows, columns), count in grids.most_common():
        tokens = batching.crop_prompt_length(cropper_input.conversations, (rows, columns))
        tiles = f"{rows}x{columns} tiles and the whole" if rows else "one tile"
        described.append(f"{count} of {tiles}, {tokens} tokens")
    prompts = f"prompts without their questions: {'; '.join(described)}"
    if not canvases:
        return prompts
    told = "; ".join(f"{count} on {canvases[index]}" for index, count in used.most_common())
    return f"{prompts}. Canvases, height x width: {told}"
