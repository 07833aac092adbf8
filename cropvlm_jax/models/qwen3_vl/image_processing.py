# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What Qwen3-VL sees of a picture: Qwen2.5-VL's tiles, larger and otherwise normalised.

No jax import: data workers do this.
"""

from collections.abc import Mapping
from typing import Any

from cropvlm_jax.models.config import check_supported
from cropvlm_jax.models.image_processing import CLIP_MEAN, CLIP_STD, PART, read_settings
from cropvlm_jax.models.qwen2_5_vl import image_processing as qwen2_5
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config

MEAN, STD = 0.5, 0.5  # of the pixels, in 0..1
_NORMALISED = {"image_mean": [MEAN] * 3, "image_std": [STD] * 3}
# What Qwen2-VL's image processor takes for a setting that its file does not have.
_ABSENT = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "patch_size": 14}


def configure(
    config: Qwen3Config, settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[Qwen3Config, int]:
    """Minds the settings of the image processor; see `Architecture.configure`."""
    if settings:
        settings = _ABSENT | read_settings(settings, qwen2_5.PROCESSORS)
        check_supported(PART, settings, _NORMALISED)
        settings = {key: value for key, value in settings.items() if key not in _NORMALISED}
    return qwen2_5.configure(config, settings, changes)  # type: ignore[return-value]


def image_settings(
    config: Qwen3Config, longest_edge: int, stored: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes `transformers` see the same; see `Architecture.image_settings`."""
    return qwen2_5.image_settings(config, longest_edge, stored) | _NORMALISED
