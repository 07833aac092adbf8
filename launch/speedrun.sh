#!/usr/bin/env bash
# From nothing to a cropper with real weights, on one TPU VM: bash launch/speedrun.sh
#
# What: data, seed boxes, SFT, GRPO, evaluation and export of a SmolVLM-256M cropper, for a frozen SmolVLM-256M that
#   sees 512 px. Data is TextVQA (34,602 training questions; half for SFT, half for GRPO), which is on the Hugging Face
#   Hub. Settings: experiments/speedrun.py. Results: runs/speedrun/cropper and runs/speedrun/textvqa/report.html.
# Hardware: v5e with 8 chips (v5litepod-8, one host), 100 GB of disk. Seed boxes come from Qwen2.5-VL-7B in PyTorch,
#   which needs an NVIDIA GPU of 24 GB: run this script there first. It stops after the boxes; copy
#   data/seed_boxes/textvqa.jsonl to the same place on the TPU VM, and run it there.
# Hours and dollars: COMPUTED, NOT MEASURED. This script never ran on a TPU. python experiments/speedrun_cost.py takes
#   the arithmetic that the compiler's reports (experiments/aot/v5e-8_*.json) count, at 25% of the peak rate and $1.20 a
#   chip and hour:
#     512 px: SFT 0.6 min, GRPO 2.5 min, evaluation 0.6 min; $0.60
#     1024 px: SFT 2.6 min, GRPO 5.4 min, evaluation 0.8 min; $1.41
#   Downloads (about 10 GB), compiling (minutes a stage) and the seed boxes come on top. At this rate the host must
#   prepare more than 100 pictures a second, for which all its cores are set to work; if it cannot, it takes longer.
#
# Variables: PIXELS=1024 for a cropper that sees 1024 px; OUT=runs/mine for another folder; DATASET for a mirror of
# lmms-lab/textvqa. Run it again after a stop: what is finished is not done again, and training goes on where it was.
set -euo pipefail
extras=tpu,data,report
gpu=
if command -v nvidia-smi >/dev/null; then gpu=1 extras=data,label; fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$extras"

PIXELS=${PIXELS:-512}
OUT=${OUT:-runs/speedrun}
DATASET=${DATASET:-lmms-lab/textvqa}
target=HuggingFaceTB/SmolVLM-256M-Instruct
boxes=data/seed_boxes/textvqa.jsonl
say() { echo "$(date +%T) speedrun: $*" >&2; }

say "1 of 6: data"
hf download "$DATASET" --repo-type=dataset --local-dir=data/textvqa

say "2 of 6: seed boxes"
if [ ! -e "$boxes" ] && [ -z "$gpu" ]; then
  say "$boxes is not there. Run this script on a machine with an NVIDIA GPU, and copy that file from it."
  exit 3
fi
if [ ! -e "$boxes" ]; then
  mkdir -p data/replies "$(dirname "$boxes")"
  cropvlm label --source=textvqa --folder=data/textvqa --model=Qwen/Qwen2.5-VL-7B-Instruct \
    --replies=data/replies/textvqa.jsonl --out="$boxes"
fi
if [ -n "$gpu" ]; then
  say "$boxes is there: copy it to the TPU VM, and run this script on it"
  exit
fi

say "3 of 6: SFT"
cropvlm train --config="experiments/speedrun.py:sft_$PIXELS" --workdir="$OUT/sft" --config.data.workers="$(nproc)"

say "4 of 6: GRPO"
cropvlm train --config="experiments/speedrun.py:grpo_$PIXELS" --workdir="$OUT/grpo" \
  --config.cropper="$OUT/sft/cropper" --config.data.workers="$(nproc)"

say "5 of 6: evaluation"
cropvlm evaluate --benchmark=textvqa --folder=data/textvqa --targets="$target" --dtype=bfloat16 \
  --croppers="sft=$OUT/sft/cropper,grpo=$OUT/grpo/cropper" --best_scale_split=train --out="$OUT/textvqa" --report

say "6 of 6: export"
cropvlm export --model="$OUT/grpo/cropper" --out="$OUT/cropper" --dtype=bfloat16
say "done: the cropper is in $OUT/cropper, the report is $OUT/textvqa/report.html"
