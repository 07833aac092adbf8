#!/usr/bin/env bash
# From nothing to a cropper with real weights, on one TPU VM: bash launch/speedrun.sh
#
# What: data, seed boxes, SFT, GRPO, evaluation and export of a SmolVLM-256M cropper, for a frozen SmolVLM-256M that
#   sees 512 px. Data is TextVQA (34,602 training questions; half for SFT, half for GRPO), which is on the Hugging Face
#   Hub. Settings: experiments/speedrun.py. Results: runs/speedrun/cropper and runs/speedrun/textvqa/report.html.
# Hardware: v5e with 8 chips (v5litepod-8, one host), 100 GB of disk. All of it runs there, the labeller
#   Qwen2.5-VL-7B too, whose weights the chips share. On an NVIDIA GPU, install jax[cuda13] into .venv first.
# Hours and dollars: COMPUTED, NOT MEASURED. This script never ran on a TPU; tests/launch/test_speedrun.py runs it on a
#   CPU, with tiny models and data under the same names. python experiments/speedrun_cost.py takes the arithmetic that
#   the compiler's reports (experiments/aot/v5e-8_*.json) count, at 25% of the peak rate and $1.20 a chip and hour:
#     512 px: SFT 0.6 min, GRPO 2.5 min, evaluation 0.6 min; $0.58
#     1024 px: SFT 2.6 min, GRPO 5.3 min, evaluation 0.8 min; $1.40
#   Seed boxes take about 0.4 hours ($3.70) more, computed like that for pictures of 1024 x 768 px, and without what the
#   chips exchange; the log tells the hours before it starts. Downloads (about 27 GB) and compiling (minutes a stage)
#   come on top. At this rate the host must prepare more than 100 pictures a second, for which all its cores are set to
#   work; if it cannot, it takes longer.
#
# Variables: PIXELS=1024 for a cropper that sees 1024 px; OUT=runs/mine for another folder; DATASET for a mirror of
# lmms-lab/textvqa; LABELLER=Qwen/Qwen3-VL-8B-Instruct, or openai:MODEL behind an endpoint at OPENAI_BASE_URL, for
# another labeller; SETTINGS for both trainings, such as SETTINGS="--config.data.canvas=(1024,1024)".
# Run it again after a stop: what is finished is not done again, and labelling and training go on where they were.
set -euo pipefail
LABELLER=${LABELLER:-Qwen/Qwen2.5-VL-7B-Instruct}
extras=data,report
case $LABELLER in openai:*) extras=$extras,targets ;; esac
command -v nvidia-smi >/dev/null || extras=tpu,$extras
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$extras"

PIXELS=${PIXELS:-512}
OUT=${OUT:-runs/speedrun}
DATASET=${DATASET:-lmms-lab/textvqa}
target=HuggingFaceTB/SmolVLM-256M-Instruct
boxes=data/seed_boxes/textvqa.jsonl
say() { echo "$(date +%T) speedrun: $*" >&2; }
train() { # the name of a stage, and more flags
  # shellcheck disable=SC2086  # SETTINGS are words
  cropvlm train --config="experiments/speedrun.py:$1_$PIXELS" --workdir="$OUT/$1" --config.data.workers="$(nproc)" \
    "${@:2}" ${SETTINGS:-}
}

say "1 of 6: data"
hf download "$DATASET" --repo-type=dataset --local-dir=data/textvqa

say "2 of 6: seed boxes"
if [ ! -e "$boxes" ]; then
  devices=$(python -c 'import jax; print(jax.local_device_count())')
  cropvlm label --source=textvqa --folder=data/textvqa --part=0,0.5 --model="$LABELLER" --fsdp="$devices" \
    --replies=data/replies/textvqa.jsonl --out="$boxes"
fi

say "3 of 6: SFT"
train sft

say "4 of 6: GRPO"
train grpo --config.cropper="$OUT/sft/cropper"

say "5 of 6: evaluation"
cropvlm evaluate --benchmark=textvqa --folder=data/textvqa --targets="$target" --dtype=bfloat16 \
  --croppers="sft=$OUT/sft/cropper,grpo=$OUT/grpo/cropper" --best_scale_split=train --out="$OUT/textvqa" --report

say "6 of 6: export"
cropvlm export --model="$OUT/grpo/cropper" --out="$OUT/cropper" --dtype=bfloat16
say "done: the cropper is in $OUT/cropper, the report is $OUT/textvqa/report.html"
