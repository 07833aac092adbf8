# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What host image processing of several architectures shares; no jax import."""

# Of the pixels, in 0..1, that every CLIP was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Settings of an image processor that normalises as CLIP's does, after a bicubic resize.
CLIP_SETTINGS = {
    "resample": 3,  # bicubic
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
}
