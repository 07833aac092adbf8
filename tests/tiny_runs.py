# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of runs on the bundled models that are as small as it gets."""

from typing import Any

import ml_collections

from cropvlm_jax.training.config import default_config, source

# Of GRPO with the bundled target outside of the step.
OUTSIDE = {
    "target": "vlm:zoom_digits/target",
    "grpo.likelihood_weight": 0.0,
    "grpo.accuracy_weight": 1.0,
    "grpo.accuracy": "nearly_contains",
}


def small(stage: str, **changes: Any) -> ml_collections.ConfigDict:
    """A run of one step and one evaluation, whose programs other tests compile too."""
    config = default_config()
    config.stage, config.steps, config.batch_size, config.learning_rate = stage, 1, 2, 1e-4
    config.cropper, config.target = "zoom_digits/cropper", "zoom_digits/target"
    config.grpo.update(num_generations=2, beta=0.01)
    config.data.update(longest_edge=64, canvas=(512, 512), question_tokens=16, answer_tokens=2)
    config.data.sources.zoom_digits = source()
    config.eval.sources.zoom_digits = source(split="validation")
    config.eval.update(every=1, examples=2)
    config.update_from_flattened_dict(changes)
    return config
