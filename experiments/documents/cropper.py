# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The documents experiment: one cropper for receipts and pages, in front of a reader of print.

protocol.md says what is compared and how; train.sh has all trainings. The variants:

    sft              boxes of a labeller that is often a little wrong
    grpo_likelihood  reward: the log-likelihood of the right answer, our reader in the step
    grpo_accuracy    reward: the ANLS of our reader's own answer, in the step
    grpo_black_box   reward: how nearly what PP-OCRv4 reads is right
"""

import ml_collections

from cropvlm_jax.training.config import default_config, source

VARIANTS = ("sft", "grpo_likelihood", "grpo_accuracy", "grpo_black_box")
SUITES = ("receipts", "pages")


def get_config(variant: str = "grpo_likelihood") -> ml_collections.ConfigDict:
    """Settings of one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    config = default_config()
    config.adam_b2 = 0.98
    config.warmup = 0.05
    config.batch_size = 16
    config.data.longest_edge = 480
    config.data.canvas = (1760, 1280)  # pages at 150 dpi; crops are of the original pixels
    config.data.question_tokens = 24
    config.data.answer_tokens = 27
    config.eval.every = 100
    config.eval.examples = 256
    config.checkpoint.every = 50
    for suite in SUITES:
        folder = f"data/documents/{suite}"
        config.data.sources[suite] = source(folder, kind="jsonl", weight=1.0)
        config.eval.sources[suite] = source(folder, kind="jsonl", split="val")
        if variant == "sft":
            boxes = f"runs/documents/seed_boxes/{suite}_{{}}.jsonl"
            config.data.sources[suite].boxes = boxes.format("train")
            config.eval.sources[suite].boxes = boxes.format("val")
    if variant == "sft":
        config.stage = "sft"
        config.cropper = "runs/documents/start/cropper"
        config.steps = 400
        config.learning_rate = 5e-4
        return config
    config.cropper = "runs/documents/sft_0/cropper"
    config.target = "runs/documents/reader/reader"
    config.batch_size = 8
    config.steps = 800
    config.learning_rate = 2e-4
    config.grpo.num_generations = 16
    config.grpo.beta = 0.0  # of the KL: a reference would read each picture once more
    config.grpo.format_weight = 0.1
    config.export_every = config.eval.every  # chosen.py takes the one with the best reward
    if variant != "grpo_likelihood":
        config.grpo.likelihood_weight = 0.0
        config.grpo.accuracy_weight = 1.0
        config.grpo.accuracy = "anls" if variant == "grpo_accuracy" else "nearly_contains"
    if variant == "grpo_black_box":
        config.target = "rapidocr:v4@160"
        # A microbatch is rolled out while the reader reads the one before.
        config.gradient_accumulation_steps = 4
    return config
