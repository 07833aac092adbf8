# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What LLaVA-1.5 sees of a picture: one square.

No jax import: data workers do this. The model cuts crops in the same way, `Llava.cut`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cropvlm_jax.models.config import check_supported
from cropvlm_jax.models.image_processing import CLIP_SETTINGS
from cropvlm_jax.models.llava.config import LlavaConfig
from cropvlm_jax.pixels import host


def configure(
    config: LlavaConfig, settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[LlavaConfig, int]:
    """Minds the settings of the image processor; see `Architecture.configure`."""
    found, side = {**settings, **changes}, config.vision.image_size
    # Old versions of transformers wrote one number.
    if isinstance(found.get("size"), int):
        found["size"] = {"shortest_edge": found["size"]}
    if isinstance(found.get("crop_size"), int):
        found["crop_size"] = {"height": found["crop_size"], "width": found["crop_size"]}
    supported = {
        **CLIP_SETTINGS,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
    }
    check_supported("the image processor", found, supported)
    return dataclasses.replace(config, pad=bool(found.get("do_pad"))), side


def see(config: LlavaConfig, image: np.ndarray, longest_edge: int) -> tuple[np.ndarray, None]:
    """The square uint8 `[1, S, S, 3]` of a picture `[H, W, 3]`, and no grid."""
    del longest_edge
    return host.bicubic_square(image, config.vision.image_size, config.fill)[None], None


def grid(config: LlavaConfig, height: int, width: int, longest_edge: int) -> None:
    """There is no grid, because no picture is split."""


def image_tokens(config: LlavaConfig, height: int, width: int, longest_edge: int) -> int:
    """Tokens of a picture of this size, the same for all sizes."""
    return config.image_seq_len
