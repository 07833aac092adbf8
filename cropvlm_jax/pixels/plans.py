# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What of a picture a device is to cut out of its canvas, from the picture's size alone; no jax."""

from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax.geometry.boxes import Array
from cropvlm_jax.pixels import host


class PlannedTiles(NamedTuple):
    """SmolVLM's tiles of pictures that all have the same grid, r rows and c columns of tiles.

    The grid is a shape, because a program is compiled for it.

    Attributes:
        cells: The number of each tile, int32 `[B, r, c]`, row-major. The whole picture follows as
            one more tile where there are several.
        resized: Height and width after the first of the processor's two passes, int32 `[B, 2]`.
    """

    cells: Array
    resized: Array

    @classmethod
    def of(
        cls, height: int, width: int, tile_size: int, longest_edge: int, split: bool = True
    ) -> "PlannedTiles":
        """The plan of one picture, without the batch axis: what `host.tile` would cut.

        Args:
            height: Of the picture, in pixels.
            width: Of the picture, in pixels.
            tile_size: As of `host.tile`.
            longest_edge: As of `host.tile`.
            split: As of `host.tile`.
        """
        resized = host.resized(height, width, longest_edge)
        rows, columns = (1, 1)
        if split:
            fitted = host.fitted(resized[0], resized[1], tile_size)
            rows, columns = (edge // tile_size for edge in fitted)
        cells = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
        return cls(cells, np.array(resized, np.int32))

    @property
    def images(self) -> int:
        """N: tiles of a picture, the whole of it among them."""
        tiles = int(np.prod(self.cells.shape[-2:]))
        return tiles + (tiles > 1)


class PlannedCrops(NamedTuple):
    """Parts of pictures, each of which a model sees as one picture.

    Attributes:
        boxes: Percent boxes, int32 `[B, N, 4]`.
    """

    boxes: Array


def count_images(images: Any) -> int:
    """N: how many images a model sees of each row of a batch, cut already or planned."""
    if isinstance(images, PlannedTiles):
        return images.images
    while isinstance(images, tuple):  # leaves `[B, N, ...]`
        images = images[0]
    return int(images.shape[1])
