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
from cropvlm_jax.models.config import check_supported, read_numbers
from cropvlm_jax.models.image_processing import CLIP_SETTINGS, PART, read_settings
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


PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")  # the same one, renamed
# The limits under their new names, which transformers 5 writes into "size", and those of the Hub.
LIMITS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}


def _fixed(config: QwenConfig) -> dict[str, Any]:
    """The settings of the image processor that have one supported value."""
    return {
        **CLIP_SETTINGS,
        "patch_size": config.vision.patch_size,
        "merge_size": config.vision.spatial_merge_size,
        "temporal_patch_size": TEMPORAL_PATCH,
    }


def _limits(config: QwenConfig, found: dict[str, Any]) -> dict[str, int]:
    """The fewest and the most pixels of a picture, as the image processor has them."""
    size = found.get("size", {})
    if not isinstance(size, dict) or not size.keys() <= {*LIMITS, *LIMITS.values()}:
        raise ValueError(f"{PART}: size={size!r} is not supported, only {', '.join(LIMITS)}")
    given: dict[str, Any] = {LIMITS.get(str(key), str(key)): size[key] for key in size}
    given |= found
    defaults = {"min_pixels": config.limits.min_pixels, "max_pixels": 1280 * 28**2}
    return read_numbers(PART, given, defaults)


def configure(
    config: QwenConfig, settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[QwenConfig, int]:
    """Minds the settings of the image processor; see `Architecture.configure`."""
    found = read_settings(settings, PROCESSORS)
    check_supported(PART, found, _fixed(config) | {"do_center_crop": False})
    limits = _limits(config, found)
    limits["max_pixels"] = min(limits["max_pixels"], config.limits.max_pixels)
    limits |= read_numbers(PART, changes, {"max_pixels": limits["max_pixels"]})
    checked = geometry.PixelLimits(**limits, factor=config.vision.tile_size)
    return dataclasses.replace(config, limits=checked), checked.factor * checked.most_tiles


def image_settings(
    config: QwenConfig, longest_edge: int, stored: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes `transformers` see the same; see `Architecture.image_settings`.

    The limits are the stored ones: that we see less by default is no property of the model.
    """
    limits = _limits(config, read_settings(stored, PROCESSORS))
    size = {new: limits[old] for new, old in LIMITS.items()}
    return {"image_processor_type": PROCESSORS[0], **_fixed(config), "size": size, **limits}


def processor_config(config: QwenConfig, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the processor must say of the shape: nothing; see `Architecture.processor_config`."""
    return {}


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
