# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Your own pictures and questions, in front of your own reader: a file to copy and change.

`data/mine` holds `train.jsonl` and `val.jsonl`, which docs/data.md explains, and `boxes.jsonl`, the
seed boxes that `cropvlm label` wrote. Where the lines of `train.jsonl` have boxes of their own,
delete the line below that sets `boxes`.

    cropvlm train --config=experiments/own_data.py:sft --workdir=runs/mine/sft
    cropvlm train --config=experiments/own_data.py:grpo --workdir=runs/mine/grpo

`own_data.py:reader` teaches a reader to answer, for where yours reads such pictures badly.

Hyper-parameters are a start, not a result: nobody tuned them on your data.
"""

import ml_collections

from cropvlm_jax.training.config import default_config, source


def get_config(stage: str = "grpo") -> ml_collections.ConfigDict:
    """Settings of a stage, "reader", "sft" or "grpo"."""
    config = default_config()
    config.stage = stage
    config.dtype = "bfloat16"
    config.remat = True
    config.lora.rank = 128
    config.data.longest_edge = 512  # pixels that the cropper sees; 1024 and 2048 see more, slower
    config.data.sources.jsonl = source("data/mine")
    config.eval.sources.jsonl = source("data/mine", split="val")
    config.eval.every = 100
    if stage == "reader":
        config.target = "HuggingFaceTB/SmolVLM-256M-Instruct"
        config.learning_rate = 5e-5
    elif stage == "sft":
        config.cropper = "HuggingFaceTB/SmolVLM-256M-Instruct"
        config.learning_rate = 5e-5
        config.data.sources.jsonl.boxes = "data/mine/boxes.jsonl"
        # Held-out questions count for SFT only where their lines have boxes.
        config.eval.every = 0
    else:
        config.cropper = "runs/mine/sft/cropper"
        # Or "openai:gpt-4.1-nano", or a VLM that runs inside the step; see docs/readers.md.
        config.target = "rapidocr:v4@512"
        config.learning_rate = 5e-6
        config.gradient_accumulation_steps = 4  # the host asks while the device works
        config.grpo.num_generations = 8
        config.grpo.format_weight = 0.1
        # A reader outside of the step is rewarded by the score of its answer. For a VLM inside the
        # step set the two weights to 1.0 and 0.0: then the reward is the log-likelihood of the
        # right answer, which is seldom equal for two boxes.
        config.grpo.likelihood_weight = 0.0
        config.grpo.accuracy_weight = 1.0
        config.grpo.accuracy = "nearly_contains"
    return config
