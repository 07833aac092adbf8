# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""The quickstart: GRPO from the shipped start weights on scenes of real handwritten digits.

    cropvlm train --config=experiments/zoom_digits.py --workdir=runs/zoom_digits

Why these settings. The learning rate was chosen on 512 scenes of the validation split, where 3e-4
beats 5e-4 (`experiments/zoom_digits/learning_rate.json`). 200 steps are what fits into a few
minutes; more are better. `format_weight` keeps boxes well-formed for programs that decode without
the grammar. Without a reference (`beta=0`) a step takes less time and memory, and so short a run
does not move far from the start weights. `adam_b2` is below its default because the run is short.
To choose anew:

    for rate in 1e-4 2e-4 3e-4 5e-4; do
      cropvlm train --config=experiments/zoom_digits.py --workdir=runs/choose/$rate \
        --config.learning_rate=$rate --config.eval.every=100 --config.eval.examples=512
    done
    grep eval/reward runs/choose/*/metrics.jsonl

Publish only accuracies on scenes of the test split, which must have no part in the choice.
"""

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
