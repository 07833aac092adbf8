# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What Qwen2.5-VL sees of a picture: as many square tiles as its size allows.

No jax import: data workers do this. The model cuts crops in the same way, `Qwen2_5_VL.cut`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.models.config import check_supported
from cropvlm_jax.models.image_processing import CLIP_SETTINGS
from cropvlm_jax.models.qwen2_5_vl.config import TEMPORAL_PATCH, QwenConfig
from cropvlm_jax.pixels import host


class TiledImages(NamedTuple):
    """Pictures as tiles, I of them a picture, each of which becomes one token of the decoder.

    Attributes:
        tiles: uint8 pixels `[..., I, S, S, 3]`, or floats already normalised; row-major, and then
            padding.
        grid: int `[..., 2]`, rows and columns of the tiles.
    """

    tiles: Any
    grid: Any


def configure(
    config: QwenConfig, settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[QwenConfig, int]:
    """Minds the settings of the image processor; see `Architecture.configure`."""
    supported = {
        **CLIP_SETTINGS,
        "patch_size": config.vision.patch_size,
        "merge_size": config.vision.spatial_merge_size,
        "temporal_patch_size": TEMPORAL_PATCH,
    }
    check_supported("the image processor", settings, supported)
    # transformers 5 writes "size", the Hub has "min_pixels" and "max_pixels".
    size = settings.get("size") or {}
    least = settings.get("min_pixels", size.get("shortest_edge", config.limits.min_pixels))
    most = settings.get("max_pixels", size.get("longest_edge", config.limits.max_pixels))
    limits = geometry.PixelLimits(
        max_pixels=changes.get("max_pixels", min(most, config.limits.max_pixels)),
        min_pixels=least,
        factor=config.vision.tile_size,
    )
    return dataclasses.replace(config, limits=limits), limits.factor * limits.most_tiles


def see(
    config: QwenConfig, image: np.ndarray, longest_edge: int
) -> tuple[TiledImages, tuple[int, int]]:
    """One picture uint8 `[H, W, 3]` as `TiledImages` of a leading axis 1, and its grid.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    del longest_edge
    tiles = host.smart_tiles(image, config.limits)
    rows, columns = tiles.shape[:2]
    tiles = tiles.reshape(-1, *tiles.shape[2:])
    missing = config.limits.most_tiles - len(tiles)
    tiles = np.pad(tiles, [(0, missing), (0, 0), (0, 0), (0, 0)])
    return TiledImages(tiles[None], np.array([[rows, columns]], np.int32)), (rows, columns)


def grid(config: QwenConfig, height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of the tiles of a picture of this size."""
    del longest_edge
    limits = config.limits
    high, wide = geometry.smart_resize(
        height, width, limits.factor, limits.min_pixels, limits.max_pixels
    )
    return high // limits.factor, wide // limits.factor


def image_tokens(config: QwenConfig, height: int, width: int, longest_edge: int) -> int:
    """Tokens of a picture of this size, one a tile."""
    rows, columns = grid(config, height, width, longest_edge)
    return rows * columns
