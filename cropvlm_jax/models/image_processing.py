# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What host image processing of several architectures shares; no jax import."""

from collections.abc import Mapping
from typing import Any

PART = "the image processor"  # in messages

# Of the pixels, in 0..1, that every CLIP was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Settings that no architecture here can do without.
ALWAYS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
# Settings of an image processor that normalises as CLIP's does, after a bicubic resize.
CLIP_SETTINGS = {
    **ALWAYS,
    "resample": 3,  # bicubic
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
}


def read_settings(settings: Mapping[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Settings of an image processor without the spellings of old and early versions.

    Versions before the release of transformers 5 wrote null for what is not set: a `do_...` is off
    then, and `min_pixels` and `max_pixels` are absent. What another null would mean is not known,
    so it stays and does not equal any supported value. One number in place of three channels' is
    written out.

    Args:
        settings: as a folder has them.
        kinds: the supported values of `image_processor_type`, without the endings "Fast" and "Pil",
            which name other implementations of the same.

    Raises:
        ValueError: naming the setting and its value.
    """
    found = dict(settings)
    for key, value in settings.items():
        if value is None and key in ("min_pixels", "max_pixels"):
            del found[key]
        elif key.startswith("do_"):
            if not isinstance(value, bool | None):
                raise ValueError(f"{PART}: {key}={value!r} must be true or false")
            found[key] = bool(value)
        elif key in ("image_mean", "image_std") and isinstance(value, int | float):
            found[key] = [value] * 3
    kind = found.pop("feature_extractor_type", None)  # the old name
    kind = found.get("image_processor_type", kind)
    if kind is not None or "image_processor_type" in found:
        name = str(kind).removesuffix("Fast").removesuffix("Pil")
        found["image_processor_type"] = name.replace("FeatureExtractor", "ImageProcessor")
        if found["image_processor_type"] not in kinds:
            raise ValueError(
                f"{PART}: image_processor_type={kind!r} is not supported, only {', '.join(kinds)}"
            )
    return found
