# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The quickstart: GRPO from the shipped start weights on scenes of real handwritten digits."""

import ml_collections

from cropvlm_jax.training.config import default_config, source


def get_config() -> ml_collections.ConfigDict:
    """Settings that two CPU cores finish in a few minutes."""
    config = default_config()
    config.cropper = "zoom_digits/cropper"
    config.target = "zoom_digits/target"
    config.steps = 200
    config.learning_rate = 3e-4
    config.warmup = 0.05
    config.adam_b2 = 0.98

    config.grpo.beta = 0.0
    config.grpo.format_weight = 0.1

    config.data.sources.zoom_digits = source()
    config.eval.sources.zoom_digits = source(split="validation")
    config.data.longest_edge = 64
    config.data.canvas = (512, 512)
    config.data.question_tokens = 16
    config.data.answer_tokens = 2
    return config
