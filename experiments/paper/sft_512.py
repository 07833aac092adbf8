# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""CropVLM (arXiv 2511.19820), supervised stage, cropper input 512 px."""

import ml_collections

from cropvlm_jax.training.presets import paper_sft


def get_config() -> ml_collections.ConfigDict:
    """Hyper-parameters of the released SFT script; see `paper_sft`."""
    return paper_sft(longest_edge=512)
