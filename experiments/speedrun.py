# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The runs of `launch/speedrun.sh`: the paper's two stages on TextVQA alone, which is on the Hub.

SFT takes the first half of the training questions and GRPO the second. The cropper sees 512 px;
"sft_1024" and "grpo_1024" are the same at 1024 px.
"""

import ml_collections

from cropvlm_jax.training.presets import paper_grpo, paper_sft


def get_config(run: str) -> ml_collections.ConfigDict:
    """The settings of one run.

    Args:
        run: "sft" or "grpo", followed by "_" and the pixels of the cropper's input.
    """
    stage, _, pixels = run.partition("_")
    edge = int(pixels or 512)
    config = paper_sft(edge) if stage == "sft" else paper_grpo(edge, reward="likelihood")
    for name in set(config.data.sources) - {"textvqa"}:
        del config.data.sources[name]
    config.gradient_accumulation_steps = 1  # eight chips hold two prompts each at once
    return config
