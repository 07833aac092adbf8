#!/usr/bin/env bash
# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
# Writes the reports beside this file: steps of SmolVLM-256M on slices of TPUs, no chip needed.
# The hard case: all weights are trained, with Adam and a KL reference. A report takes minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

shape=runs/smolvlm_shape
python experiments/smolvlm_shape.py "$shape"

report() {  # slice, pixels of the cropper's input, prompts, microbatches
    python -m cropvlm_jax.apps.aot --topology="$1" \
        --config="experiments/paper/grpo_likelihood_$2.py" \
        --config.cropper="$shape" --config.target="$shape" \
        --config.lora.rank=0 --config.grpo.num_generations=8 \
        --config.batch_size="$3" --config.gradient_accumulation_steps="$4" \
        --save="experiments/aot/$1_$2.json"
}

for pixels in 512 1024 2048; do
    report v5e-1 "$pixels" 16 4  # four prompts at a time, here and on each of several chips
    report v5e-8 "$pixels" 32 1
    report v6e-8 "$pixels" 32 1
    report v5p-8 "$pixels" 16 1  # eight cores are four chips
    report v5e-256 "$pixels" 1024 1
done

# The first of them with replies of no box, one or two.
python -m cropvlm_jax.apps.aot --topology=v5e-1 \
    --config=experiments/paper/grpo_likelihood_512.py \
    --config.cropper="$shape" --config.target="$shape" \
    --config.lora.rank=0 --config.grpo.num_generations=8 \
    --config.grpo.max_boxes=2 --config.grpo.abstain=True \
    --config.batch_size=16 --config.gradient_accumulation_steps=4 \
    --save=experiments/aot/v5e-1_512_boxes2.json

# SFT and the evaluation of held-out batches, of the same cropper.
for pixels in 512 1024 2048; do
    python -m cropvlm_jax.apps.aot --topology=v5e-8 --config="experiments/paper/sft_$pixels.py" \
        --config.cropper="$shape" --config.lora.rank=0 \
        --config.batch_size=32 --config.gradient_accumulation_steps=1 \
        --save="experiments/aot/v5e-8_sft_$pixels.json"
    python -m cropvlm_jax.apps.aot --topology=v5e-8 --program=evaluation \
        --config="experiments/paper/grpo_likelihood_$pixels.py" \
        --config.cropper="$shape" --config.target="$shape" --config.lora.rank=0 \
        --config.batch_size=32 --config.gradient_accumulation_steps=1 \
        --save="experiments/aot/v5e-8_evaluation_$pixels.json"
done

# The paper's adapters before a frozen 7B target, whose weights the eight chips share.
python experiments/qwen_shape.py runs/qwen7b qwen2_5_vl_7b
python experiments/qwen_shape.py runs/qwen3_4b qwen3_vl_4b
python experiments/qwen_shape.py runs/qwen3_8b qwen3_vl_8b
python experiments/llava_shape.py runs/llava7b
for target in qwen7b qwen3_4b qwen3_8b llava7b; do
    python -m cropvlm_jax.apps.aot --topology=v5e-8 --config=experiments/paper/grpo_likelihood_512.py \
        --config.cropper="$shape" --config.target="runs/$target" \
        --config.gradient_accumulation_steps=1 \
        --config.mesh.data=1 --config.mesh.fsdp=2 --config.mesh.tensor=4 \
        --config.grpo.reward_chunk=2 --save="experiments/aot/v5e-8_$target.json"
done
