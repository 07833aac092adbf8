# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The few shapes that a served model is compiled for, and how conversations are made to fit them.

A model of tiles sees few or many of them, by the shape of a picture, and questions are short or
long. Each `Room` holds what is not larger than itself; rooms for all pictures are known before the
first one comes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cropvlm_jax.models.conversations import Conversation
from cropvlm_jax.readers.batches import PROMPT_MULTIPLE, Row, round_up
from cropvlm_jax.readers.loaded import LoadedModel

ASPECTS = 64  # pictures from square to 1 : 64, which have all the grids that there are

Ask = Callable[[str, Sequence[Any]], Conversation]  # of a question and the grids of its pictures


@dataclasses.dataclass(frozen=True, order=True)
class Room:
    """A shape of one row of a batch.

    Attributes:
        images: pictures or tiles.
        prompt: tokens.
    """

    images: int
    prompt: int

    def holds(self, row: Row) -> bool:
        """Whether a row is not larger."""
        return image_count(row) <= self.images and len(row.prompt) <= self.prompt

    def fill(self, row: Row) -> Row:
        """The row with as many pictures as there is room for.

        Copies of the last one follow. The prompt has no place for them, so nothing reads them.
        """
        missing = self.images - image_count(row)
        if not missing:
            return row
        images = jax.tree.map(
            lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], missing, 0)]), row.images
        )
        return row._replace(images=images)


def image_count(row: Row) -> int:
    """How many pictures or tiles a row has."""
    return len(jax.tree.leaves(row.images)[0])


def make_rooms(
    model: LoadedModel,
    ask: Ask,
    *,
    pictures: int,
    question_tokens: Sequence[int],
    reply_tokens: int,
) -> tuple[Room, ...]:
    """The rooms that a model needs, the smallest first.

    Of the numbers of tiles that a picture may have, the largest gets rooms, and so does the
    smallest that is at least half of it. Fewer pictures than most take the rooms of the most, so
    that there is less to compile.

    Args:
        model: that is served.
        ask: its conversation.
        pictures: most that a question may have.
        question_tokens: of the longest question of each room.
        reply_tokens: of the longest reply, which must find room after the prompt.

    Raises:
        ValueError: not even the shortest question finds room.
    """
    positions = model.source.config.text.max_position_embeddings
    limit = positions - reply_tokens
    seen = _all_grids(model)
    most = max(seen.values())
    half = min(count for count in seen.values() if 2 * count >= most)
    found = set()
    for tiles in (half, most):
        grids = [grid for grid, count in seen.items() if count <= tiles]
        shortest = max(ask("A", [grid] * pictures).completion.start for grid in grids)
        if shortest > limit:
            raise ValueError(
                f"{model.source.name}: {shortest} prompt tokens of {pictures} pictures and "
                f"{reply_tokens} for the reply are over its {positions} positions: allow shorter "
                f"replies, or {model.source.architecture.fewer_tokens}"
            )
        for tokens in question_tokens:
            length = round_up(shortest + tokens, PROMPT_MULTIPLE)
            found.add(Room(images=pictures * tiles, prompt=min(length, limit)))
    return tuple(sorted(found))


def _all_grids(model: LoadedModel) -> dict[Any, int]:
    """The grids that pictures may have, and how many tiles each of them is.

    Where pictures are not split, all are alike: one grid stands for them.
    """
    shapes = [(ASPECTS, side) for side in range(1, ASPECTS + 1)]
    if not model.source.architecture.splits_pictures:
        shapes = shapes[-1:]
    found: dict[Any, int] = {}
    for height, width in shapes + [shape[::-1] for shape in shapes]:
        config, edge = model.source.config, model.longest_edge
        grid = model.source.architecture.grid(config, height, width, edge)
        if grid not in found:
            images, _ = model.see([np.zeros((height, width, 3), np.uint8)])
            found[grid] = len(jax.tree.leaves(images)[0])
    return found
