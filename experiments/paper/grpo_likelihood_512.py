# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""CropVLM (arXiv 2511.19820), GRPO with the likelihood reward, cropper input 512 px."""

import ml_collections

from cropvlm_jax.training.presets import paper_grpo


def get_config() -> ml_collections.ConfigDict:
    """Hyper-parameters of the released GRPO script; see `paper_grpo`."""
    return paper_grpo(longest_edge=512, reward="likelihood")
