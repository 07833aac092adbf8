# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Your own pictures and questions, in front of your own reader; docs/own_data.md goes through it.

The source `mine` is read from `data/mine`: `train.jsonl` and `val.jsonl`. For another folder, say
so with flags (`--config.data.sources.mine.folder=...` and `--config.eval.sources.mine.folder=...`),
or copy this file. Its variants, such as `--config=experiments/own_data.py:sft`:

    sft        the cropper learns boxes
    grpo       the target, a VLM inside the step, rewards boxes by the log-likelihood of the answer
    black_box  the target, a chat endpoint or an OCR reader, rewards them by the score of its answer
    reader     a VLM that reads such pictures badly is taught to answer (docs/readers.md)

Hyper-parameters are a start, not a result: nobody tuned them on your data.
"""

import ml_collections

from cropvlm_jax.training.config import default_config, source

VARIANTS = ("sft", "grpo", "black_box", "reader")
SMOLVLM = "HuggingFaceTB/SmolVLM-256M-Instruct"


def get_config(variant: str = "grpo") -> ml_collections.ConfigDict:
    """Settings of one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    config = default_config()
    config.dtype = "bfloat16"
    config.remat = True
    config.lora.rank = 128
    config.data.longest_edge = 512  # pixels that the cropper sees; 1024 and 2048 see more, slower
    config.data.sources.mine = source("data/mine", kind="jsonl")
    config.eval.sources.mine = source("data/mine", kind="jsonl", split="val")
    if variant == "reader":
        config.stage = "reader"
        config.target = SMOLVLM
        config.learning_rate = 5e-5
        config.eval.every = 100
    elif variant == "sft":
        config.stage = "sft"
        config.cropper = SMOLVLM
        config.learning_rate = 5e-5
        config.eval.every = 0  # held-out questions count for SFT only where their lines have boxes
    else:
        config.stage = "grpo"
        config.cropper = "runs/mine/sft/cropper"
        config.target = SMOLVLM
        config.learning_rate = 5e-6
        config.eval.every = 100
        config.grpo.num_generations = 8
        config.grpo.format_weight = 0.1  # keeps what is not a box unlikely
    if variant == "black_box":
        config.target = "rapidocr:v6@512"
        config.gradient_accumulation_steps = 4  # the host asks while the device works
        config.grpo.likelihood_weight = 0.0
        config.grpo.accuracy_weight = 1.0
        config.grpo.accuracy = "nearly_contains"
    return config
