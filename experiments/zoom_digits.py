# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The quickstart: GRPO from the shipped start weights on scenes of real handwritten digits."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Settings that two CPU cores finish in a few minutes."""
    config = ml_collections.ConfigDict()
    config.cropper = "zoom_digits/cropper"  # folder, bundled model or hub id
    config.target = "zoom_digits/target"
    config.dtype = "float32"  # of the computation; weights and optimizer are fp32
    config.remat = False
    config.seed = 0
    config.steps = 200
    config.batch_size = 16  # prompts a step, over all devices
    config.learning_rate = 3e-4
    config.warmup_steps = 10
    config.clip_norm = 1.0
    config.adam_b2 = 0.98
    config.weight_decay = 0.0

    config.grpo = ml_collections.ConfigDict()  # fields of cropvlm_jax.grpo.step.GRPOConfig
    config.grpo.group = 8
    config.grpo.temperature = 1.0
    config.grpo.beta = 0.0
    config.grpo.format_weight = 0.1
    config.grpo.advantage = "std"

    config.data = ml_collections.ConfigDict()
    config.data.num_scenes = 1_000_000
    config.data.canvas = (512, 512)
    config.data.prompt_length = 52
    config.data.question_length = 24
    config.data.answer_length = 4

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config
