# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations of any sizes as batches of few shapes, so that a model compiles few times.

Shape letters: B rows of a batch, N pictures or tiles of a row, P prompt tokens, C reply tokens.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cropvlm_jax.data import batching
from cropvlm_jax.data.batching import SupervisedBatch

TILES = 64  # most tiles of a batch, which bounds the memory of the vision tower
TILE_BYTES = 3 * 512**2  # of the largest tile
PROMPT_MULTIPLE = 32  # prompts are padded to a multiple of so many tokens
REPLY_MULTIPLE = 8  # fewer, because each reply token has logits over the whole vocabulary


class Row(NamedTuple):
    """One conversation.

    Attributes:
        images: what the model sees of its pictures, arrays `[N, ...]`.
        prompt: token ids `[P]`.
        completion: token ids `[C]` of the reply to score; empty where a reply is to be written.
    """

    images: Any
    prompt: np.ndarray
    completion: np.ndarray


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not less than `value`."""
    return -(-value // multiple) * multiple


def power_of_two(value: int) -> int:
    """The smallest power of two that is not less than `value`."""
    return 1 << (value - 1).bit_length()


def concatenate(trees: Sequence[Any], join: Callable[[Any], Any] = np.concatenate) -> Any:
    """Trees of arrays as one tree, in which `join` has put the arrays one after the other."""
    return jax.tree.map(lambda *arrays: join(arrays), *trees)


def make_batches(
    rows: Iterable[Row],
    *,
    most_rows: Callable[[Row], int] | None = None,
    prompt_multiple: int = PROMPT_MULTIPLE,
) -> Iterator[tuple[list[int], SupervisedBatch]]:
    """Puts rows whose pictures have the same shapes together.

    Rows are taken one by one, so that only a few batches of pictures are in memory.

    Args:
        rows: the conversations.
        most_rows: how many rows like this one make a full batch; None bounds the tiles of it.
        prompt_multiple: prompts are padded to a multiple of so many tokens.

    Yields:
        The indices of the rows that a batch holds, and the batch, whose first rows they are.
    """
    groups: dict[Any, list[tuple[int, Row]]] = collections.defaultdict(list)
    for index, row in enumerate(rows):
        shapes = tuple(array.shape for array in jax.tree.leaves(row.images))
        groups[shapes].append((index, row))
        if len(groups[shapes]) >= (most_rows or full_batch)(row):
            yield _batch(groups.pop(shapes), prompt_multiple)
    for group in groups.values():
        yield _batch(group, prompt_multiple)


def full_batch(row: Row) -> int:
    """How many rows with pictures like this one's make a full batch: a power of two."""
    first = jax.tree.leaves(row.images)[0]
    # Where pictures are not cut into tiles, a picture may be as large as many tiles.
    tiles = max(len(first), -(-first.nbytes // TILE_BYTES))
    return power_of_two(max(TILES // tiles, 1) + 1) // 2


def _batch(group: list[tuple[int, Row]], prompt_multiple: int) -> tuple[list[int], SupervisedBatch]:
    """Rows of any lengths as a batch of one of few shapes, and their indices."""
    rows = [row for _, row in group]
    prompt_length = round_up(max(len(row.prompt) for row in rows), prompt_multiple)
    completion_length = round_up(max(len(row.completion) for row in rows), REPLY_MULTIPLE)
    batch = stack_rows(rows, power_of_two(len(rows)), prompt_length, completion_length)
    return [index for index, _ in group], jax.tree.map(jnp.asarray, batch)


def stack_rows(
    rows: Sequence[Row], size: int, prompt_length: int, completion_length: int = 0
) -> SupervisedBatch:
    """Pads rows to one shape.

    There are `size` rows then: copies of the last one are added, so that no padding takes longer to
    answer than a real row.

    Args:
        rows: whose pictures have the same shapes.
        size: B.
        prompt_length: P.
        completion_length: C.

    Returns:
        NumPy arrays.
    """
    padded = []
    for row in (*rows, *[rows[-1]] * (size - len(rows))):
        prompt, prompt_valid = batching.pad(row.prompt, prompt_length, "left")
        completion, completion_valid = batching.pad(row.completion, completion_length, "right")
        padded.append(
            SupervisedBatch(
                images=row.images,
                prompt=prompt,
                prompt_valid=prompt_valid,
                completion=completion,
                completion_valid=completion_valid,
            )
        )
    return batching.stack(padded)
