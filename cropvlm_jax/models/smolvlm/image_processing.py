# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What SmolVLM sees of a picture: square tiles and, last, the whole of it as one tile.

No jax import: data workers do this. The model cuts crops in the same way, `SmolVLM.cut`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cropvlm_jax.models.config import check_supported, read_numbers
from cropvlm_jax.models.image_processing import ALWAYS, PART, read_settings
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.plans import PlannedTiles

PROCESSORS = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")  # the same arithmetic


def _fixed(config: SmolVLMConfig) -> dict[str, Any]:
    """The settings of the image processor that have one supported value."""
    return {
        **ALWAYS,
        "resample": 1,  # Lanczos
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "max_image_size": {"longest_edge": config.vision.image_size},
    }


def configure(
    config: SmolVLMConfig, settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[SmolVLMConfig, int]:
    """Minds the settings of the image processor; see `Architecture.configure`."""
    del changes  # there is nothing to change
    found = read_settings(settings, PROCESSORS)
    side = config.vision.image_size
    tile = _longest_edge(found, "max_image_size", side)
    if tile != side:
        raise ValueError(
            f"{PART} cuts tiles of {tile} px (max_image_size), but the vision tower takes {side} px"
        )
    check_supported(PART, found, _fixed(config) | {"do_center_crop": False})
    split = found.get("do_image_splitting", True)
    return dataclasses.replace(config, split=split), _longest_edge(found, "size", 4 * side)


def _longest_edge(found: Mapping[str, Any], key: str, default: int) -> int:
    """The longest edge that is all that a setting has."""
    size = found.get(key, {"longest_edge": default})
    if not isinstance(size, dict) or size.keys() != {"longest_edge"}:
        raise ValueError(f"{PART}: {key}={size!r} is not supported, only {{'longest_edge': ...}}")
    edge: int = read_numbers(f"{PART}: {key}", size, {"longest_edge": default})["longest_edge"]
    return edge


def image_settings(
    config: SmolVLMConfig, longest_edge: int, stored: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes `transformers` see the same; see `Architecture.image_settings`."""
    found = read_settings(stored, PROCESSORS)
    return {
        "image_processor_type": found.get("image_processor_type", PROCESSORS[0]),
        **_fixed(config),
        "size": {"longest_edge": longest_edge},
        "do_image_splitting": config.split,
        # Fills up batches, which changes no picture: stays on unless it was switched off.
        "do_pad": stored.get("do_pad") is not False,
    }


def processor_config(config: SmolVLMConfig, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the processor must say of the shape; see `Architecture.processor_config`."""
    wanted = {"image_seq_len": config.image_seq_len}
    check_supported("", stored, wanted)
    return wanted


def see(
    config: SmolVLMConfig, image: np.ndarray, longest_edge: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Tiles uint8 `[N, S, S, 3]` of a picture `[H, W, 3]`, and their rows and columns."""
    return host.tile(image, config.vision.image_size, longest_edge, config.split)


def grid(config: SmolVLMConfig, height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of the tiles of a picture of this size; (0, 0) where it is not split."""
    if not config.split:
        return 0, 0
    return host.grid(height, width, config.vision.image_size, longest_edge)


def plan(config: SmolVLMConfig, height: int, width: int, longest_edge: int) -> PlannedTiles:
    """What a device is to cut out of a picture of this size to `see` it."""
    return PlannedTiles.of(height, width, config.vision.image_size, longest_edge, config.split)


def image_tokens(config: SmolVLMConfig, height: int, width: int, longest_edge: int) -> int:
    """Tokens of a picture of this size: of all tiles, and of the whole of it."""
    rows, columns = grid(config, height, width, longest_edge)
    return (rows * columns + 1) * config.image_seq_len
