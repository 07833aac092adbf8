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
from cropvlm_jax.models.image_processing import CLIP_SETTINGS, PART, read_settings
from cropvlm_jax.models.llava.config import LlavaConfig
from cropvlm_jax.pixels import host

CENTRE, PAD = "CLIPImageProcessor", "LlavaImageProcessor"  # the latter pads if it is told to


def _fixed(config: LlavaConfig) -> dict[str, Any]:
    """The settings of the image processor that have one supported value."""
    side = config.vision.image_size
    return {
        **CLIP_SETTINGS,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def configure(
    config: LlavaConfig, settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[LlavaConfig, int]:
    """Minds the settings of the image processor; see `Architecture.configure`."""
    found = read_settings(settings, (CENTRE, PAD))
    size, crop = found.get("size"), found.get("crop_size")
    # Old versions of transformers wrote one number.
    if isinstance(size, int) and not found.get("default_to_square"):
        found["size"] = {"shortest_edge": size}
    if isinstance(crop, int):
        found["crop_size"] = {"height": crop, "width": crop}
    check_supported(PART, found, _fixed(config) | {"pad_size": None, "use_square_size": False})
    pads = found.get("do_pad", False) and found.get("image_processor_type") != CENTRE
    pad = read_settings(changes, ()).get("do_pad", pads)
    return dataclasses.replace(config, pad=pad), config.vision.image_size


def image_settings(
    config: LlavaConfig, longest_edge: int, stored: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes `transformers` see the same; see `Architecture.image_settings`."""
    kind = PAD if config.pad else CENTRE
    return {"image_processor_type": kind, **_fixed(config), "do_pad": config.pad}


def processor_config(config: LlavaConfig, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the processor must say of the shape; see `Architecture.processor_config`."""
    wanted = {
        "patch_size": config.vision.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    given = {key: value for key, value in stored.items() if value is not None}
    # The class token is added and dropped again, or, where nothing says "default", neither.
    classes = 1 if "vision_feature_select_strategy" in given else 0
    check_supported("", given, wanted | {"num_additional_image_tokens": classes})
    return wanted


def see(config: LlavaConfig, image: np.ndarray, longest_edge: int) -> tuple[np.ndarray, None]:
    """The square uint8 `[1, S, S, 3]` of a picture `[H, W, 3]`, and no grid."""
    del longest_edge
    return host.bicubic_square(image, config.vision.image_size, config.fill)[None], None


def grid(config: LlavaConfig, height: int, width: int, longest_edge: int) -> None:
    """There is no grid, because no picture is split."""


def image_tokens(config: LlavaConfig, height: int, width: int, longest_edge: int) -> int:
    """Tokens of a picture of this size, the same for all sizes."""
    return config.image_seq_len
