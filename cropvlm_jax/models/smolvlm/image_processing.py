# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What SmolVLM sees of a picture: square tiles and, last, the whole of it as one tile.

No jax import: data workers do this. The model cuts crops in the same way, `SmolVLM.cut`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.pixels import host


def configure(
    config: SmolVLMConfig, settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[SmolVLMConfig, int]:
    """Minds the settings of the image processor; see `Architecture.configure`."""
    del changes  # there is nothing to change
    side = config.vision.image_size
    tile = settings.get("max_image_size", {}).get("longest_edge", side)
    if tile != side:
        raise ValueError(
            f"the processor cuts tiles of {tile} px, but the vision tower takes {side} px"
        )
    return config, settings.get("size", {}).get("longest_edge", 4 * tile)


def see(
    config: SmolVLMConfig, image: np.ndarray, longest_edge: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Tiles uint8 `[N, S, S, 3]` of a picture `[H, W, 3]`, and their rows and columns."""
    return host.tile(image, config.vision.image_size, longest_edge)


def grid(config: SmolVLMConfig, height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of the tiles of a picture of this size; (0, 0) where it is not split."""
    return host.grid(height, width, config.vision.image_size, longest_edge)


def image_tokens(config: SmolVLMConfig, height: int, width: int, longest_edge: int) -> int:
    """Tokens of a picture of this size: of all tiles, and of the whole of it."""
    rows, columns = grid(config, height, width, longest_edge)
    return (rows * columns + 1) * config.image_seq_len
