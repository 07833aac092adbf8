#!/usr/bin/env bash
# All trainings of the documents experiment, in order; protocol.md says what they are for. Each command goes on where
# it was stopped. Suites first: python experiments/documents/suites.py --out=data/documents ... (SUITES.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
documents=data/documents
runs=runs/documents
receipts=${RECEIPTS:?the folder of SROIE}

python experiments/documents/train_reader.py --documents=$documents --receipts="$receipts" --workdir=$runs/reader
python experiments/documents/seed_replies.py --documents=$documents --out=$runs/seed_replies
for suite in receipts pages; do
  for split in train val; do
    cropvlm label --source=jsonl --folder=$documents/$suite --split=$split --frame=percent \
      --replies=$runs/seed_replies/${suite}_$split.jsonl --out=$runs/seed_boxes/${suite}_$split.jsonl
  done
done
python experiments/documents/train_cropper.py --documents=$documents --receipts="$receipts" \
  --seeds=$runs/seed_boxes --workdir=$runs/start
for seed in 0 1 2; do
  cropvlm train --config=experiments/documents/cropper.py:sft --config.seed=$seed --workdir=$runs/sft_$seed
  for arm in grpo_likelihood grpo_accuracy grpo_black_box; do
    cropvlm train --config=experiments/documents/cropper.py:$arm --config.seed=$seed \
      --config.cropper=$runs/sft_$seed/cropper --workdir=$runs/${arm}_$seed
  done
done
