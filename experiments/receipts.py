# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Total, date and company of scanned receipts, read by a frozen OCR reader: PP-OCRv4 at 160 px.

At that size the reader makes nothing of a whole receipt. Its reward comes from outside of the
graph: how nearly what it reads in the crop contains the answer.

    python experiments/receipts_models.py --data=data/sroie --out=runs/receipts/start
    for split in train val; do
      cropvlm label --source=sroie --folder=data/sroie --split=$split \
        --replies=runs/receipts/start/replies_$split.jsonl --frame=percent \
        --out=runs/receipts/seed_boxes_$split.jsonl
    done
    cropvlm train --config=experiments/receipts.py:sft \
        --workdir=runs/receipts/sft   # minutes on two cores
    cropvlm train --config=experiments/receipts.py:grpo \
        --workdir=runs/receipts/grpo   # 20 to 40 minutes
    cropvlm train --config=experiments/receipts.py:grpo \
        --config.target=tesseract@160 --config.steps=60 --config.eval.every=60 \
        --workdir=runs/receipts/grpo_tesseract   # another reader's, for the transfer matrix
    OTHER=grpo_tesseract=runs/receipts/grpo_tesseract/cropper
    cropvlm evaluate --benchmark=sroie --folder=data/sroie \
        --targets=rapidocr:v4@160,rapidocr:v6@160,tesseract@160 \
        --croppers=sft=runs/receipts/sft/cropper,$OTHER,grpo=runs/receipts/grpo/cropper \
        --out=runs/receipts/evaluation --report
    python experiments/receipts_results.py --evaluation=runs/receipts/evaluation \
        --save=experiments/receipts/results.json

The readers take `pip install -e '.[targets]'` and the program Tesseract. SFT imitates the boxes of
the lines that hold the answers, enlarged as the paper enlarges seed boxes; GRPO knows no box. No
receipt is in two of training, validation and test.
"""

import ml_collections

from cropvlm_jax.training.config import default_config, source


def get_config(stage: str = "grpo") -> ml_collections.ConfigDict:
    """Settings of a stage, "sft" or "grpo"."""
    config = default_config()
    config.stage = stage
    config.batch_size = 8
    config.adam_b2 = 0.98
    config.warmup = 0.05
    config.data.sources.sroie = source("data/sroie")
    config.data.longest_edge = 192  # of 96 px tiles: up to 2 x 2 and the whole
    config.data.canvas = (1600, 1600)  # as large as they are: crops are of the original pixels
    config.data.question_tokens = 24
    config.eval.sources.sroie = source("data/sroie", split="val")
    config.eval.every = 50
    config.eval.examples = 96
    config.checkpoint.every = 50
    if stage == "sft":
        config.cropper = "runs/receipts/start/cropper"
        config.steps = 200
        config.learning_rate = 1e-3
        config.data.sources.sroie.boxes = "runs/receipts/seed_boxes_train.jsonl"
        config.eval.sources.sroie.boxes = "runs/receipts/seed_boxes_val.jsonl"
    else:
        config.cropper = "runs/receipts/sft/cropper"
        config.target = "rapidocr:v4@160"
        config.steps = 160
        config.learning_rate = 2e-4
        # A microbatch is rolled out while the reader reads the one before.
        config.gradient_accumulation_steps = 4
        config.grpo.num_generations = 8
        config.grpo.beta = 0.0
        config.grpo.format_weight = 0.1
        config.grpo.likelihood_weight = 0.0
        config.grpo.accuracy_weight = 1.0
        config.grpo.accuracy = "nearly_contains"
        config.checkpoint.best = "eval/reward"
    return config
